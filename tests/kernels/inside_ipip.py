"""Does ipip do its work on a kernel that has it? Runs in the guest of ``guest.py``, on the hosts of ``inside.py``.

    a 192.168.90.1, overlay 10.1.x.1 ---- bridge, etcd ---- 192.168.90.2, overlay 10.1.y.1 b
                                            |
                               192.168.90.3 c, a stranger

Agents are real.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from functools import partial

import uvloop
from netaddr import IPAddress, IPNetwork

from backends.ipip import DEVICE, IpipBackend
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Scope
from flannelpy.core.plan import Step, plan
from flannelpy.kernel.netlink import NetlinkKernel
from netns_lab.etcd import binary
from tests.kernels import inside
from tests.kernels.inside import (
    ENDPOINT,
    Host,
    check,
    check_flanneld,
    echo_request,
    echoes,
    enter,
    finish,
    flanneld,
    make_hosts,
    pinged,
    say,
    settle,
    shell,
    socket_in,
    start_etcd,
)

until = partial(inside.until, within_s=150.0)

MTU = 1480
IPPROTO_IPIP = 4
FORGED = 100
CONFIG: dict[str, object] = {"Network": "10.1.0.0/16", "Backend": {"Type": "ipip"}}


def configure(**options: object) -> None:
    config = json.dumps({**CONFIG, "Backend": {"Type": "ipip", **options}})
    words = [binary("etcdctl"), f"--endpoints={ENDPOINT}", "put", "/coreos.com/network/config", config]
    subprocess.run(words, capture_output=True, check=True)


def meet(one: Host, other: Host, mtu: int = MTU) -> None:
    """Ping, and full MTU with DF, and one byte more, both ways."""
    for here, there in ((one, other), (other, one)):
        until(lambda here=here, there=there: pinged(here, there), f"{here.name} reaches {there.name}")  # type: ignore[misc]
        until(lambda here=here, there=there: pinged(here, there, "-M", "do", "-s", str(mtu - 28)), f"{mtu} bytes")  # type: ignore[misc]
        assert not pinged(here, there, "-M", "do", "-s", str(mtu - 27)), f"{mtu + 1} bytes"


# --------------------------------------------------------------------------------------------------------------- checks


async def objects_come_and_go() -> None:
    """Made, observed, kept, repaired where another hand has made it otherwise, and removed."""
    backend, config = IpipBackend(), NetworkConfig.parse(json.dumps(CONFIG))
    own = Lease(IPNetwork("10.1.72.0/24"), LeaseAttrs(IPAddress("192.168.90.3")))
    local = Local(config, Uplink("eth1", 2, 1500, IPAddress("192.168.90.3")), own)
    wanted = backend.host(local) | backend.path(Lease(IPNetwork("10.1.9.0/24"), LeaseAttrs(IPAddress("192.168.90.2"))), local).state
    scope = Scope(frozenset({DEVICE}), config.networks, "eth1")
    kernel = NetlinkKernel()

    async def apply(steps: tuple[Step, ...]) -> None:
        assert [str(result.error) for result in await kernel.apply(steps) if result.error] == []

    def made(*words: str) -> None:
        shell(f"ip link del {DEVICE} 2>/dev/null; ip link add {DEVICE} mtu {MTU} type ipip {' '.join(words)}")
        shell(f"ip link set {DEVICE} up")

    try:
        await apply(plan(wanted, HostState()))
        observed = await kernel.observe(scope)
        assert observed == wanted, list(map(str, observed))
        for mode in ("", "mode any", "mode ipip"):  # flannel's is "any", other tools' "ipip"
            made("local 192.168.90.3 remote any ttl inherit nopmtudisc", mode)
            assert not [step for step in plan(wanted, await kernel.observe(scope), scope) if step.key.kind == "link"], mode
        for words in (
            "local 192.168.90.2 remote any ttl inherit nopmtudisc",
            "local 192.168.90.3 remote 192.168.90.2 ttl inherit nopmtudisc",
            "local 192.168.90.3 remote any ttl 64",
            "local 192.168.90.3 remote any ttl inherit nopmtudisc tos 4",
            "local 192.168.90.3 remote any ttl inherit nopmtudisc dev eth1",
        ):
            made(words)
            await apply(plan(wanted, await kernel.observe(scope), scope))
            assert await kernel.observe(scope) == wanted, words
        await apply(plan(HostState(), await kernel.observe(scope), scope))
        assert len(await kernel.observe(scope)) == 0
    finally:
        await kernel.close()


def contract() -> None:
    """What is skipped where the kernel lacks it."""
    words = ["-q", "-x", "-p", "no:cacheprovider", "-k", "real and (port or tunnel or checksum)", "tests/contract/test_kernel.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]


HOSTILE = """
import pytest, netns_lab.etcd as etcd, tests.lab.hostile_support as hostile
etcd.START_TIMEOUT_S, every = 150.0, hostile.leases
hostile.leases = lambda *given: {key: value for key, value in every(*given).items() if len(key + value) < 10_000}
words = ["-q", "-x", "-s", "-p", "no:cacheprovider", "-k", "ipip", "tests/lab/test_hostile_leases.py"]
raise SystemExit(pytest.main(words))
"""
"""The lab's own test, with patience for an etcd that starts in here, and without the few values that take it minutes to write."""


