"""Is the lab what it says, and does it leave nothing behind?

outside 203.0.113.1 - nat1 10.0.2.2 - eth0 h1 eth1 192.168.50.11 ==== h2, h3, etcd 192.168.50.5
                                          h1 docker0 - c1
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netaddr import IPAddress

from netns_lab.errors import LabError, TimedOutError
from netns_lab.lab import Lab, until
from netns_lab.ledger import NETNS, ROOT, Ledger, start_time
from netns_lab.topology import Topology

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = REPOSITORY / "netns-lab" / "lab"

STAND_IN = """
import os, signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
if "fail" in options:
    sys.exit(options["fail"])
subnet, mtu = options.get("subnet", "10.1.5.1/24"), options.get("mtu", "1400")
with open(options["subnet-file"], "w") as file:
    file.write(f"FLANNEL_NETWORK=10.1.0.0/16\\nFLANNEL_SUBNET={subnet}\\nFLANNEL_MTU={mtu}\\nFLANNEL_IPMASQ=true\\n")
if "mute" not in options:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.sendto(b"READY=1\\nSTATUS=standing in", os.environ["NOTIFY_SOCKET"])
signal.sigwait({signal.SIGTERM})
"""
"""As much of an agent as the lab sees: options, subnet.env, READY=1, SIGTERM."""

PROGRAM = (sys.executable, "-c", STAND_IN)


def namespaces(name: str) -> set[str]:
    return {path.name for path in NETNS.iterdir() if path.name.startswith(f"{name}-")} if NETNS.is_dir() else set()


def command(*words: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/")


@pytest.fixture
def removed_after(lab_name: str) -> Iterator[str]:
    """The name of a lab that a command makes; taken away also when the test fails."""
    yield lab_name
    Ledger(lab_name).remove()


# ----------------------------------------------------------------------------------------------------- what it is made of


async def test_hosts_look_like_vagrant_boxes_and_reach_each_other_by_eth1(lab: Lab) -> None:
    eth0 = [await host.exec("ip", "-4", "-br", "addr", "show", "eth0") for host in lab.hosts]
    assert {line.split()[2] for line in eth0} == {"10.0.2.15/24"}
    assert "default via 10.0.2.2 dev eth0" in await lab.host(1).exec("ip", "route")
    assert (await lab.host(1).exec("cat", "/proc/sys/net/ipv4/ip_forward")).strip() == "1"
    for source, target in (("h1", "h2"), ("h3", "h1"), ("h2", "etcd")):
        assert (await lab.ping(source, target)).ok
    assert (await lab.host(2).exec("ip", "-br", "addr", "show", "eth1")).split()[2] == "192.168.50.12/24"


async def test_eth0_leads_outside_and_never_to_another_host(lab: Lab) -> None:
    assert (await lab.ping("h1", "203.0.113.1")).ok
    async with lab.pcap("nat2", "inside", "icmp") as capture:
        assert (await lab.ping("h1", "203.0.113.1")).ok
        assert (await lab.ping("h2", "203.0.113.1")).ok
    assert len(await capture.lines()) == 2  # h2's request and its answer, nothing of h1's


async def test_outside_sees_the_source_and_answers_only_what_is_masqueraded(lab: Lab) -> None:
    host = lab.host(1)
    await stand_in(lab, 1)
    await host.connect_containers()
    with host.outside_view() as outside:
        bare = asyncio.create_task(lab.ping("c1", "203.0.113.1", wait_s=0.5))
        assert await outside.source() == IPAddress("10.1.5.2")
        assert (await bare).received == 0
        chain = "chain c { type nat hook postrouting priority 100; oif eth0 masquerade; }"
        await host.exec("nft", "-f", "-", stdin=f"table ip t {{ {chain}; }}")
        masqueraded = asyncio.create_task(lab.ping("c1", "203.0.113.1"))
        assert await outside.source() == IPAddress("10.0.2.15")
        assert (await masqueraded).ok


@pytest.mark.topology(hosts=1, etcd=3)
async def test_etcd_of_three_members_serves_hosts(lab: Lab) -> None:
    assert len(lab.etcd.pids) == 3
    stored = lab.etcd.get("/coreos.com/network/config")
    assert stored is not None
    assert json.loads(stored) == {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}
    for url in lab.etcd.urls:
        port = url.rpartition(":")[2]
        await lab.host(1).exec("bash", "-c", f"exec 3<>/dev/tcp/192.168.50.5/{port}")


@pytest.mark.topology(hosts=2, segment6="fd00:50::/64", etcd=0)
async def test_a_segment_with_ipv6(lab: Lab) -> None:
    async def answered() -> bool:  # IPv6 begins on a wire when the kernel's link watch gets to it, within a second
        return (await lab.ping("h1", "fd00:50::c", wait_s=0.3)).ok

    await lab.until(answered)


@pytest.mark.topology(hosts=2, etcd=0)
async def test_a_pulled_cable_and_put_back(lab: Lab) -> None:
    await lab.host(2).unplug()
    assert not (await lab.ping("h1", "h2", wait_s=0.3)).ok
    await lab.host(2).plug()

    async def answered() -> bool:
        return (await lab.ping("h1", "h2", wait_s=0.3)).ok

    await lab.until(answered)


# ----------------------------------------------------------------------------------------------- agents and containers


async def stand_in(lab: Lab, host: int, *options: str) -> None:
    """Start the stand-in for an agent."""
    here = lab.host(host)
    await here.start_agent(f"--subnet-file={here.subnet_file}", *options, program=PROGRAM, within_s=10)


@pytest.mark.topology(hosts=2, containers=2, etcd=0)
async def test_containers_take_addresses_and_mtu_from_subnet_env(lab: Lab) -> None:
    with pytest.raises(LabError, match="no subnet yet"):
        await lab.host(1).connect_containers()
    await stand_in(lab, 1, "--subnet=10.1.5.1/24", "--mtu=1400")
    await stand_in(lab, 2, "--subnet=10.1.9.1/24", "--mtu=1450")
    await lab.connect_containers()
    assert [str(container.address) for container in lab.containers] == ["10.1.5.2", "10.1.5.3", "10.1.9.2", "10.1.9.3"]
    link = await lab.container("c1-2").exec("ip", "-o", "addr", "show", "eth0")
    assert "10.1.5.3/24" in link
    assert "mtu 1400" in await lab.container("c1-2").exec("ip", "link", "show", "eth0")
    assert "10.1.5.1/24" in await lab.host(1).exec("ip", "-o", "-4", "addr", "show", "docker0")
    assert "mtu 1450" in await lab.host(2).exec("ip", "link", "show", "docker0")
    # Routes by hand instead of an overlay, then every container reaches every other.
    await lab.host(1).exec("ip", "route", "add", "10.1.9.0/24", "via", "192.168.50.12")
    await lab.host(2).exec("ip", "route", "add", "10.1.5.0/24", "via", "192.168.50.11")
    results = await lab.matrix()
    assert len(results) == 12
    assert all(result.ok for result in results.values())
    # A changed subnet replaces the addresses.
    lab.host(1).subnet_file.write_text("FLANNEL_SUBNET=10.1.7.1/24\nFLANNEL_MTU=1300\n")
    await lab.host(1).connect_containers()
    assert "10.1.5" not in await lab.host(1).exec("ip", "addr")
    assert (await lab.ping("c1", "c1-2")).ok


@pytest.mark.topology(hosts=1, etcd=1)
async def test_an_agents_life(lab: Lab) -> None:
    host = lab.host(1)
    await stand_in(lab, 1)
    agent, first = host.agent, host.agent.pid
    assert agent.running
    assert agent.said["STATUS"] == "standing in"
    assert host.lease_key == "/coreos.com/network/subnets/10.1.5.0-24"
    await agent.restart()
    assert agent.pid != first
    assert start_time(first) == 0
    assert await agent.kill() == -signal.SIGKILL
    await agent.start()
    assert await agent.stop() == 0  # the stand-in ends by itself on SIGTERM
    assert not agent.running


@pytest.mark.topology(hosts=1, etcd=0)
async def test_an_agent_that_fails_or_says_nothing_is_told_with_its_log(lab: Lab) -> None:
    with pytest.raises(LabError, match="ended with 1 before it was ready: no such thing"):
        await stand_in(lab, 1, "--fail=no such thing")
    here = lab.host(1)
    with pytest.raises(TimedOutError, match=r"not ready after 0.5 s"):
        await here.start_agent(f"--subnet-file={here.subnet_file}", "--mute=1", program=PROGRAM, within_s=0.5)


@pytest.mark.topology(hosts=1, etcd=1)
async def test_the_agents_command_line_names_its_own_files(lab: Lab) -> None:
    words = lab.host(1).agent_words("--ip-masq=false")
    assert words[:3] == [sys.executable, "-m", "flannelpy"]
    assert "--iface=eth1" in words
    assert "--etcd-endpoints=http://192.168.50.5:2379" in words
    assert words[-2:] == ["--ip-masq", "--ip-masq=false"]
    assert all(str(lab.directory) in word for word in words if word.startswith(("--subnet-file", "--state-dir", "--run-dir")))


# ------------------------------------------------------------------------------------------------------------ observing


@pytest.mark.topology(hosts=2, etcd=0)
async def test_a_stream_of_pings_counts_what_is_lost(lab: Lab) -> None:
    async with lab.pinging("h1", "h2") as whole:
        await lab.until(lambda: whole.answers() >= 20)
    assert whole.lost == 0
    assert whole.sent >= 20
    async with lab.pinging("h1", "h2") as broken:
        await lab.host(2).exec("ip", "link", "set", "eth1", "down")
        await lab.until(lambda: broken.unanswered() >= 5)
    assert broken.lost >= 5
    assert broken.gaps[-1][1] == broken.sent
    with pytest.raises(LabError, match=r"no answer from 192\.168\.50\.12 within 0\.2 s"):
        async with lab.pinging("h1", "h2", first_answer_within_s=0.2):
            pass


@pytest.mark.topology(hosts=2, etcd=0)
async def test_a_capture_holds_every_packet_of_the_block(lab: Lab) -> None:
    async with lab.pcap("h2", "eth1", "icmp") as capture:
        await lab.ping("h1", "h2", count=3)
    lines = await capture.lines()
    assert sum("echo request" in line for line in lines) == 3
    assert sum("echo reply" in line for line in lines) == 3


@pytest.mark.topology(hosts=1, etcd=0)
async def test_a_failing_command_says_where_and_why(lab: Lab) -> None:
    with pytest.raises(LabError, match=rf'{lab.name}-h1: ip link show nix: exit 1: Device "nix" does not exist'):
        await lab.host(1).exec("ip", "link", "show", "nix")
    with pytest.raises(TimedOutError, match=r"did not end in 0\.2 s"):
        await lab.host(1).exec("sleep", "60", timeout_s=0.2)
    with pytest.raises(LabError, match="no container c9: expected one of c1"):
        lab.container("c9")


async def test_until_tells_what_it_saw_last() -> None:
    with pytest.raises(TimedOutError, match=r"waited 0\.05 s for a wonder; seen last: 0"):
        await until(lambda: 0, timeout_s=0.05, what="a wonder")


# ------------------------------------------------------------------------------------------------------ leaving nothing


@pytest.fixture
def foreign(request: pytest.FixtureRequest, lab_name: str) -> Iterator[str]:
    """A namespace of somebody else whose name starts like those of the lab."""
    name = f"{lab_name}-{request.param}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize("foreign", ["foreign"], indirect=True)
async def test_everything_is_removed_and_foreign_namespaces_stay(lab_name: str, foreign: str) -> None:
    pids: list[int] = []
    strays: list[asyncio.subprocess.Process] = []

    async def fail_inside() -> None:
        async with Lab.up(Topology(hosts=2), name=lab_name) as lab:
            await stand_in(lab, 1)
            # Started by hand inside a host; the lab knows nothing of it.
            stray = await asyncio.create_subprocess_exec(*lab.host(2).namespace.command("sleep", "600"))
            strays.append(stray)
            pids.extend((stray.pid, lab.host(1).agent.pid, *lab.etcd.pids.values()))
            assert len(namespaces(lab_name)) == 9
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_inside()
    assert namespaces(lab_name) == {foreign}
    assert not (ROOT / lab_name).exists()
    async with asyncio.timeout(30):  # it is our child: gone only once it was waited for
        assert await strays[0].wait() < 0
    assert [start_time(pid) for pid in pids] == [0, 0, 0]


@pytest.mark.parametrize("foreign", ["h2"], indirect=True)
async def test_a_namespace_of_somebody_else_is_not_taken(lab_name: str, foreign: str) -> None:
    with pytest.raises(LabError, match=f"namespace {foreign} exists and is not of this lab"):
        await Lab.build(Topology(hosts=2, etcd=0), name=lab_name)
    assert namespaces(lab_name) == {foreign}
    assert not (ROOT / lab_name).exists()


async def test_two_labs_stand_side_by_side(lab: Lab, lab_name: str) -> None:
    other = f"{lab_name}b"
    async with Lab.up(Topology(hosts=1), name=other) as second:
        assert second.etcd.urls == lab.etcd.urls  # the same addresses, in namespaces of their own
        second.etcd.put("/only/here", "1")
        assert lab.etcd.get("/only/here") is None
        with pytest.raises(LabError, match=f"a lab named {other} is there already"):
            await Lab.build(Topology(), name=other)
    assert namespaces(other) == set()
    assert (await lab.ping("h1", "h2")).ok


CRASHING = """
import asyncio, sys
from netns_lab.lab import Lab
from netns_lab.topology import Topology

