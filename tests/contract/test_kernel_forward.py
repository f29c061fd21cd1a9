"""The contract of a kernel whose host has a firewall of its own: rules of ours in iptables' FORWARD chains, and what is in the way.

On the real one, by iptables-nft and by iptables-legacy, in a namespace of its own; an operator's commands see and take them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

import pytest
import uvloop
from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.filter_match import Packet
from flannelpy.core.forward_accept import ForwardAccept, Tool
from flannelpy.core.forwarding import Hindrance, forward_rules
from flannelpy.core.objects import HostState, Key, Scope
from flannelpy.core.packet_filter import Hook, Ruleset, judge
from flannelpy.core.plan import plan
from flannelpy.kernel import Kernel, forward
from flannelpy.kernel.fake import FakeKernel
from flannelpy.kernel.forward import Forward
from flannelpy.kernel.netlink import NetlinkKernel
from flannelpy.kernel.nft import Nft

from .kernel_support import NETWORK, NETWORK6, fresh_namespace, ip, real_only, shell

SCOPE = Scope(table="flannelpy")
FORWARD = Key("forward", "")
BOTH = (NETWORK, NETWORK6)


class Firewall(Protocol):
    """A host whose iptables is ``tool``, and the hands of its operator."""

    tool: Tool
    kernel: Kernel

    def drop(self, version: int) -> None: ...
    def run_docker(self) -> None: ...
    def flush(self, version: int) -> None: ...


class FakeFirewall:
    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.kernel = self.fake = FakeKernel()

    def drop(self, version: int) -> None:
        self._add(Hindrance(version, "filter", "FORWARD", "policy drop", self.tool))

    def run_docker(self) -> None:
        self._add(Hindrance(4, "filter", "FORWARD", "", self.tool, docker=True))

    def flush(self, version: int) -> None:
        self.fake.flush_forward()

    def _add(self, one: Hindrance) -> None:
        self.fake.firewall = (*self.fake.firewall, one)


class RealFirewall:
    """Made inside the namespace it stands for."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.kernel: Kernel = NetlinkKernel()

    def iptables(self, words: str, version: int = 4) -> str:
        return shell(f"{'iptables' if version == 4 else 'ip6tables'}-{self.tool} {words}")

    def drop(self, version: int) -> None:
        self.iptables("-P FORWARD DROP", version)

    def run_docker(self) -> None:
        for words in ("-N DOCKER-USER", "-I FORWARD -j DOCKER-USER", "-A FORWARD -o docker0 ! -i docker0 -j DROP"):
            self.iptables(words)

    def flush(self, version: int) -> None:
        self.iptables("-F FORWARD", version)


