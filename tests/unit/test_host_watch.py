"""Does a running agent say what of its host cuts containers off, and that it is so no longer? In memory."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent import host_watch
from flannelpy.agent.sync import kernel_errors
from flannelpy.core import conditions
from flannelpy.core.lookup import Found
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.core.tally import about
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.host import ports
from flannelpy.registry.memory import MemoryStore

from .agents import VXLAN, HostInMemory, until, vxlan_value
from .virtual_time import run

PEER, PEERS = "10.5.9.0-24", 40


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    monkeypatch.setattr(host_watch, "LOOK_S", 0.01)
    for code, condition in list(conditions.CONDITIONS.items()):
        object.__setattr__(condition, "after", 0.0) if code in host_watch.CODES else None
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    made.put_peer(PEER, vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    return made


@pytest.fixture(autouse=True)
def restored() -> object:
    before = {code: condition.after for code, condition in conditions.CONDITIONS.items()}
    yield
    for code, after in before.items():
        object.__setattr__(conditions.CONDITIONS[code], "after", after)


def docker0(net: str, mtu: int = 1450) -> Interface:
    return Interface("docker0", 9, mtu, True, (InterfaceAddress(IPNetwork(net).ip, IPNetwork(net).prefixlen),))


def own(host: HostInMemory) -> str:
    """The address of this host's bridge, as Docker would take it."""
    return f"{IPNetwork(host.lease.replace('-', '/'))[1]}/24"


def told(host: HostInMemory, code: str) -> str:
    """What the condition says, whatever its subject; empty where it does not hold."""
    return "; ".join(text for key, text in host.conditions().items() if key.split()[0] == code)


Act = Callable[[HostInMemory], None]


def sysctl(name: str, value: str) -> Act:
    return lambda host: host.kernel.sysctls.__setitem__(name, value)


def detour(net: str, found: Found) -> tuple[Act, Act]:
    """A route by other hands that a look-up tells of, and its end; the kernel tells of both."""

    def there(host: HostInMemory) -> None:
        host.kernel.detours[IPNetwork(net)] = found
        host.kernel.overflow()

    def gone(host: HostInMemory) -> None:
        del host.kernel.detours[IPNetwork(net)]
        host.kernel.overflow()

    return there, gone


def other(net: str, table: int = 254, dev: str = "eth1") -> Found:
    return Found(dev, IPAddress("192.0.2.254"), IPNetwork(net), table)


def strict_and_astray(host: HostInMemory) -> None:
    host.kernel.sysctls["net/ipv4/conf/flannel.1/rp_filter"] = "1"
    detour("10.5.9.0/25", other("10.5.9.0/25"))[0](host)


def loose(host: HostInMemory) -> None:
    host.kernel.sysctls["net/ipv4/conf/flannel.1/rp_filter"] = "2"
    detour("10.5.9.0/25", other("10.5.9.0/25"))[1](host)


