"""Does an agent ask its peers, and say what it hears? Kernel, network and clock in memory: minutes pass in a moment."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from netaddr import IPAddress, IPNetwork

from backends.host_gw import HostGw
from backends.udp.backend import Udp
from flannelpy.agent.context import Timeouts
from flannelpy.agent.probe_targets import carried_by, target
from flannelpy.agent.probes import Probes
from flannelpy.agent.view import Cursor
from flannelpy.core.errors import KernelError
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.objects import Address, Fou, HostState, Ipip, Link, Object, Vxlan, WireguardDevice
from flannelpy.core.reachability import REACHABLE, Target
from flannelpy.core.secret import Secret
from flannelpy.explain.status import PeerStatus, ProbeStatus
from flannelpy.kernel import Heard, Refused
from flannelpy.kernel.fake_echo import FakeEcho
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, vxlan_value
from tests.unit.virtual_time import run

OVERLAY, PUBLIC = IPAddress("10.5.9.0"), IPAddress("192.0.2.9")


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's is the loop's, whose time is virtual."""
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())


def host_of(folder: Path, peers: int = 2, **settings: object) -> HostInMemory:
    """One host, and leases 10.5.9.0/24 at 192.0.2.9 and so on."""
    made = HostInMemory(MemoryStore(), folder, **settings)
    made.timeouts = Timeouts()
    made.put_config(VXLAN)
    for number in range(9, 9 + peers):
        made.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:00:{number:02x}"))
    return made


def said(host: HostInMemory, key: str = "10.5.9.0-24") -> PeerStatus:
    assert host.agent is not None
    return next(peer for peer in host.agent.status().peers if peer.key == key)


def probe(host: HostInMemory) -> ProbeStatus:
    found = said(host).probe
    assert found is not None
    return found


def sent(host: HostInMemory) -> list[tuple[IPAddress, int]]:
    return [packet for echo in host.kernel.air.echoes for packet in echo.sent]


def test_peers_that_answer_are_reachable_and_asked_six_times_a_minute(tmp_path: Path) -> None:
    host = host_of(tmp_path)

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(30)
            before = len(sent(host))
            await asyncio.sleep(600)
            assert 2 * 60 <= len(sent(host)) - before <= 2 * 60 * 1.2
            found = probe(host)
            assert (found.state, found.why, found.since, found.loss) == ("reachable", "", None, 0.0)
            assert (found.size, found.size_passes) == (1450, True)
            assert found.last_seen is not None
            assert host.conditions() == {}

    run(minutes())
    assert {address for address, _size in sent(host)} == {
        IPAddress(f"{net}.{n}{end}") for n in (9, 10) for net, end in (("10.5", ".0"), ("192.0.2", ""))
    }


def test_a_peer_that_falls_silent_is_a_condition_until_it_answers(tmp_path: Path) -> None:
    host = host_of(tmp_path)

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(30)
            host.kernel.air.silent = lambda address, _size: address == OVERLAY
            await asyncio.sleep(15)
            text = host.conditions()["peer-unreachable 10.5.9.0-24"]
            assert text == (
                "a peer is not reached: 10.5.9.0/24 at 192.0.2.9:"
                " its host answers, but not through the overlay: UDP 8472 is dropped there, here or between"
            )
            assert probe(host).state == "unreachable"
            assert host.ready
            assert host.kernel.air.echoes[-1].requests
            host.kernel.air.echoes[-1].come(Heard(OVERLAY, 1, 64, request=True))
            await asyncio.sleep(2)
            assert "one way only" in host.conditions()["peer-unreachable 10.5.9.0-24"]
            for number in range(150):  # a flood of them is not listened to, until the next verdict
                host.kernel.air.echoes[-1].come(Heard(OVERLAY, number, 64, request=True))
            await asyncio.sleep(0.01)
            assert not host.kernel.air.echoes[-1].requests
            await asyncio.sleep(2)
            assert host.kernel.air.echoes[-1].requests
            host.kernel.air.silent = lambda _address, _size: False
            await asyncio.sleep(15)
            assert host.conditions() == {}
            assert not host.kernel.air.echoes[-1].requests

    run(minutes())


def test_a_host_whose_peers_are_all_gone_is_not_ready_until_one_is_back(tmp_path: Path) -> None:
    host = host_of(tmp_path, 3)

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(30)
            host.kernel.air.silent = lambda _address, _size: True
            await asyncio.sleep(14)
            assert host.ready
            await asyncio.sleep(14)
            assert not host.ready
            text = "no peer answers through the overlay any more, of 3: this host is cut off"
            assert host.conditions()["peers-unreachable"] == text
            host.kernel.air.silent = lambda address, _size: address != OVERLAY
            await asyncio.sleep(10)
            assert host.ready
            assert set(host.conditions()) == {"peer-unreachable 10.5.10.0-24", "peer-unreachable 10.5.11.0-24"}

    run(minutes())