async def main(name, program):
    async with Lab.up(Topology(hosts=2), name=name, program=program) as lab:
        await lab.start_agents()
        print(*(host.agent.pid for host in lab.hosts), *lab.etcd.pids.values(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main(sys.argv[1], sys.argv[2:]))
"""


def test_after_a_kill_processes_are_gone_and_down_removes_the_rest(removed_after: str) -> None:
    name = removed_after
    path = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'netns-lab'}:{REPOSITORY}"}
    words = [sys.executable, "-c", CRASHING, name, *PROGRAM]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=path) as crashing:
        try:
            assert crashing.stdout is not None
            pids = [int(word) for word in crashing.stdout.readline().split()]
            assert len(pids) == 3
            refused = command("down", "--name", name)
            assert refused.returncode == 1
            assert f"is held by process {crashing.pid}" in refused.stderr
        finally:
            crashing.kill()
    wait_for(lambda: all(start_time(pid) == 0 for pid in pids))
    assert len(namespaces(name)) == 8
    again = command("up", "--name", name)
    assert again.returncode == 1
    assert f"lab {name} was left unfinished; netns-lab/lab down --name {name} removes what is left of it" in again.stderr
    down = command("down", "--name", name)
    assert (down.returncode, down.stdout) == (0, f"lab {name} is down: 8 namespaces, 0 processes ended\n")
    assert namespaces(name) == set()
    assert not (ROOT / name).exists()


def test_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    ledger = Ledger("stale", tmp_path)
    ledger.claim({})
    with subprocess.Popen(["sleep", "600"]) as sleeping:
        try:
            pid, started, argv = sleeping.pid, start_time(sleeping.pid), ["sleep", "600"]
            another_start = {"kind": "process", "role": "x", "pid": pid, "start": started - 1, "argv": argv}
            another_command = {"kind": "process", "role": "x", "pid": pid, "start": started, "argv": ["etcd", "--name", "m0"]}
            with (ledger.directory / "made.jsonl").open("a") as journal:
                journal.write(f'{json.dumps(another_start)}\n{json.dumps(another_command)}\n{{"kind": "proc')
            assert ledger.remove().processes == 0
            assert sleeping.poll() is None
        finally:
            sleeping.kill()


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_from_up_to_down(removed_after: str) -> None:
    name = removed_after
    up = command("up", "--no-agents", "--hosts", "2", "--name", name)
    assert (up.returncode, up.stderr) == (0, "")
    assert f"next: netns-lab/lab status --name {name}; netns-lab/lab ping --name {name}; " in up.stdout
    assert up.stdout.startswith(f"lab {name} is up: 2 hosts, 2 containers, 1 etcd member, vxlan, no agents\n")
    twice = command("up", "--name", name)
    assert (twice.returncode, twice.stdout) == (1, "")
    assert "is up already; netns-lab/lab status shows it" in twice.stderr
    status = command("status", "--name", name).stdout
    assert "192.168.50.12" in status
    assert "not running" in status
    assert command("exec", "--name", name, "h1", "--", "cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
    assert command("exec", "--name", name, "h1", "false").returncode == 1
    # What an operator types on a host: the programs are found, and know whom to ask.
    asked = command("exec", "--name", name, "h1", "--", "flannelpy", "status")
    assert asked.stderr.startswith(f"flannelpy: {ROOT / name}/h1/run/agent.sock: there is no such socket")
    assert '"Network": "10.1.0.0/16"' in command("exec", "--name", name, "h1", "--", "flannelpy", "config", "get").stdout
    by_hand = command("exec", "--name", name, "h1", "--", "sh", "-c", "echo $FLANNELPY_IFACE $FLANNELPY_HOSTNAME").stdout
    assert by_hand == "eth1 h1\n", "what is typed there judges the host as its agent does"
    keys = command("exec", "--name", name, "etcd", "--", "etcdctl", "get", "--prefix", "--keys-only", "/coreos.com")
    assert keys.stdout.split() == ["/coreos.com/network/config"]
    assert command("ping", "--name", name, "h1", "h2").stdout.startswith("h1 to h2: 0.")
    nowhere = command("exec", "--name", name, "h7", "true")
    assert nowhere.returncode == 1
    assert nowhere.stderr.startswith(f"Error: no h7 in lab {name}: expected one of")
    assert Lab.attach(name).etcd.get("/coreos.com/network/config") is not None
    down = command("down", "--name", name)
    assert (down.returncode, down.stdout) == (0, f"lab {name} is down: 8 namespaces, 1 process ended\n")
    assert namespaces(name) == set()
    assert command("down", "--name", name).returncode == 0
    assert command("status", "--name", name).returncode == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--hosts", "0"], "hosts 0: expected a whole number, 1 to 200"),
        (["up", "--etcd", "2"], "etcd 2: expected 0, 1 or 3 members"),
        (["up", "--network", "10.0.0.0/8"], "network 10.0.0.0/8 overlaps 10.0.2.0/24"),
        (
            ["up", "--backend", "nonsense"],
            "backend 'nonsense': nobody provides it, expected one of alloc, extension, host-gw, ipip, ipsec, udp, vxlan, wireguard",
        ),
        (["up", "--topology", "nix"], "topology 'nix' is not there: expected a .toml file or one of"),
        (["up", "--name", "../x"], "name '../x': expected a small letter"),
        (["ping", "h1"], "ping takes two names"),
    ],
)
def test_a_wrong_command_line_is_exit_2_and_one_line(words: list[str], said: str) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_an_interrupted_up_removes_what_it_made(removed_after: str) -> None:
    name = removed_after
    words = [str(COMMAND), "up", "--no-agents", "--hosts", "30", "--name", name]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as going_up:
        wait_for(lambda: len(namespaces(name)) > 3)
        going_up.send_signal(signal.SIGINT)
        _, said = going_up.communicate(timeout=20)
    assert (going_up.returncode, said) == (130, "interrupted; what was made is removed\n")
    assert namespaces(name) == set()
    assert not (ROOT / name).exists()


def wait_for(fact: Callable[[], bool], within_s: float = 10) -> None:
    """Poll a fact in a test without a loop."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.005)
