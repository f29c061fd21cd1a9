"""The firewall table as text, rule by rule. flannel-compat 10.1, 10.2."""

from __future__ import annotations

import json

import pytest
from netaddr import IPNetwork

from flannelpy.core.backend import Enclosed
from flannelpy.core.objects import HostState, Key, NftTable
from flannelpy.core.rules import FirewallOptions, firewall
from flannelpy.plugins import parse

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


def test_a_source_of_the_network_that_is_not_ours_comes_by_an_entrance() -> None:
    options = FirewallOptions(forward=False, entrances=("eth1", "flannel.1"))
    v6 = (IPNetwork("fd00:5::/48"), IPNetwork("fd00:5:0:72::/64"))
    drop = 'counter name "container_source" drop'
    assert rules(firewall("flannelpy", [PAIR, v6], options), "sources") == [
        "type filter hook forward priority filter - 5; policy accept;",
        'iifname "eth1" accept',
        'iifname "flannel.1" accept',
        f"ip saddr 10.5.0.0/16 ip saddr != 10.5.72.0/24 ip daddr 10.5.72.0/24 {drop}",
        f'ip saddr 10.5.0.0/16 ip saddr != 10.5.72.0/24 oifname "eth1" {drop}',
        f'ip saddr 10.5.0.0/16 ip saddr != 10.5.72.0/24 oifname "flannel.1" {drop}',
        f"ip6 saddr fd00:5::/48 ip6 saddr != fd00:5:0:72::/64 ip6 daddr fd00:5:0:72::/64 {drop}",
        f'ip6 saddr fd00:5::/48 ip6 saddr != fd00:5:0:72::/64 oifname "eth1" {drop}',
        f'ip6 saddr fd00:5::/48 ip6 saddr != fd00:5:0:72::/64 oifname "flannel.1" {drop}',
    ]


@pytest.mark.parametrize("name", ['e"th', "eth*", "et h", "\u00e9th1", "", "e\\n"])
def test_a_device_whose_name_nft_would_read_otherwise_is_no_rule(name: str) -> None:
    assert len(firewall("flannelpy", [PAIR], FirewallOptions(forward=False, entrances=("flannel.1", name)))) == 0


@pytest.mark.parametrize(
    ("options", "enclosed"),
    [
        ({"Type": "vxlan"}, True),
        ({"Type": "vxlan", "DirectRouting": True}, False),
        ({"Type": "ipip"}, True),
        ({"Type": "ipip", "DirectRouting": True}, False),
        ({"Type": "host-gw"}, True),
        ({"Type": "udp"}, True),
        ({"Type": "wireguard"}, True),
        ({"Type": "alloc"}, False),
        ({"Type": "extension"}, False),
    ],
)
def test_where_peers_packets_come_from_is_known_of_these(options: dict[str, object], enclosed: bool) -> None:
    _config, backend = parse(json.dumps({"Network": "10.5.0.0/16", "Backend": options}))
    assert (isinstance(backend, Enclosed) and backend.enclosed) == enclosed