def test_peers_that_never_answer_are_a_warning_or_an_error_where_nobody_is_there(tmp_path: Path) -> None:
    host = host_of(tmp_path)
    host.kernel.air.silent = lambda _address, _size: True

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(30)
            assert set(host.conditions()) == {"peer-silent 10.5.9.0-24", "peer-silent 10.5.10.0-24"}
            assert host.ready
            host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.77", "02:00:00:00:00:77"))
            await asyncio.sleep(2.5)
            assert probe(host).state == "unknown"
            host.delete("10.5.9.0-24")
            host.delete("10.5.10.0-24")
            await asyncio.sleep(10)
            assert host.conditions() == {}

    run(minutes())


@pytest.mark.parametrize("where", ["host", "config"])
def test_probes_can_be_switched_off(tmp_path: Path, where: str) -> None:
    host = host_of(tmp_path, probe=where != "host")
    if where == "config":
        host.put_config({**VXLAN, "Probe": False})

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(60)
            assert host.agent is not None
            assert "switched off" in (host.agent.status().probes_off or "")
            assert said(host).probe is None
            assert sent(host) == []
            if where == "config":
                host.put_config(VXLAN)
                await asyncio.sleep(30)
                assert probe(host).state == "reachable"

    run(minutes())


def test_an_agent_that_may_not_ask_says_so_and_that_is_all(tmp_path: Path) -> None:
    host = host_of(tmp_path)
    host.kernel.fail_call("echo", KernelError("no ICMP socket: needs CAP_NET_RAW", errno.EPERM), 3)

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(20)
            assert host.agent is not None
            assert host.agent.status().probes_off == "no ICMP socket: needs CAP_NET_RAW"
            assert (host.conditions(), host.ready, said(host).probe) == ({}, True, None)
            await asyncio.sleep(120)
            assert probe(host).state == "reachable"

    run(minutes())


class Two:
    """A reader's place among the peers, where there are these."""

    def __init__(self, current: Mapping[str, Lease]) -> None:
        self.current = current

    def take(self) -> Mapping[str, Lease | None]:
        return {}


@pytest.mark.parametrize(("without", "asked"), [(6, "four"), (4, "six")])
def test_a_kernel_that_lacks_one_ip_version_asks_by_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: int, asked: str
) -> None:
    host = host_of(tmp_path)
    echo = host.kernel.echo

    def lacking(version: int) -> FakeEcho:
        if version == without:
            raise KernelError("no ICMP socket: Address family not supported by protocol", errno.EAFNOSUPPORT)
        return echo(version)

    monkeypatch.setattr(host.kernel, "echo", lacking)
    leases = {"four": lease(), "six": lease(str(NO_ADDRESS), IPNetwork("0.0.0.0/0"), "fd00:5:0:9::/64", "2001:db8::9")}
    through = {4: OVERLAY, 6: IPAddress("fd00:5:0:9::")}

    def aim(lease: Lease) -> Target:
        return Target(through[6 if lease.subnet6 is not None else 4], None, 1450)

    async def minute() -> None:
        probes = Probes(host.context(), cast(Cursor, Two(leases)), lambda: aim, lambda _key: True)
        life = asyncio.create_task(probes.run())
        await asyncio.sleep(60)
        verdicts = {key: found[1] for key in leases if (found := probes.of(key)) is not None}
        assert probes.off == ""
        assert verdicts.pop(asked) == REACHABLE
        (other,) = verdicts.values()
        assert (other.state, other.why.split(": ", 1)[1]) == (
            "unreachable",
            "no ICMP socket: Address family not supported by protocol",
        )
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)

    run(minute())


@pytest.mark.parametrize(
    ("code", "said_of_it"),
    [(errno.EPERM, "peer-silent"), (errno.ENETUNREACH, "peer-unreachable"), (errno.ENOBUFS, "peer-unreachable")],
)
def test_what_this_hosts_kernel_says_is_told_but_for_a_firewall_that_drops_icmp(tmp_path: Path, code: int, said_of_it: str) -> None:
    host = host_of(tmp_path, 1)
    host.kernel.air.refusal = KernelError("because", code)

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(30)
            assert set(host.conditions()) == {f"{said_of_it} 10.5.9.0-24"}
            assert ("because" in probe(host).why) == (code != errno.EPERM)
            host.kernel.air.refusal = None
            await asyncio.sleep(20)
            assert host.conditions() == {}

    run(minutes())