FAULTS: dict[str, tuple[str, str, Act, Act]] = {
    "ip_forward": (
        "forwarding-off",
        "sysctl -w net.ipv4.ip_forward=1",
        sysctl("net/ipv4/ip_forward", "0"),
        sysctl("net/ipv4/ip_forward", "1"),
    ),
    "forwarding of the device": (
        "forwarding-off",
        "sysctl -w net.ipv4.conf.flannel/1.forwarding=1",
        sysctl("net/ipv4/conf/flannel.1/forwarding", "0"),
        sysctl("net/ipv4/conf/flannel.1/forwarding", "1"),
    ),
    "longer route, first half": ("route-astray", "ip route del 10.5.9.0/25", *detour("10.5.9.0/25", other("10.5.9.0/25"))),
    "longer route, second half": ("route-astray", "ip route del 10.5.9.128/25", *detour("10.5.9.128/25", other("10.5.9.128/25"))),
    "longer route with several hops": (
        "route-astray",
        "ip route del 10.5.9.0/25",
        *detour("10.5.9.0/25", Found("", None, IPNetwork("10.5.9.0/25"), hops=(("eth1", IPAddress("192.0.2.254")),) * 2)),
    ),
    "policy rule": ("route-astray", "lookup 100", *detour("10.5.0.0/17", other("10.5.0.0/16", 100))),
    "unreachable": ("route-astray", "go nowhere", *detour("10.5.9.0/26", Found(code=errno.EHOSTUNREACH))),
    "PublicIP by another link": (
        "route-astray",
        "not by the uplink eth1",
        *detour("192.0.2.9/32", other("192.0.2.9/32", dev="eth0")),
    ),
    "PublicIP by a default route": (
        "route-astray",
        "not by the uplink eth1: ip route add 192.0.2.9 via GATEWAY dev eth1; where eth0 is the way: --iface=eth0",
        *detour("192.0.2.9/32", other("0.0.0.0/0", dev="eth0")),
    ),
    "PublicIP by the overlay": ("route-astray", "dev flannel.1", *detour("192.0.2.9/32", other("192.0.2.9/32", dev="flannel.1"))),
    "no way to PublicIP": ("route-astray", "no way to 192.0.2.9", *detour("192.0.2.9/32", Found(code=errno.ENETUNREACH))),
    "PublicIP into a black hole": ("route-astray", "no way to 192.0.2.9", *detour("192.0.2.9/32", Found(code=errno.EINVAL))),
    "rp_filter": ("reverse-path-filter", "sysctl -w net.ipv4.conf.flannel/1.rp_filter=2", strict_and_astray, loose),
    "docker0 of another host": (
        "bridge-stale",
        "docker0 has 10.5.8.1/24",
        lambda host: host.kernel.set_interface(docker0("10.5.8.1/24")),
        lambda host: host.kernel.set_interface(docker0(own(host))),
    ),
    "docker0 outside": (
        "bridge-elsewhere",
        "docker0 has 172.17.0.1/16",
        lambda host: host.kernel.set_interface(docker0("172.17.0.1/16")),
        lambda host: host.kernel.set_interface(docker0(own(host))),
    ),
    "docker0 switched off": (
        "bridge-down",
        "ip link set docker0 up",
        lambda host: host.kernel.set_interface(replace(docker0(own(host)), up=False, running=False)),
        lambda host: host.kernel.set_interface(docker0(own(host))),
    ),
    "forwarding of docker0": (
        "forwarding-off",
        "sysctl -w net.ipv4.conf.docker0.forwarding=1",
        lambda host: (
            host.kernel.set_interface(docker0(own(host))),
            sysctl("net/ipv4/conf/docker0/forwarding", "0")(host),
        ),
        sysctl("net/ipv4/conf/docker0/forwarding", "1"),
    ),
    "docker0's MTU": (
        "bridge-mtu",
        "ip link set docker0 mtu 1450",
        lambda host: host.kernel.set_interface(docker0(own(host), 1500)),
        lambda host: host.kernel.set_interface(docker0(own(host))),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_host_is_told_while_it_holds(host: HostInMemory, name: str) -> None:
    code, words, inject, mend = FAULTS[name]
    async with host.run():
        await until(lambda: host.kernel.calls["settings"] > 1 and host.conditions() == {})
        for _ in range(2):
            inject(host)
            await until(lambda: told(host, code))
            assert words in told(host, code)
            mend(host)
            await until(lambda: not told(host, code))
        await until(lambda: host.conditions() == {} and host.ready)


@pytest.mark.parametrize("length", [16, 20])
async def test_a_bridge_that_is_wider_than_our_subnet_is_told_and_nothing_else_is(host: HostInMemory, length: int) -> None:
    """As with Docker's bip copied from Network. To give the lease up, as before, was no help."""
    async with host.run():
        host.kernel.set_interface(docker0(own(host).replace("/24", f"/{length}")))
        await until(lambda: told(host, "bridge-stale"))
        assert "flannelpy docker-opts, then systemctl restart docker" in told(host, "bridge-stale")
        assert list(host.conditions()) == ["bridge-stale docker0"]
        assert host.ready


async def test_one_cause_is_one_condition_however_many_peers_it_concerns(host: HostInMemory) -> None:
    for number in range(10, 10 + PEERS):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:01:{number:02x}"))
    inject, mend = detour("10.5.0.0/17", other("10.5.0.0/16", 100))
    async with host.run():
        inject(host)
        await until(lambda: f"(and {about(PEERS)} more peers)" in told(host, "route-astray"))
        mend(host)
        await until(lambda: host.conditions() == {})


async def test_however_many_peers_it_concerns_it_is_told_a_few_times(host: HostInMemory) -> None:
    """They are looked at one after the other, and each look knows of more."""
    for number in range(2, 252):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:01:{number:02x}"))
    texts: list[str] = []
    async with host.run():
        await until(lambda: host.holds("route 10.5.251.0/24 via 10.5.251.0 dev flannel.1 onlink"))
        assert host.agent is not None
        host.agent._context.reporter.listeners.append(
            lambda news: texts.extend(each.active.detail for each in news if each.active.condition.code == "route-astray")
        )
        inject, _mend = detour("10.5.0.0/16", other("10.5.0.0/16", 100))
        inject(host)
        await until(lambda: "over 199 more peers" in told(host, "route-astray"))
    assert 0 < len(texts) <= 12


@pytest.mark.parametrize(
    ("number", "text"),
    [(9, "9"), (10, "over 9"), (19, "over 9"), (20, "over 19"), (99, "over 49"), (100, "over 99"), (9_999, "over 4,999")],
)
def test_a_number_that_grows_is_told_in_steps(number: int, text: str) -> None:
    assert about(number) == text


async def test_a_policy_rule_is_named_and_asked_for_a_few_times_only(host: HostInMemory) -> None:
    for number in range(10, 10 + PEERS):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:01:{number:02x}"))
    inject, mend = detour("10.5.0.0/17", other("10.5.0.0/16", 100))
    async with host.run():
        rule = PolicyRule(4, 50, table=100, destination=IPNetwork("10.5.0.0/17"))
        host.kernel.policy_rules.append(rule)
        looks = host.kernel.calls["settings"]
        inject(host)
        await until(lambda: f"ip rule del {rule} (and {about(PEERS)} more peers)" in told(host, "route-astray"))
        await until(lambda: host.kernel.calls["settings"] >= looks + 10)
        turns = host.kernel.calls["settings"] - looks + 1
        assert 0 < host.kernel.calls["policy_rule"] <= turns * host_watch.RULES
        mend(host)
        await until(lambda: host.conditions() == {})
        asked = host.kernel.calls["policy_rule"]
        host.kernel.detours[IPNetwork("10.5.9.0/25")] = other("10.5.9.0/25")
        host.kernel.overflow()
        await until(lambda: "ip route del 10.5.9.0/25" in told(host, "route-astray"))
        assert host.kernel.calls["policy_rule"] == asked, "a longer route of the main table is no rule's doing"


@pytest.mark.parametrize("action", ["blackhole", "unreachable", "prohibit"])
async def test_a_rule_that_refuses_what_containers_send_is_told(host: HostInMemory, action: str) -> None:
    """A look-up of theirs that ends in a black hole says the same as one that the reverse path filter drops."""
    for number in range(10, 10 + PEERS):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:01:{number:02x}"))
    async with host.run():
        host.kernel.set_interface(docker0(own(host)))
        for _ in range(2):
            host.kernel.policy_rules.append(PolicyRule(4, 100, action, arrives="docker0"))
            host.kernel.overflow()
            words = f"for a policy rule says so: ip rule del pref 100 from all iif docker0 {action} (and {about(PEERS)} more peers)"
            await until(lambda words=words: told(host, "route-astray").endswith(words))  # type: ignore[misc]
            host.kernel.policy_rules.clear()
            host.kernel.overflow()
            await until(lambda: host.conditions() == {})


async def test_packets_to_peers_leave_by_any_link_where_the_uplink_is_lo(host: HostInMemory) -> None:
    """A host whose address is on lo, as BGP to the host has it: nothing ever leaves by the uplink itself."""
    eth1 = host.kernel.interfaces["eth1"]
    local = InterfaceAddress(IPAddress("127.0.0.1"), 8, "host")
    detour("192.0.2.9/32", other("192.0.2.9/32", dev="eth0"))[0](host)
    host.kernel.set_interface(replace(eth1, addresses=(local, *eth1.addresses)))
    async with host.run():
        looks = host.kernel.calls["settings"]
        await until(lambda: host.kernel.calls["settings"] > looks + 5)
        assert not told(host, "route-astray")
        host.kernel.set_interface(eth1)
        host.kernel.overflow()
        await until(lambda: told(host, "route-astray"))


async def test_a_strict_filter_alone_drops_nothing_and_is_not_told(host: HostInMemory) -> None:
    host.kernel.sysctls["net/ipv4/conf/flannel.1/rp_filter"] = "1"
    host.kernel.sysctls["net/ipv4/conf/eth1/rp_filter"] = "1"
    async with host.run():
        before = host.kernel.calls["look_up"]
        await until(lambda: host.kernel.calls["look_up"] > before + 10)
        assert host.conditions() == {}


async def test_where_nothing_moves_only_some_peers_are_asked_for_in_a_look(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_watch, "PEERS_PER_S", 100.0)  # one a look of 0.01 s
    for number in range(10, 10 + PEERS):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:01:{number:02x}"))
    async with host.run():
        await until(lambda: host.kernel.calls["look_up"] > 4 * PEERS)
        looks, asked = host.kernel.calls["settings"], host.kernel.calls["look_up"]
        await until(lambda: host.kernel.calls["settings"] >= looks + 20)
        turns = host.kernel.calls["settings"] - looks + 1
        assert host.kernel.calls["look_up"] - asked <= 3 * turns


@pytest.mark.parametrize("bound", [1, 3, PEERS])
async def test_where_everything_moves_so_many_peers_are_asked_for_in_a_look_and_in_the_end_all(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    """Containers that come and go move routes all the time; a fault of one peer is found all the same."""
    monkeypatch.setattr(host_watch, "PEERS_PER_S", 0.0)
    monkeypatch.setattr(host_watch, "DOUBTED", bound)
    for number in range(10, 10 + PEERS):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:01:{number:02x}"))
    async with host.run():
        assert host.agent is not None
        assert host.agent._network is not None
        moved = host.agent._network.facts.rerouted
        await until(lambda: host.agent is not None and len(host.agent.status().peers) > PEERS)
        looks, asked = host.kernel.calls["settings"], host.kernel.calls["look_up"]
        while host.kernel.calls["settings"] < looks + 20:
            moved.set()
            await asyncio.sleep(0)
        turns = host.kernel.calls["settings"] - looks + 1
        assert 0 < host.kernel.calls["look_up"] - asked <= 3 * (bound + 1) * turns
        host.kernel.detours[IPNetwork(f"10.5.{10 + PEERS - 1}.0/25")] = other(f"10.5.{10 + PEERS - 1}.0/25")
        moved.set()
        await until(lambda: "route-astray" in " ".join(host.conditions()))


@pytest.mark.parametrize(
    ("who", "said"), [("cat", "process 7 (cat at 8472) has it: ss -lunp"), ("", "(to see who has it: ss -lunp")]
)
async def test_a_port_that_is_taken_is_told_with_who_has_it(
    host: HostInMemory, who: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_errors, "holder", lambda port: who and f"process 7 ({who} at {port})")
    host.kernel.taken_ports.add(8472)
    async with host.run(ready=False):
        await until(lambda: told(host, "kernel-refused"))
        assert said in told(host, "kernel-refused")
        host.kernel.taken_ports.clear()
        await until(lambda: host.ready and not told(host, "kernel-refused"))


@pytest.mark.parametrize("method", ["settings", "look_up"])
async def test_a_kernel_that_cannot_be_asked_is_asked_again(host: HostInMemory, method: str) -> None:
    from flannelpy.core.errors import KernelError

    async with host.run():
        host.kernel.fail_call(method, KernelError("no memory", errno.ENOMEM), 2)
        before = host.kernel.calls[method]
        host.kernel.sysctls["net/ipv4/ip_forward"] = "0"
        await until(lambda: host.kernel.calls[method] > before + 2 and told(host, "forwarding-off"))


@pytest.mark.parametrize(("wanted", "process"), [(8472, "cat"), (8285, "pump"), (53, "")])
def test_who_has_a_port_is_found_by_its_socket(tmp_path: Path, wanted: int, process: str) -> None:
    table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
    line = " 1: 00000000:{port:04X} 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 {inode} 2 0 0\n"
    net = tmp_path / "self" / "net"
    net.mkdir(parents=True)
    (net / "udp").write_text(table + line.format(port=8472, inode=11) + line.format(port=8285, inode=12))
    (net / "udp6").write_text(table)
    for pid, name, inode in ((5, "other", 10), (6, "cat", 11), (7, "pump", 12)):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
        (tmp_path / str(pid) / "fd" / "3").symlink_to(f"socket:[{inode}]")
    held = ports.holder(wanted, tmp_path)
    assert held.endswith(f"({process})") if process else held == ""


def test_a_socket_without_a_process_is_the_kernels(tmp_path: Path) -> None:
    net = tmp_path / "self" / "net"
    net.mkdir(parents=True)
    (net / "udp").write_text("head\n 1: 00000000:2118 00000000:0000 07 0:0 0:0 0 0 0 77 2 0 0\n")
    assert ports.holder(8472, tmp_path) == "the kernel (a device: ip -d link show)"


@pytest.mark.parametrize(("backend", "said"), [("host-gw", True), ("vxlan", False)])
async def test_the_uplink_has_to_forward_where_peers_packets_come_by_it_as_they_are(
    host: HostInMemory, backend: str, said: bool
) -> None:
    host.put_config(f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "{backend}"}}}}')
    host.put_peer(PEER, f'{{"PublicIP":"192.0.2.9","BackendType":"{backend}","BackendData":{{"VtepMAC":"02:00:00:00:00:09"}}}}')
    async with host.run():
        sysctl("net/ipv4/conf/eth1/forwarding", "0")(host)
        looks = host.kernel.calls["settings"]
        await until(lambda: host.kernel.calls["settings"] > looks + 5 and bool(told(host, "forwarding-off")) is said)
        assert not said or "sysctl -w net.ipv4.conf.eth1.forwarding=1" in told(host, "forwarding-off")
        sysctl("net/ipv4/conf/eth1/forwarding", "1")(host)
        await until(lambda: host.conditions() == {})