def legacy_missing() -> str:
    """Why there is no iptables-legacy here; empty where there is."""
    with fresh_namespace():
        tried = subprocess.run(["iptables-legacy", "-S", "FORWARD"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


@pytest.fixture(
    params=["fake-nft", "fake-legacy", pytest.param("real-nft", marks=real_only), pytest.param("real-legacy", marks=real_only)]
)
def firewall(request: pytest.FixtureRequest) -> Iterator[Firewall]:
    kind, tool = request.param.split("-")
    if kind == "fake":
        yield FakeFirewall(tool)
        return
    if tool == "legacy" and (why := legacy_missing()):
        pytest.skip(why)
    yield from real_firewall(tool)


def real_firewall(tool: Tool) -> Iterator[RealFirewall]:
    with fresh_namespace():
        found = RealFirewall(tool)
        yield found
        uvloop.run(found.kernel.close())


async def wanted(kernel: Kernel, *networks: IPNetwork, owner: str = "flannelpy") -> HostState:
    rules, _words = forward_rules(await kernel.hindrances(), networks or BOTH, owner)
    return rules


async def reach(kernel: Kernel, desired: HostState) -> None:
    results = await kernel.apply(plan(desired, await kernel.observe(SCOPE, [FORWARD]), SCOPE))
    assert [str(one.error) for one in results if one.error] == []
    assert (await kernel.observe(SCOPE, [FORWARD])).objects == desired.objects


def run(test: object) -> None:
    """On uvloop, as the agent; in the thread that is in the namespace."""
    uvloop.run(test)  # type: ignore[arg-type]


def test_a_host_that_forwards_has_nothing_in_the_way(firewall: Firewall) -> None:
    async def test() -> None:
        assert tuple(await firewall.kernel.hindrances()) == ()
        assert len(await firewall.kernel.observe(SCOPE)) == 0

    run(test())


def test_where_forward_drops_rules_of_ours_come_stay_and_go(firewall: Firewall) -> None:
    firewall.drop(4)
    firewall.drop(6)

    async def test() -> None:
        desired = await wanted(firewall.kernel)
        assert len(desired) == 4
        await reach(firewall.kernel, desired)
        assert await wanted(firewall.kernel) == desired, "what is ours is in nobody's way, and does not hide what is"
        await reach(firewall.kernel, HostState())

    run(test())


def test_another_network_takes_the_place_of_the_old_one(firewall: Firewall) -> None:
    firewall.drop(4)

    async def test() -> None:
        await reach(firewall.kernel, await wanted(firewall.kernel, NETWORK))
        await reach(firewall.kernel, await wanted(firewall.kernel, IPNetwork("10.6.0.0/20")))

    run(test())


def test_what_is_flushed_is_seen_at_the_next_look_and_comes_back(firewall: Firewall) -> None:
    firewall.drop(4)

    async def test() -> None:
        desired = await wanted(firewall.kernel, NETWORK)
        await reach(firewall.kernel, desired)
        firewall.flush(4)
        assert len(await firewall.kernel.observe(SCOPE, list(desired.objects))) == 0
        await reach(firewall.kernel, desired)

    run(test())


def test_dockers_chain_is_used_where_docker_runs(firewall: Firewall) -> None:
    firewall.run_docker()

    async def test() -> None:
        desired = await wanted(firewall.kernel, NETWORK)
        assert [(rule.chain, rule.not_in) for rule in desired if isinstance(rule, ForwardAccept)] == [("DOCKER-USER", "docker0")]
        await reach(firewall.kernel, desired)

    run(test())


def test_agents_of_several_networks_know_their_own(firewall: Firewall) -> None:
    firewall.drop(4)

    async def test() -> None:
        kernel = firewall.kernel
        ours, theirs = await wanted(kernel, NETWORK), await wanted(kernel, NETWORK, owner="flannelpy-blue")
        await reach(kernel, ours)
        assert [one.error for one in await kernel.apply(plan(theirs, HostState()))] == [None, None]
        await reach(kernel, HostState())
        other = Scope(table="flannelpy-blue")
        assert (await kernel.observe(other, [FORWARD])).objects == theirs.objects

    run(test())


def test_no_such_chain_is_said(firewall: Firewall) -> None:
    firewall.drop(4)
    rule = ForwardAccept(firewall.tool, "DOCKER-USER", "flannelpy", NETWORK, NETWORK)

    async def test() -> None:
        results = await firewall.kernel.apply(plan(HostState.of(rule), HostState()))
        assert results[0].error is not None
        results = await firewall.kernel.apply(plan(HostState(), HostState.of(rule)))
        assert [one.error for one in results] == [None], "what is not there is gone"

    run(test())


# ------------------------------------------------------------------------------------------------------ the real one alone


@pytest.fixture
def real() -> Iterator[RealFirewall]:
    yield from real_firewall("nft")


@real_only
def test_an_operator_sees_them_and_rules_of_others_stay(real: RealFirewall) -> None:
    real.drop(4)
    real.iptables("-A FORWARD -s 192.0.2.0/24 -j ACCEPT")
    real.iptables("-A FORWARD -s 10.5.0.0/16 -m comment --comment theirs -j ACCEPT")
    before = real.iptables("-S FORWARD")

    async def test() -> None:
        await reach(real.kernel, await wanted(real.kernel, NETWORK, IPNetwork("10.64.0.0/12")))
        assert real.iptables("-S FORWARD").splitlines()[1:5] == [
            "-A FORWARD -d 10.64.0.0/12 -m comment --comment flannelpy -j ACCEPT",
            "-A FORWARD -s 10.64.0.0/12 -m comment --comment flannelpy -j ACCEPT",
            "-A FORWARD -d 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT",
            "-A FORWARD -s 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT",
        ]
        real.iptables("-D FORWARD -s 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT")
        assert len(await real.kernel.observe(SCOPE, [FORWARD])) == 3
        await reach(real.kernel, HostState())
        assert real.iptables("-S FORWARD") == before

    run(test())


@real_only
def test_one_that_is_there_twice_goes_whole(real: RealFirewall) -> None:
    real.drop(4)

    async def test() -> None:
        desired = await wanted(real.kernel, NETWORK)
        for _ in range(2):
            await real.kernel.apply(plan(desired, HostState()))
        assert real.iptables("-S FORWARD").count("flannelpy") == 4
        await reach(real.kernel, HostState())

    run(test())


@real_only
@pytest.mark.parametrize("tool", ["nft", "legacy"])
def test_what_has_our_comment_and_another_form_goes_and_never_becomes_many(tool: Tool) -> None:
    if tool == "legacy" and (why := legacy_missing()):
        pytest.skip(why)
    for real in real_firewall(tool):
        real.drop(4)
        if tool == "nft":
            shell("nft -f -", 'insert rule ip filter FORWARD ip saddr 10.5.0.0/16 meta mark 7 counter accept comment "flannelpy"')
        else:
            real.iptables("-I FORWARD -s 10.5.0.0/16 -m mark --mark 7 -m comment --comment flannelpy -j ACCEPT")
        uvloop.run(_lets_through(real.kernel))
        assert real.iptables("-S FORWARD").count("flannelpy") == 2


@real_only
def test_where_rules_cannot_be_listed_they_are_put_there_once(real: RealFirewall, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of others may hold what an old nft does not know."""
    real.drop(4)
    desired = uvloop.run(wanted(real.kernel, NETWORK))
    ask = Nft.ask

    async def blind(nft: Nft, commands: str, *, handles: bool = False) -> str:
        if handles:
            raise KernelError("unknown expression", 0)
        return await ask(nft, commands, handles=handles)

    run(reach(real.kernel, desired))
    monkeypatch.setattr(Nft, "ask", blind)
    run(reach(real.kernel, desired))
    assert real.iptables("-S FORWARD").count("flannelpy") == 2


@real_only
@pytest.mark.parametrize(
    "words",
    ["-A FORWARD -j REJECT", "-A FORWARD -j DROP", "-N LOGDROP; -A LOGDROP -j LOG; -A LOGDROP -j DROP; -A FORWARD -j LOGDROP"],
)
def test_a_last_rule_that_drops_is_as_good_as_a_policy(real: RealFirewall, words: str) -> None:
    real.iptables("-A FORWARD -m conntrack --ctstate INVALID -j DROP")
    assert not uvloop.run(real.kernel.hindrances())
    for line in words.split("; "):
        real.iptables(line)
    run(_lets_through(real.kernel))


async def _lets_through(kernel: Kernel) -> None:
    desired = await wanted(kernel, NETWORK)
    assert len(desired) == 2
    await reach(kernel, desired)


FOREIGN = "add table inet filter; add chain inet filter forward {{ type filter hook forward priority 0; policy {policy}; }}"


@real_only
def test_a_table_of_somebody_else_is_said_until_it_has_rules_for_us(real: RealFirewall) -> None:
    shell("nft -f -", FOREIGN.format(policy="drop"))

    async def test() -> None:
        rules, words = forward_rules(await real.kernel.hindrances(), [NETWORK], "flannelpy")
        assert len(rules) == 0
        (said,) = words.values()
        assert said.startswith("chain forward of nft table inet filter (policy drop) has no rule for 10.5.0.0/16: nft insert rule")
        shell(said.partition(": ")[2])
        assert forward_rules(await real.kernel.hindrances(), [NETWORK], "flannelpy")[1] == {}

    run(test())


@real_only
@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ("reject with icmpx admin-prohibited", "it ends in: reject with icmpx admin-prohibited"),
        ("counter drop", "it ends in: counter drop"),
        ("ip saddr 10.5.0.0/16 drop; add rule inet filter forward drop", "it ends in: drop"),
        ("ct state invalid drop", ""),
        ('iifname "flannel.1" accept; add rule inet filter forward drop', ""),
        ('iifname "docker0" accept; add rule inet filter forward drop', ""),
        ('iifname != "eth0" accept; add rule inet filter forward drop', ""),
        ("meta mark 0x10 accept; add rule inet filter forward drop", ""),
        ('iifname "eth0" accept; add rule inet filter forward drop', "it ends in: drop"),
        ('iifname != "eth0" drop; add rule inet filter forward drop', "it ends in: drop"),
        ("ip saddr { 10.0.0.0/8, 192.0.2.0/24 } accept; add rule inet filter forward drop", ""),
    ],
)
def test_what_a_foreign_chain_comes_to(real: RealFirewall, rules: str, why: str) -> None:
    shell("nft -f -", f"{FOREIGN.format(policy='accept')}; add rule inet filter forward {rules}")

    async def test() -> None:
        words = "; ".join(forward_rules(await real.kernel.hindrances(), [NETWORK], "flannelpy")[1].values())
        assert (f"({why})" in words) if why else words == ""

    run(test())


@real_only
@real_only
@pytest.mark.parametrize(("mode", "used"), [(0o600, False), (0o644, True), (None, False)])
def test_who_is_not_root_sees_by_the_lock_that_the_old_tables_are_in_use(tmp_path: Path, mode: int | None, used: bool) -> None:
    if mode is not None:
        (tmp_path / "lock").touch()
        (tmp_path / "lock").chmod(mode)
    tmp_path.chmod(0o755)
    told = os.pipe()
    child = os.fork()
    if child == 0:  # this very interpreter: another one might not be there for everybody
        os.chdir(tmp_path)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        forward.XTABLES_LOCK = Path("lock")
        os.write(told[1], repr([forward.in_use(version) for version in (4, 6)]).encode())
        os._exit(0)
    os.close(told[1])
    with os.fdopen(told[0]) as answer:
        assert answer.read() == repr([used, used])
    os.waitpid(child, 0)


def test_where_the_old_tables_are_not_in_use_nobody_brings_them_there(real: RealFirewall) -> None:
    async def test() -> None:
        await real.kernel.hindrances()
        await real.kernel.observe(SCOPE)

    run(test())
    names = Path("/proc/thread-self/net/ip_tables_names")
    assert not names.exists() or names.read_text() == ""


@real_only
def test_without_netfilter_there_is_nothing_in_the_way() -> None:
    """Neither nft as a library nor as a command."""
    from flannelpy.kernel.forward import Forward

    async def test() -> None:
        forward = Forward(Nft(library=None, command=None))
        assert (await forward.hindrances(), await forward.observe("flannelpy")) == ((), [])

    with fresh_namespace():
        run(test())


@real_only
def test_ten_thousand_rules_of_others_do_not_stop_the_loop(real: RealFirewall) -> None:
    """A listing that was long is asked for in a thread from then on: others on the loop get their turns."""
    chains = "".join(f"-N SVC-{number}\n-A SVC-{number} -s 192.0.2.1/32 -j ACCEPT\n" for number in range(5000))
    shell("iptables-nft-restore --noflush", f"*filter\n{chains}COMMIT\n")
    real.drop(4)

    async def test() -> None:
        await reach(real.kernel, await wanted(real.kernel, NETWORK))
        turns, looking = 0, asyncio.create_task(real.kernel.hindrances())  # type: ignore[arg-type]
        while not looking.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 5
        assert [one.why for one in looking.result()] == ["policy drop"]

    run(test())


@real_only
@pytest.mark.parametrize("tool", ["nft", "legacy"])
def test_packets_pass(tool: Tool) -> None:
    """
    10.5.1.2 ---- eth1 10.5.1.1 [ host ] 10.5.2.1 eth2 ---- 10.5.2.2         the host's FORWARD drops
    """
    if tool == "legacy" and (why := legacy_missing()):
        pytest.skip(why)
    sides = {"eth1": 1, "eth2": 2}
    with fresh_namespace():
        holders = {}
        try:
            for side, number in sides.items():
                holders[side] = subprocess.Popen(["unshare", "-n", "sleep", "120"])
                _until_apart(holders[side].pid)
                ip(
                    f"link add {side} type veth peer name eth0 netns {holders[side].pid}",
                    f"link set {side} up",
                    f"addr add 10.5.{number}.1/24 dev {side}",
                )
                inside = f"nsenter -n -t {holders[side].pid} ip"
                shell(f"{inside} addr add 10.5.{number}.2/24 dev eth0 && {inside} link set eth0 up")
                shell(f"{inside} route add default via 10.5.{number}.1")
            Path("/proc/thread-self/root/proc/sys/net/ipv4/ip_forward").write_text("1")
            ping = ["nsenter", "-n", "-t", str(holders["eth1"].pid), "ping", "-c1", "-W1", "10.5.2.2"]
            firewall = RealFirewall(tool)
            firewall.drop(4)
            assert subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 1
            uvloop.run(_lets_through(firewall.kernel))
            assert subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 0
            uvloop.run(reach(firewall.kernel, HostState()))
            assert subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 1
            uvloop.run(firewall.kernel.close())
        finally:
            for holder in holders.values():
                holder.kill()
                holder.wait()


def _until_apart(pid: int) -> None:
    """Return when the process is in a namespace of its own."""
    ours = Path("/proc/thread-self/ns/net").readlink()
    for _ in range(100_000):
        if Path(f"/proc/{pid}/ns/net").readlink() != ours:
            return
    raise AssertionError("unshare did not begin")


def test_an_error_names_what_is_missing() -> None:
    rule = ForwardAccept("nft", "DOCKER-USER", "flannelpy", NETWORK, NETWORK)
    results = uvloop.run(FakeKernel().apply(plan(HostState.of(rule), HostState())))
    assert [one.error.code if one.error else 0 for one in results] == [errno.ENOENT]


@real_only
def test_every_rule_is_listed_and_judges_a_packet(real: RealFirewall) -> None:
    """By iptables-nft: what its commands drop is dropped in our words, too, and a set is told with its elements."""
    out = Packet(IPAddress("10.5.7.2"), IPAddress("10.5.9.2"), "docker0", "flannel.1")

    async def test() -> None:
        assert not judge(await real.kernel.filter_rules(), "forward", out).dropped
        shell("nft 'add table inet t; add set inet t who { type ipv4_addr; flags interval; elements = { 10.5.9.0/24 }; }'")
        shell("nft 'add chain inet t c { type filter hook forward priority 5; }; add rule inet t c ip daddr @who drop'")
        ruling = judge(await real.kernel.filter_rules(), "forward", out)
        assert "chain c of nft table inet t" in ruling.dropped
        shell(ruling.remedy)
        assert not judge(await real.kernel.filter_rules(), "forward", out).dropped

    run(test())


@real_only
def test_tables_of_others_are_listed_where_they_filter_each_with_all_that_it_holds(real: RealFirewall) -> None:
    """By another process; of iptables-nft's and nft's own tables each is there, however many there are."""
    out = Packet(IPAddress("10.5.7.2"), IPAddress("10.5.9.2"), "docker0", "flannel.1")

    async def test() -> None:
        assert await real.kernel.foreign_rules() == Ruleset()
        states = [await real.kernel.firewall_state()]
        for command, dropped in (
            (
                "nft 'add table inet flannelpy; add chain inet flannelpy c { type filter hook forward priority 0; policy drop; }'",
                "",
            ),
            (
                "nft 'add table ip nat; add chain ip nat p { type nat hook output priority -100; }; add rule ip nat p accept'",
                "",
            ),
            ("nft 'add table inet t; add chain inet t c { type filter hook forward priority 5; }'", ""),
            ("iptables-nft -A FORWARD -s 10.5.7.0/24 -j DROP", "table ip filter"),
            ("iptables-nft -F FORWARD", ""),
            ("ip6tables-nft -A FORWARD -j DROP", ""),
            (
                "nft 'add set inet t w { type ipv4_addr; elements = { 10.5.9.2 }; }; add rule inet t c ip daddr @w drop'",
                "inet t ",
            ),
            ("nft delete element inet t w '{ 10.5.9.2 }'", ""),
        ):
            assert await real.kernel.firewall_state() == states[-1], "nothing has changed"
            shell(command)
            states.append(await real.kernel.firewall_state())
            assert states[-1] not in states[:-1], command
            rules = await real.kernel.foreign_rules()
            assert not any(table.startswith("flannelpy") or table == "nat" for _family, table, _chain in rules.chains)
            found = judge(rules, "forward", out).dropped
            assert (dropped in found) if dropped else found == "", command

    run(test())


@real_only
def test_without_the_command_the_library_lists_tables_of_others(real: RealFirewall) -> None:
    async def test() -> None:
        shell("nft 'add table inet t; add chain inet t c { type filter hook forward priority 5; }; add rule inet t c drop'")
        shell("iptables-nft -A FORWARD -j ACCEPT")
        alone = Nft(command=None)
        there = await Forward(alone).foreign_rules()
        assert there == await real.kernel.foreign_rules()
        assert len(there.bases) == 2
        alone.close()

    run(test())


@real_only
def test_the_firewall_of_iptables_legacy_has_a_state_too() -> None:
    if missing := legacy_missing():
        pytest.skip(missing)

    async def test(real: RealFirewall) -> None:
        states = [await real.kernel.firewall_state()]
        for words in ("-A INPUT -p udp --dport 8472 -j DROP", "-D INPUT 1", "-A INPUT -p udp --dport 8473 -j DROP"):
            real.iptables(words)
            states.append(await real.kernel.firewall_state())
            assert await real.kernel.firewall_state() == states[-1] != states[-2]
        arrives = Packet(IPAddress("192.0.2.9"), IPAddress("192.0.2.7"), "eth1", "", 17, 8473)
        ruling = judge(await real.kernel.foreign_rules(), "input", arrives)
        assert ruling.dropped == "rule 1 of chain INPUT of iptables-legacy"
        shell(ruling.remedy)
        assert not judge(await real.kernel.foreign_rules(), "input", arrives).dropped

    for made in real_firewall("legacy"):
        run(test(made))


@real_only
@pytest.mark.parametrize("tool", ["nft", "legacy"])
@pytest.mark.parametrize(
    ("table", "chain"), [("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "FORWARD"), ("mangle", "POSTROUTING")]
)
def test_what_iptables_other_tables_drop_is_seen_and_mended(tool: Tool, table: str, chain: str) -> None:
    if tool == "legacy" and (missing := legacy_missing()):
        pytest.skip(missing)
    device, hook = {"POSTROUTING": "-o flannel.1"}.get(chain, "-i docker0"), cast(Hook, chain.lower())

    async def test(real: RealFirewall) -> None:
        out = Packet(IPAddress("10.5.7.2"), IPAddress("10.5.9.2"), "docker0", "" if hook == "prerouting" else "flannel.1")
        before = await real.kernel.firewall_state()
        shell(f"iptables-{tool} -t {table} -A {chain} {device} -j DROP")
        assert await real.kernel.firewall_state() != before
        ruling = judge(await real.kernel.foreign_rules(), hook, out)
        assert ruling == judge(await real.kernel.filter_rules(), hook, out)
        assert table in ruling.dropped
        shell(ruling.remedy)
        assert not judge(await real.kernel.foreign_rules(), hook, out).dropped

    for made in real_firewall(tool):
        run(test(made))


@real_only
@pytest.mark.parametrize("tool", ["nft", "legacy"])
def test_what_iptables_drops_is_dropped(tool: Tool) -> None:
    if tool == "legacy" and (missing := legacy_missing()):
        pytest.skip(missing)
    words = f"iptables-{tool}"

    async def test(real: RealFirewall) -> None:
        out = Packet(IPAddress("10.5.7.2"), IPAddress("10.5.9.2"), "docker0", "flannel.1")
        back = Packet(out.destination, out.source, "flannel.1", "docker0", states=frozenset({"established"}))
        shell(f"{words} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
        shell(f"{words} -A FORWARD ! -s 10.5.8.0/24 -i docker+ -p icmp -m comment --comment x -j REJECT")
        rules = await real.kernel.filter_rules()
        assert judge(rules, "forward", out).dropped
        assert not judge(rules, "forward", back).dropped
        shell(f"{words} -F FORWARD; {words} -P FORWARD DROP")
        rules = await real.kernel.filter_rules()
        assert "policy drop" in judge(rules, "forward", out).dropped
        assert judge(rules, "forward", back).dropped

    for made in real_firewall(tool):
        run(test(made))