def test_what_is_lost_while_the_uplink_is_down_is_the_uplinks(tmp_path: Path) -> None:
    host = host_of(tmp_path)

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(30)
            uplink = host.kernel.interfaces["eth1"]
            host.kernel.air.silent = lambda _address, _size: True
            host.kernel.set_down("eth1")
            await asyncio.sleep(120)
            assert set(host.conditions()) == {"uplink-down"}
            assert all(echo.closed for echo in host.kernel.air.echoes)
            host.kernel.air.silent = lambda _address, _size: False
            host.kernel.set_interface(uplink)
            await asyncio.sleep(30)
            assert host.conditions() == {}
            assert probe(host).state == "reachable"

    run(minutes())


def test_nothing_is_sent_to_a_peer_that_no_route_leads_to(tmp_path: Path) -> None:
    """It would go out by the default route."""
    host = host_of(tmp_path, 1)
    host.kernel.taken_ports.add(8472)  # the device cannot be made

    async def minutes() -> None:
        async with host.run(ready=False):
            await asyncio.sleep(60)
            assert sent(host) == []

    run(minutes())


def test_answers_of_others_change_nothing(tmp_path: Path) -> None:
    host = host_of(tmp_path, 1)
    host.kernel.air.silent = lambda _address, _size: True

    async def minutes() -> None:
        async with host.run():
            await asyncio.sleep(3)
            (echo,) = host.kernel.air.echoes
            for token in range(1000):
                echo.come(Heard(OVERLAY, token, 1450))
                echo.come(Refused(token, "nobody is there"))
            await asyncio.sleep(20)
            assert probe(host).state == "silent"

    run(minutes())


# ------------------------------------------------------------------------------------------------------- where to ask

SUBNET, OWN = IPNetwork("10.5.9.0/24"), IPNetwork("10.5.1.0/24")
DEVICE = Address(IPNetwork("10.5.1.0/32"), "flannel.1")
VTEP = Link("flannel.1", "vxlan", 1450, "02:00:00:00:00:01", detail=Vxlan(1, "eth1", IPAddress("192.0.2.1"), 4789))
TUNNEL = Link("flannel.ipip", "ipip", 1480, detail=Ipip(IPAddress("192.0.2.1")))


def held(host: HostState) -> frozenset[IPAddress]:
    return frozenset(item.net.ip for item in host if isinstance(item, Address))


def lease(public: str = "192.0.2.9", subnet: IPNetwork = SUBNET, subnet6: str = "", public6: str = "") -> Lease:
    attrs = LeaseAttrs(IPAddress(public), IPAddress(public6) if public6 else None)
    return Lease(subnet, attrs, subnet6=IPNetwork(subnet6) if subnet6 else None)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ((VTEP, DEVICE), Target(OVERLAY, PUBLIC, 1450, "UDP 4789")),
        ((TUNNEL, DEVICE), Target(OVERLAY, PUBLIC, 1450, "IP protocol 4")),
        ((Fou(8285), TUNNEL, DEVICE), Target(OVERLAY, PUBLIC, 1450, "UDP 8285")),
        ((WireguardDevice("flannel-wg", 51820, Secret(bytes(32))), DEVICE), Target(OVERLAY, PUBLIC, 1450, "UDP 51820")),
        ((DEVICE,), Target(OVERLAY, PUBLIC, 1450, "UDP 8285")),
        ((), Target(PUBLIC, None, 1450)),
    ],
    ids=["vxlan", "ipip", "udp", "wireguard", "pump", "host-gw"],
)
def test_where_a_peer_is_asked_follows_from_what_this_host_has(objects: tuple[Object, ...], expected: Target) -> None:
    host = HostState.of(*objects)
    assert target(lease(), lease("192.0.2.1", OWN), held(host), 1450, carried_by(host, Udp(8285))) == expected


def test_what_carries_packets_is_not_made_up() -> None:
    assert carried_by(HostState(), HostGw()) == "the overlay's traffic"


def test_a_peer_without_an_ipv4_address_is_asked_by_ipv6() -> None:
    nowhere = IPNetwork("0.0.0.0/0")
    one = lease(str(NO_ADDRESS), nowhere, "fd00:5:0:9::/64", "2001:db8::9")
    own = lease(str(NO_ADDRESS), nowhere, "fd00:5:0:1::/64", "2001:db8::1")
    ours = held(HostState.of(Address(IPNetwork("fd00:5:0:1::/128"), "flannel-v6.1")))
    found = target(one, own, ours, 1430, "")
    assert found is not None
    assert (found.through, found.beside) == (IPAddress("fd00:5:0:9::"), IPAddress("2001:db8::9"))
    assert target(lease(str(NO_ADDRESS), nowhere), own, ours, 1430, "") is None