def hostile_leases() -> None:
    """What is skipped where the kernel lacks it."""
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "1 passed" in done.stdout, done.stdout[-500:]
    say(next(line for line in done.stdout.splitlines() if " leases, " in line))


def guard(a: Host, b: Host) -> None:
    """Only what a peer sends comes in: from its subnet or from outside of the network, and into ours."""

    def send(sender: str, source: str, destination: str, times: int) -> None:
        with socket_in(sender, socket.SOCK_RAW, IPPROTO_IPIP) as sock:  # the kernel puts the outer header before it
            for _ in range(times):
                sock.sendto(echo_request(source, destination), (a.public_ip, 0))

    for sender, source, destination, what in (
        ("c", b.inside, a.inside, "a stranger's"),
        ("c", "192.168.90.77", a.inside, "a stranger's from outside"),
        ("b", "10.1.250.1", a.inside, "from a subnet that is not the sender's"),
        ("b", a.inside, a.inside, "from our own subnet"),
        ("b", b.inside, a.public_ip, "to what is not in our subnet"),
        ("b", b.inside, a.inside, "in: the peer's own"),
        ("b", b.public_ip, a.inside, "in: the peer host's own address"),
        ("b", "192.168.90.77", a.inside, "in: a client that the peer routes"),
    ):
        before = echoes("a")
        send(sender, source, destination, FORGED)
        send("b", b.inside, a.inside, 1)  # comes in, behind the others
        wanted = before + 1 + (FORGED if what.startswith("in: ") else 0)
        until(lambda wanted=wanted: echoes("a") >= wanted, f"{what}: {wanted} echo requests")  # type: ignore[misc]
        assert echoes("a") == wanted, what
    counted = shell("nft list counters table inet flannelpy", "a")
    assert f"packets {2 * FORGED} " in counted, counted


def drift(a: Host, b: Host) -> None:
    """Whatever another hand changes is as it was within seconds."""
    before = shape("a")
    for harm in (
        f"ip link del {DEVICE}",
        f"ip link set {DEVICE} down",
        f"ip link set {DEVICE} mtu 1300",
        f"ip addr flush dev {DEVICE}",
        f"ip route del {b.subnet}",
        f"ip link change {DEVICE} type ipip local 192.168.90.77 remote any ttl inherit nopmtudisc",
        f"ip link del {DEVICE}; ip link add {DEVICE} type ipip local 192.168.90.77 remote any ttl inherit nopmtudisc",
    ):
        shell(harm, "a")
        until(lambda: shape("a") == before, f"as it was after {harm}: {shape('a')}")
        until(lambda: pinged(a, b), f"they meet again after {harm}")


def shape(host: str) -> str:
    """Device, address and routes, as an operator sees them."""
    shown = shell(f"ip -d -o link show {DEVICE}; ip -o -4 addr show {DEVICE}; ip route show dev {DEVICE}; true", host)
    return re.sub(r"(?m)^\d+: ", "", shown)


