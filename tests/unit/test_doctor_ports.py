"""What does the doctor say of packets that come in? For each backend and family, by the host's own rules; and who has the port."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from netaddr import IPAddress

from flannelpy.commands.doctor import ports
from flannelpy.commands.doctor.about import About
from flannelpy.core.packet_filter import Base, Rule, Ruleset
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING
from flannelpy.explain.status import LeaseStatus, PeerStatus, UplinkStatus

from .test_doctor import LEASE, STATUS, about, fake, found, interface  # noqa: F401 - about is a fixture
from .test_entrances import BOTH, V4, V6
from .test_packet_filter import ACCEPT, DROP, asks, meta, table


@pytest.fixture
def host(about: About) -> About:  # noqa: F811
    """One that is well, until it is set up otherwise."""
    return about


SIX = LeaseStatus("k", None, "fd00:5:0:7::/64", "0.0.0.0", "2001:db8::1", "held", False)
STATE = {"ct": {"key": "state"}}


def shut(*families: str) -> Ruleset:
    """INPUT drops everything, in each of these tables."""
    places = [(family, "filter", "INPUT") for family in families]
    return Ruleset(
        tuple(Base(place, "input", 0, "accept") for place in places), {place: (Rule(place, 1, (DROP,)),) for place in places}
    )


def set_up(host: About, network: dict[str, Any], backend: dict[str, Any], rules: Ruleset) -> None:
    """Of both families the uplink has an address, whatever the network has."""
    fake(host).set_interface(interface("eth1", 2, "192.0.2.1/24", "2001:db8::1/64", mtu=1500))
    host.take(json.dumps({**network, "Backend": backend}))
    fake(host).rules = rules
    if "Network" not in network:
        host.status = replace(STATUS, lease=SIX)


async def said(host: About) -> list[str]:
    return [f"{finding.state}: {finding.said}" for finding in await found(host, ports.incoming)]


HERE, HERE6 = "from 192.0.2.0 on eth1", "from 2001:db8:: on eth1"
IN, DROPPED = (
    "is let in",
    "is dropped by a rule in chain INPUT of nft table {} filter (handle 1): no packet of the overlay comes in",
)


@pytest.mark.parametrize(
    ("network", "shut_in", "expected"),
    [
        (V4, ["ip"], [f"{FAILED}: UDP 8472 {HERE} {DROPPED.format('ip')}"]),
        (V4, ["ip6"], [f"{OK}: UDP 8472 {HERE} {IN}"]),
        (V6, ["ip6"], [f"{FAILED}: UDP 8472 {HERE6} {DROPPED.format('ip6')}"]),
        (V6, ["ip"], [f"{OK}: UDP 8472 {HERE6} {IN}"]),
        (BOTH, ["ip6"], [f"{OK}: UDP 8472 {HERE} {IN}", f"{FAILED}: UDP 8472 {HERE6} {DROPPED.format('ip6')}"]),
        (BOTH, [], [f"{OK}: UDP 8472 {HERE} {IN}", f"{OK}: UDP 8472 {HERE6} {IN}"]),
    ],
)
@pytest.mark.parametrize("guard", ["default", "off"])
async def test_each_family_of_the_network_is_looked_at(
    host: About,
    network: dict[str, Any],
    shut_in: list[str],
    expected: list[str],
    guard: str,
) -> None:
    set_up(host, network, {"Type": "vxlan", "Guard": guard}, shut(*shut_in))
    assert await said(host) == expected


async def test_it_is_a_peer_of_that_family_that_is_asked_about(host: About) -> None:
    set_up(host, BOTH, {"Type": "vxlan"}, shut())
    without = PeerStatus("a", None, "fd00:5:0:8::/64", "0.0.0.0", "2001:db8::8", "vxlan", "in-sync")
    whole = PeerStatus("b", "10.5.9.0/24", "fd00:5:0:9::/64", "192.0.2.9", "2001:db8::9", "vxlan", "in-sync")
    host.status = replace(STATUS, peers=(without, whole))
    assert await said(host) == [
        f"{OK}: UDP 8472 from 192.0.2.9 on eth1 is let in",
        f"{OK}: UDP 8472 from 2001:db8::8 on eth1 is let in",
    ]


async def test_a_family_that_the_uplink_has_no_address_of_is_not_judged(host: About) -> None:
    set_up(host, BOTH, {"Type": "vxlan"}, shut("ip"))
    fake(host).set_interface(interface("eth1", 2, "192.0.2.1/24", mtu=1500))
    host.status = replace(STATUS, uplink=UplinkStatus("eth1", 1500, (), "192.0.2.1", None, "192.0.2.1", None))
    assert [text.partition(":")[0] for text in await said(host)] == [FAILED, SKIPPED]
    fake(host).take_interface("eth1")
    assert await said(host) == [f"{SKIPPED}: no uplink yet"]


IPSEC = {"Type": "ipsec", "PSK": "x" * 96}


@pytest.mark.parametrize(
    ("backend", "whats"),
    [
        ({"Type": "vxlan"}, ["UDP 8472"]),
        ({"Type": "wireguard"}, ["UDP 51820"]),
        ({"Type": "wireguard", "ListenPort": 4444}, ["UDP 4444"]),
        ({"Type": "udp", "Engine": "userspace"}, ["UDP 8285"]),
        ({"Type": "ipip"}, ["IP protocol 4"]),
        (IPSEC, ["UDP 500", "UDP 4500", "IP protocol 50"]),
        ({**IPSEC, "UDPEncap": True}, ["UDP 500", "UDP 4500"]),
    ],
)
@pytest.mark.parametrize("state", [OK, FAILED])
async def test_whatever_the_backend_takes_in_is_judged(
    host: About,
    backend: dict[str, Any],
    whats: list[str],
    state: str,
) -> None:
    set_up(host, V4, backend, shut("ip") if state == FAILED else shut())
    findings = await found(host, ports.incoming)
    assert [(finding.state, finding.said.partition(" from ")[0]) for finding in findings] == [(state, what) for what in whats]
    assert all(bool(finding.remedy) == (state == FAILED) for finding in findings)


async def test_a_rule_about_one_of_them_shuts_that_one(host: About) -> None:
    rules = table([asks(meta("l4proto"), "esp"), DROP], hook="input")
    set_up(host, V4, IPSEC, rules)
    assert [finding.state for finding in await found(host, ports.incoming)] == [OK, OK, FAILED]


@pytest.mark.parametrize("by", ["lease", "options"])
async def test_behind_nat_nothing_comes_in_bare_esp(host: About, by: str) -> None:
    set_up(host, V4, IPSEC, table([asks(meta("l4proto"), "esp"), DROP], hook="input"))
    if by == "lease":
        host.status = replace(STATUS, lease=replace(LEASE, public_ip="198.51.100.1"))
    else:
        host.status, host.settings = None, replace(host.settings, public_ip=IPAddress("198.51.100.1"), iface=("eth1",))
    assert [finding.state for finding in await found(host, ports.incoming)] == [OK, OK, SKIPPED]


@pytest.mark.parametrize(
    ("backend", "state"), [({"Type": "vxlan"}, FAILED), ({"Type": "wireguard"}, WARNING), ({"Type": "ipip"}, WARNING)]
)
async def test_where_answers_come_in_only_what_is_never_an_answer_is_lost(
    host: About,
    backend: dict[str, Any],
    state: str,
) -> None:
    set_up(host, V4, backend, table([asks(STATE, ["established", "related"], "in"), ACCEPT], policy="drop", hook="input"))
    (finding,) = await found(host, ports.incoming)
    assert finding.state == state, finding


@pytest.mark.parametrize(("prefer", "states"), [(None, [OK, WARNING]), ("none", [OK])])
async def test_what_is_only_preferred_is_no_fault(host: About, prefer: str | None, states: list[str]) -> None:
    rules = table([asks({"payload": {"protocol": "udp", "field": "dport"}}, 51820), DROP], hook="input")
    set_up(host, V4, {"Type": "vxlan", "Prefer": ["host-gw", "wireguard"]}, rules)
    host.settings = replace(host.settings, prefer=prefer)
    findings = await found(host, ports.incoming)
    assert [finding.state for finding in findings] == states, findings


@pytest.mark.parametrize(
    ("backend", "words"), [("host-gw", "host-gw names no port"), ("alloc", "alloc names no port"), ("extension", "extension names")]
)
async def test_what_is_not_known_is_said_to_be_so(host: About, backend: str, words: str) -> None:
    set_up(host, V4, {"Type": backend}, shut("ip"))
    host.status = None
    for check in (ports.incoming, ports.port):
        (finding,) = await found(host, check)
        assert finding.state == SKIPPED
        assert finding.said.startswith(words)


@pytest.mark.parametrize(
    ("backend", "asked", "option"),
    [
        ({"Type": "vxlan", "Guard": "off", "Port": 4789}, [4789], "Backend.Port"),
        ({"Type": "wireguard"}, [51820, 51821], "Backend.ListenPort"),
        (IPSEC, [500, 4500], ""),
    ],
)
@pytest.mark.parametrize("who", ["", "process 7 (other)"])
async def test_every_port_of_the_backend_is_to_be_free(
    host: About,
    backend: dict[str, Any],
    asked: list[int],
    option: str,
    who: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = []
    monkeypatch.setattr(ports, "holder", lambda port: numbers.append(port) or who)
    set_up(host, V4 if backend["Type"] == "ipsec" else BOTH, backend, shut())
    host.status = None
    findings = await found(host, ports.port)
    assert numbers == asked
    assert [finding.state for finding in findings] == [FAILED if who else OK] * len(asked)
    assert all(option in finding.remedy for finding in findings) or not who


async def test_our_own_daemon_may_have_its_ports(host: About, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that was killed has left it running."""
    monkeypatch.setattr(ports, "holder", lambda _port: "process 7 (charon)")
    set_up(host, V4, IPSEC, shut())
    host.status = None
    for pid, state in ((7, OK), (8, FAILED), (None, FAILED)):
        monkeypatch.setattr(ports, "left", lambda _run_dir, pid=pid: pid)
        assert {finding.state for finding in await found(host, ports.port)} == {state}


async def test_a_protocol_is_no_port(host: About) -> None:
    set_up(host, V4, {"Type": "ipip"}, shut())
    host.status = None
    (finding,) = await found(host, ports.port)
    assert (finding.state, finding.said) == (SKIPPED, "no UDP port: it is IP protocol 4, which nobody else can take")
