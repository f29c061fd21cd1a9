"""The firewall table as text, rule by rule. flannel-compat 10.1, 10.2."""

from __future__ import annotations

from netaddr import IPNetwork

from flannelpy.core.objects import HostState, Key, NftTable
from flannelpy.core.rules import FirewallOptions, firewall

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