def restart_under_pings(a: Host, b: Host) -> None:
    """With nothing of ours in the path, the agent may go and come."""
    words = ["ip", "netns", "exec", "a", "ping", "-n", "-i", ".1", "-W2", "-I", a.inside, b.inside]
    pings = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        b.start("auto")
        until(b.file.exists, "b is ready")
    finally:
        pings.send_signal(signal.SIGINT)
        said, _ = pings.communicate(timeout=10)
    assert " 0% packet loss" in said, said[-200:]


def devices_of_others(a: Host, b: Host) -> None:
    """What a flannel or another tool has made is taken over as it is; one with a wrong local address is made anew."""
    for words, kept in (
        ("local 192.168.90.2 remote any ttl inherit nopmtudisc mode any", True),
        ("local 192.168.90.2 remote any ttl inherit nopmtudisc mode ipip", True),
        ("local 192.168.90.77 remote any ttl inherit nopmtudisc mode any", False),
    ):
        b.stop()
        shell(f"ip link del {DEVICE}; ip link add {DEVICE} type ipip {words}", "b")
        index = shell(f"cat /sys/class/net/{DEVICE}/ifindex", "b")
        b.start("auto")
        settle(b)
        until(lambda: pinged(b, a), f"they meet by {words}")
        assert (shell(f"cat /sys/class/net/{DEVICE}/ifindex", "b") == index) is kept, words
        assert "local 192.168.90.2 " in shape("b")


def beside_flanneld(*hosts: Host) -> None:
    c = Host("c")
    with flanneld(c):
        settle(c)
        for host in hosts:
            meet(host, c)


def main() -> None:
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy ipip fou vxlan tun nf_tables")
    with check("contract"):
        contract()
    with check("hostile leases"):
        hostile_leases()
    make_hosts()
    with check("objects"):
        pid = os.fork()
        if not pid:
            try:
                enter("c")
                uvloop.run(objects_come_and_go())
                os._exit(0)
            except BaseException:  # noqa: BLE001 - the edge of a process
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    etcd = start_etcd()
    configure()
    a, b = Host("a"), Host("b")
    try:
        for host in (a, b):
            host.file.parent.mkdir()
            host.log.touch()
            host.start("auto")
        settle(a, b)
        with check("they meet"):
            meet(a, b)
        with check("as flannel has it"):
            shown = shape("a")
            ends = "ipip ipip remote any local 192.168.90.1 ttl inherit nopmtudisc"
            for part in (f"mtu {MTU}", ends, f"inet {a.subnet.ip}/32", f"{b.subnet} via 192.168.90.2 proto 102 onlink"):
                assert part in shown, f"{part} in {shown}"
        with check("guard"):
            guard(a, b)
        with check("drift"):
            drift(a, b)
        with check("direct routing"):
            configure(DirectRouting=True)
            for one, other in ((a, b), (b, a)):
                wanted = f"{other.subnet} via {other.public_ip} dev eth1"
                until(lambda one=one, wanted=wanted: wanted in shell("ip route", one.name), wanted)  # type: ignore[misc]
            meet(a, b, 1500)
            configure()
            for one, other in ((a, b), (b, a)):
                wanted = f"{other.subnet} via {other.public_ip} dev {DEVICE}"
                until(lambda one=one, wanted=wanted: wanted in shell("ip route", one.name), wanted)  # type: ignore[misc]
            meet(a, b)
        with check("a restart loses no packet"):
            restart_under_pings(a, b)
        with check("devices of others"):
            devices_of_others(a, b)
        check_flanneld(lambda: beside_flanneld(a, b))
        with check("another backend"):
            words = json.dumps({**CONFIG, "Backend": {"Type": "udp", "Engine": "kernel"}})
            command = [binary("etcdctl"), f"--endpoints={ENDPOINT}", "put", "/coreos.com/network/config", words]
            subprocess.run(command, capture_output=True, check=True)
            for host in (a, b):
                until(lambda host=host: DEVICE not in shell("ip -br link", host.name), "no device is left")  # type: ignore[misc]
            until(lambda: pinged(a, b), "they meet by udp, whose device has the same local address")
            configure()
            for host in (a, b):
                until(lambda host=host: "flannel0" not in shell("ip -br link", host.name), "no device is left")  # type: ignore[misc]
            meet(a, b)
    finally:
        finish(etcd, a, b)
    with check("hostile leases"):
        hostile_leases()
    say("end")


if __name__ == "__main__":
    main()
