"""udp: does udp carry what it should, and does it come back whatever is killed?

c1 10.1.72.2 - h1 flannel0 - datapath - 192.168.50.11:8285 ==== 192.168.50.12:8285 - datapath - flannel0 h2 - c2 10.1.9.2
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from netns_lab.host import Box, Host
from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    Log,
    captured,
    lab_name,
    no_traceback,
    put_many,
    remember_subnet,
    routes,
    shell,
    until,
    until_cut_off,
    until_said,
)
from tests.lab.udp_support import start_s

# Packets on the wire are counted: no probes among them.
pytestmark = pytest.mark.topology(hosts=2, backend="udp", agent_options=("--udp-engine=pump", "--probe=false"))


@pytest.fixture
async def tunnel(lab: Lab) -> Lab:
    remember_subnet(lab.host(1), "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(lab.host(2), "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents()
    await lab.connect_containers()
    return lab


def descendants(pid: int) -> list[int]:
    """Every process below one."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for word in children.read_text().split():
            found += [int(word), *descendants(int(word))]
    return found


def runs(pid: int) -> bool:
    """Is it there, and no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def workers(host: Host) -> list[int]:
    """The processes that hold the UDP port."""
    text = await host.exec("ss", "-Hlunp", "sport = :8285")
    own = set(descendants(host.agent.pid))
    return [pid for pid in own if f"pid={pid}," in text]


async def test_containers_meet_and_the_largest_packet_arrives_whole(tunnel: Lab) -> None:
    assert [pair for pair, ping in (await tunnel.matrix()).items() if not ping.ok] == []
    whole = ["ping", "-n", "-c3", "-i", "0.05", "-W2", "-M", "do", "-s", str(1472 - 28)]
    async with tunnel.pcap("h2", "eth1", "udp port 8285 or (ip[6:2] & 0x3fff != 0)") as capture:
        out = await tunnel.container("c1").exec(*whole, "10.1.9.2")
        lines = await captured(capture, 6)
    assert " 0% packet loss" in out
    assert len(lines) == 6  # none in pieces
    assert all("UDP, length 1472" in line for line in lines)
    too_long = await tunnel.container("c1").attempt("ping", "-n", "-c1", "-W1", "-M", "do", "-s", str(1472 - 27), "10.1.9.2")
    assert "mtu=1472" in too_long.stdout + too_long.stderr or "mtu 1472" in too_long.stdout + too_long.stderr


async def test_a_transfer_arrives_whole(tunnel: Lab) -> None:
    """Super-packets through TUN, segments on the wire, super-packets again: every byte the same."""
    data = tunnel.directory / "data"
    data.write_bytes(os.urandom(1 << 20) * 16)
    server = "import socket,hashlib,sys\ns=socket.create_server(('10.1.9.2',7));c,_=s.accept();h=hashlib.sha256()\n"
    server += "while b:=c.recv(65536): h.update(b)\nprint(h.hexdigest())"
    client = "import socket,sys;s=socket.create_connection(('10.1.9.2',7),5);s.sendall(open(sys.argv[1],'rb').read());s.close()"
    log = tunnel.directory / "server.log"
    listening = tunnel.container("c2").namespace.spawn("server", ["python3", "-c", server], log=log, lasting=False)

    async def listens() -> bool:
        return bool(await shell(tunnel.container("c2"), "ss -Hltn sport = :7"))

    await until(listens, 5, "the server listens", lambda: log.read_text())
    await tunnel.container("c1").exec("python3", "-c", client, str(data), timeout_s=20)
    assert await listening.wait(20) == 0
    assert log.read_text().strip() == hashlib.sha256(data.read_bytes()).hexdigest()


async def test_ipv6_noise_and_unknown_subnets_go_nowhere(tunnel: Lab) -> None:
    async with tunnel.pcap("h1", "eth1", "udp port 8285") as capture:
        unknown = await tunnel.container("c1").attempt("ping", "-n", "-c1", "-W1", "10.1.200.2")
        assert (await tunnel.ping("c1", "c2")).ok
        lines = await captured(capture, 2)
    assert unknown.code != 0
    assert len(lines) == 2


async def test_a_datagram_of_a_stranger_is_not_let_in(tunnel: Lab) -> None:
    """flanneld's proxy takes packets from anybody (field-problems 2.12); here the outer source has to be the peer's."""
    open_from = "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind((%r,%d));"
    # An IPv4 packet with an echo request from c2 to c1, as h2 would send it.
    ends = bytes([10, 1, 9, 2, 10, 1, 72, 2])
    header = bytes.fromhex("4500001c000100004001")
    packet = header + checksum(header + bytes(2) + ends).to_bytes(2, "big") + ends + bytes.fromhex("0800f7fd00010001")
    send = f"s.sendto(bytes.fromhex('{packet.hex()}'),('192.168.50.11',8285))"
    await tunnel.host(2).exec("ip", "addr", "add", "192.168.50.99/24", "dev", "eth1")
    async with tunnel.pcap("c1", "eth0", "icmp") as capture:
        await tunnel.host(2).exec("python3", "-c", open_from % ("192.168.50.99", 8285) + send)
        assert (await tunnel.ping("c2", "c1")).ok
        lines = await captured(capture, 2)
    assert len(lines) == 2
    # The same from the peer's address is let in: it was the address that it was judged by.
    async with tunnel.pcap("c1", "eth0", "icmp") as capture:
        await tunnel.host(2).exec("python3", "-c", open_from % ("192.168.50.12", 0) + send)
        assert (await tunnel.ping("c2", "c1")).ok
        lines = await captured(capture, 4)
    assert len(lines) == 4


def checksum(header: bytes) -> int:
    """RFC 1071."""
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


async def test_a_worker_that_is_killed_is_back_within_half_a_second(tunnel: Lab) -> None:
    one = tunnel.host(1)
    before = await workers(one)
    assert before
    log = Log.from_now(one)
    async with tunnel.pinging("c1", "c2", per_second=100) as pings:
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        answered = pings.answers()
        await until(lambda: pings.answers() > answered + 10, 5, "answers again", lambda: log.text)
    assert pings.longest_ms < max(500.0, 2000 * start_s())  # of a machine that is busy with other things no more can be asked
    after = await workers(one)
    assert after
    assert not set(after) & set(before)
    assert log.text
    assert one.agent.running
    assert len(await shell(one, "ip -br link show type tun")) == 1


async def test_a_worker_that_is_killed_again_and_again_does_not_wear_out(tunnel: Lab) -> None:
    one = tunnel.host(1)
    for _ in range(3):
        for pid in await workers(one):
            os.kill(pid, signal.SIGKILL)

        async def answered() -> bool:
            return (await tunnel.ping("c1", "c2", wait_s=0.2)).ok

        await until(answered, 5, "a ping", lambda: Log.of(one).text)
    assert len(await workers(one)) >= 1


@pytest.mark.topology(hosts=2, backend="udp", agent_options=("--udp-engine=pump", "--udp-workers=2"))
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a worker for each core, and there is one")
async def test_each_of_several_workers_has_its_own_and_is_replaced_alone(tunnel: Lab) -> None:
    one = tunnel.host(1)
    before = await workers(one)
    assert len(before) == 2
    agents = open_in(one.agent.pid)
    own = set()
    for pid in before:
        await until(lambda pid=pid: is_nobody(pid), 5, "the worker is nobody")
        held = open_in(pid)
        shared = {what for what in held & agents if what.startswith(("socket:", "pipe:"))}
        assert len(shared) == 1
        own |= shared
        files = {what for what in held if what.startswith("/") and not what.startswith("/memfd:")}
        assert files == {"/dev/null", "/dev/net/tun", str(one.directory / "agent.log")}
    assert len(own) == 2

    log = Log.from_now(one)
    os.kill(before[0], signal.SIGKILL)
    line = await until_said(log, "udp worker", "of 2 was killed by signal 9; a new one starts now")
    await until_said(log, re.findall(r"udp worker \d of 2", line)[0], "moves packets")
    after = await workers(one)
    assert set(before) - set(after) == {before[0]}
    assert len(after) == 2
    assert [pair for pair, ping in (await tunnel.matrix()).items() if not ping.ok] == []


def is_nobody(pid: int) -> bool:
    """A worker is, shortly before it moves packets."""
    return "\nUid:\t65534\t65534\t65534\t65534\n" in Path(f"/proc/{pid}/status").read_text()


def open_in(pid: int) -> set[str]:
    """What a process has open, as /proc shows it."""
    return {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}


async def test_kill_9_of_the_agent_leaves_no_orphan_and_a_restart_works(tunnel: Lab) -> None:
    one = tunnel.host(1)
    below = descendants(one.agent.pid)
    assert below
    await one.agent.kill()
    await until(lambda: not [pid for pid in below if runs(pid)], 2, "no process of it is left", lambda: below)
    assert await shell(one, "ss -Hlun sport = :8285") == []
    await one.start_agent()
    assert str(one.subnet) == "10.1.72.0/24"
    assert (await tunnel.ping("c1", "c2")).ok
    assert (await tunnel.ping("c2", "c1")).ok


async def test_a_clean_restart_keeps_the_subnet_and_the_device_comes_again(tunnel: Lab) -> None:
    one = tunnel.host(1)
    below = descendants(one.agent.pid)
    start = time.monotonic()
    assert await one.agent.stop() == 0
    assert time.monotonic() - start < 1
    assert not [pid for pid in below if runs(pid)]
    async with tunnel.pinging("c2", "c1", per_second=50, first_answer_within_s=None) as pings:
        await one.start_agent()
        await until(lambda: pings.answers() > 5, 2, "answers after READY", lambda: Log.of(one).text)
    assert str(one.subnet) == "10.1.72.0/24"
    assert "10.1.0.0/16 dev flannel0" in " ".join(await routes(one))


async def test_what_is_changed_on_the_tunnel_is_put_right(tunnel: Lab) -> None:
    one = tunnel.host(1)
    for command in (
        "ip link set flannel0 down",
        "ip route del 10.1.0.0/16",
        "ip addr del 10.1.72.0/32 dev flannel0",
        "ip link set flannel0 mtu 1400",
    ):
        await one.exec(*command.split())

        async def right() -> bool:
            text = " ".join(await shell(one, "ip link show flannel0; ip -4 addr show flannel0; ip route"))
            return all(part in text for part in ("mtu 1472", "UP,LOWER_UP", "inet 10.1.72.0/32", "10.1.0.0/16 dev flannel0"))

        await until(right, 2, f"{command} is put right", lambda: Log.of(one).text)
        assert (await tunnel.ping("c1", "c2")).ok


async def test_garbage_and_leases_of_other_backends_do_not_stop_it(tunnel: Lab) -> None:
    """A lease without BackendType is udp's own; what others have no business here is said."""
    values = {
        f"{SUBNETS}/10.1.{100 + n}.0-24": value for n, value in enumerate(("oops", "{}", '{"PublicIP":null}', '{"PublicIP":"x"}'))
    }
    put_many(tunnel, values)
    log = Log.of(tunnel.host(1))
    await until(lambda: len(log.begun("warning:")) >= 4, 3, "four lines", lambda: log.text)
    assert (await tunnel.ping("c1", "c2")).ok
    assert (await tunnel.ping("c2", "c1")).ok


