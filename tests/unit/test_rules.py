"""The firewall table as text, rule by rule. flannel-compat 10.1, 10.2."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import GuardedPort, SourceRule
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Key, NftTable
from flannelpy.core.rules import EncapsulationGuard, FirewallOptions, firewall

PAIR = (IPNetwork("10.5.0.0/16"), IPNetwork("10.5.72.0/24"))


def rules(state: HostState, chain: str) -> list[str]:
    table = state.get(Key("nft", "flannelpy"))
    assert isinstance(table, NftTable)
    body = table.body.partition(f"chain {chain} {{\n")[2].partition("\t}")[0]
    return [line.strip() for line in body.splitlines()]


def test_masquerade_has_the_effect_of_the_iptables_rules() -> None:
    assert rules(firewall("flannelpy", [PAIR], FirewallOptions(masquerade=True)), "postrtg") == [
        "type nat hook postrouting priority srcnat; policy accept;",
        "meta mark & 0x00004000 == 0x00004000 return",
        "ip saddr 10.5.72.0/24 ip daddr 10.5.0.0/16 return",
        "ip saddr 10.5.0.0/16 ip daddr 10.5.72.0/24 return",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.72.0/24 return",
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
    ]


def test_forward_accepts_both_directions_of_each_family() -> None:
    v6 = (IPNetwork("fd00:5::/48"), IPNetwork("fd00:5:0:72::/64"))
    assert rules(firewall("flannelpy", [PAIR, v6], FirewallOptions()), "forward")[1:] == [
        "ip saddr 10.5.0.0/16 accept",
        "ip daddr 10.5.0.0/16 accept",
        "ip6 saddr fd00:5::/48 accept",
        "ip6 daddr fd00:5::/48 accept",
    ]


def test_ports_may_be_kept() -> None:
    state = firewall("flannelpy", [PAIR], FirewallOptions(masquerade=True, fully_random=False))
    assert rules(state, "postrtg")[-1].endswith(" masquerade")


def test_nothing_asked_for_is_no_table() -> None:
    assert len(firewall("flannelpy", [PAIR], FirewallOptions(forward=False))) == 0


def lease(subnet: str, public_ip: str) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(public_ip)))


PEERS = (lease("10.5.9.0/24", "192.0.2.9"), lease("10.5.3.0/24", "192.0.2.3"), Lease(PAIR[0], LeaseAttrs(NO_ADDRESS)))


def guard(rule: SourceRule, peers: tuple[Lease, ...] = PEERS) -> str:
    guarded = EncapsulationGuard(GuardedPort(8285, rule), *PAIR, peers)
    table = firewall("flannelpy", [PAIR], FirewallOptions(forward=False), guarded).get(Key("nft", "flannelpy"))
    assert isinstance(table, NftTable)
    return table.body


def test_a_guard_binds_each_peer_to_its_subnet_inside_the_network_only() -> None:
    assert guard("default").splitlines() == [
        "\tset hosts {",
        "\t\ttype ipv4_addr",
        "\t\telements = { 192.0.2.3, 192.0.2.9 }",
        "\t}",
        "",
        "\tset peers {",
        "\t\ttypeof ip saddr . @th,160,32",
        "\t\tflags interval",
        "\t\telements = { 192.0.2.3 . 0xa050300-0xa0503ff,",
        "\t\t\t     192.0.2.9 . 0xa050900-0xa0509ff }",
        "\t}",
        "",
        "\tchain guard {",
        "\t\ttype filter hook input priority filter - 10; policy accept;",
        "\t\tudp dport 8285 ip saddr != @hosts drop",
        "\t\tudp dport 8285 @th,160,32 0xa050000-0xa05ffff ip saddr . @th,160,32 != @peers drop",
        "\t\tudp dport 8285 @th,192,32 != 0xa054800-0xa0548ff drop",
        "\t}",
    ]


def test_a_strict_guard_lets_in_the_peers_own_address_besides() -> None:
    inside = lease("10.5.4.0/24", "10.5.9.77")  # an address of the network is a subnet's, and no more
    assert guard("strict", (*PEERS, inside)).splitlines() == [
        "\tset peers {",
        "\t\ttypeof ip saddr . @th,160,32",
        "\t\tflags interval",
        "\t\telements = { 10.5.9.77 . 0xa050400-0xa0504ff,",
        "\t\t\t     192.0.2.3 . 0xa050300-0xa0503ff,",
        "\t\t\t     192.0.2.9 . 0xa050900-0xa0509ff,",
        "\t\t\t     192.0.2.3 . 0xc0000203,",
        "\t\t\t     192.0.2.9 . 0xc0000209 }",
        "\t}",
        "",
        "\tchain guard {",
        "\t\ttype filter hook input priority filter - 10; policy accept;",
        "\t\tudp dport 8285 ip saddr . @th,160,32 != @peers drop",
        "\t\tudp dport 8285 @th,192,32 != 0xa054800-0xa0548ff drop",
        "\t}",
    ]


def test_leases_of_one_host_that_overlap_are_no_two_intervals() -> None:
    nested = (lease("10.5.8.0/22", "192.0.2.9"), lease("10.5.9.0/24", "192.0.2.9"), lease("10.5.9.7/24", "192.0.2.3"))
    elements = [
        line.strip() for line in guard("default", (*nested, lease("10.5.9.0/24", "192.0.2.3"))).splitlines() if " . 0x" in line
    ]
    assert elements == ["elements = { 192.0.2.3 . 0xa050900-0xa0509ff,", "192.0.2.9 . 0xa050800-0xa050bff }"]


def test_a_guard_by_peers_looks_at_the_outer_source_only() -> None:
    body = guard("peers", (*PEERS, lease("10.5.4.0/24", "192.0.2.9"), lease("10.5.5.0/24", "192.0.2.20")))
    assert "\t\ttype ipv4_addr\n\t\telements = { 192.0.2.3, 192.0.2.9,\n\t\t\t     192.0.2.20 }\n" in body
    assert "\t\tudp dport 8285 ip saddr != @hosts drop\n\t}\n" in body


@pytest.mark.parametrize(("rule", "matched"), [("default", "hosts"), ("strict", "peers"), ("peers", "hosts")])
def test_without_peers_nobody_may_send(rule: SourceRule, matched: str) -> None:
    assert "elements" not in guard(rule, peers=())
    assert f"!= @{matched} drop" in guard(rule, peers=())