@pytest.mark.parametrize("lasts_s", [0.1, 0.7, 4.5])
def test_what_one_look_alone_has_found_is_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasts_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """An MTU that somebody sets and sets back: what it names to be done would be wrong by then. Whenever that is, of the looks."""
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    caplog.set_level("INFO", "flannelpy")
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)

    async def minutes() -> None:
        async with host.run():
            host.kernel.set_interface(docker0(own(host)))
            (uplink,) = (each for each in host.kernel.interfaces.values() if each.name == "eth1")
            for moment in range(12):
                await asyncio.sleep(20 + moment / 2)
                host.kernel.set_interface(replace(uplink, mtu=1300))
                await asyncio.sleep(lasts_s)
                host.kernel.set_interface(uplink)
            await asyncio.sleep(20)
            assert "may send larger packets" not in caplog.text
            host.kernel.set_interface(replace(uplink, mtu=1300))
            await asyncio.sleep(20)
            assert "ip link set docker0 mtu 1250" in told(host, "bridge-mtu")

    run(minutes())


def test_a_condition_that_rides_out_a_moment_does_so_for_longer_than_a_look_takes_to_come() -> None:
    waits = [after for code in host_watch.CODES if (after := conditions.CONDITIONS[code].after)]
    assert len(waits) == 3
    assert min(waits) > host_watch.LOOK_S