async def test_etcd_away_stops_no_packet(tunnel: Lab) -> None:
    async with tunnel.pinging("c1", "c2", per_second=100) as pings:
        tunnel.etcd.kill()
        for host in tunnel.hosts:
            await until_cut_off(host)
        answered = pings.answers()
        await until(lambda: pings.answers() > answered + 20, 5, "answers without etcd")
        tunnel.etcd.restart()
    assert pings.lost == 0


ACCEPT_LOCAL = "/proc/sys/net/ipv4/conf/flannel0/accept_local"
CONNECT = """
import socket, sys
try:
    socket.create_connection(("10.1.200.1", 80), 5)
except OSError as error:
    print(error.strerror)
"""


async def test_a_container_learns_at_once_that_nobody_has_a_subnet(tunnel: Lab) -> None:
    one, container = tunnel.host(1), tunnel.container("c1")
    assert await shell(one, f"cat {ACCEPT_LOCAL}") == ["1"]
    for box in (container, one):

        async def told(box: Box = box) -> bool:  # within the five seconds that it waits
            return await box.exec("python3", "-c", CONNECT) == "Network is unreachable\n"

        await until(told, 30, f"{box.name} is told")
    ping = await container.attempt("ping", "-n", "-c1", "-W1", "-t3", "10.1.9.2")
    assert "From 10.1.9.0 icmp_seq=1 Time to live exceeded" in ping.stdout


async def test_accept_local_is_put_right(tunnel: Lab) -> None:
    one = tunnel.host(1)
    await one.exec("sh", "-c", f"echo 0 > {ACCEPT_LOCAL}")

    async def right() -> bool:
        return (await one.attempt("cat", ACCEPT_LOCAL)).stdout == "1\n"

    await until(right, 8, "accept_local is put right", lambda: Log.of(one).text)
    await one.exec("ip", "link", "delete", "flannel0")
    await until(right, 5, "accept_local of a new device", lambda: Log.of(one).text)


@pytest.mark.topology(hosts=2, backend="udp", agent_options=("--udp-engine=pump",), config={"Backend": {"Guard": "peers"}})
async def test_where_peers_may_send_from_any_source_ours_is_not_taken(tunnel: Lab) -> None:
    assert await shell(tunnel.host(1), f"cat {ACCEPT_LOCAL}") == ["0"]


async def test_what_the_path_does_not_take_is_cut_or_refused(tunnel: Lab) -> None:
    await tunnel.host(1).exec("ip", "route", "replace", "192.168.50.12/32", "dev", "eth1", "mtu", "1400")
    await tunnel.host(2).exec("ip", "route", "replace", "192.168.50.11/32", "dev", "eth1", "mtu", "1400")
    container = tunnel.container("c1")
    large = ["ping", "-n", "-c3", "-i", "0.05", "-W2", "-s", str(1472 - 28)]
    async with tunnel.pcap("h2", "eth1", "udp port 8285 or (ip[6:2] & 0x3fff != 0)") as capture:
        assert " 0% packet loss" in await container.exec(*large, "-M", "dont", "10.1.9.2")
        lines = await captured(capture, 12)
    assert len(lines) == 12  # each way three in two
    assert sum("UDP, length 1372" in line for line in lines) == 6
    refused = await container.attempt(*large, "-M", "do", "10.1.9.2")
    assert "Frag needed and DF set (mtu = 1372)" in refused.stdout
