"""Where do other hosts' packets come in, by each backend? What docs/ports.md tells people to open, and how it is opened."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flannelpy import plugins
from flannelpy.core.backend import Guard, GuardedPort, StandsBeside
from flannelpy.core.entrances import ESP, Entrance, entrances, let_in, port_by
from flannelpy.core.filter_match import UDP
from flannelpy.core.packet_filter import Ruleset
from flannelpy.core.usual import completed

V4 = {"Network": "10.5.0.0/16"}
V6 = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}
BOTH = {**V6, **V4, "EnableIPv4": True}


def told(backend: dict[str, Any], network: dict[str, Any]) -> list[str]:
    config, made = plugins.parse(json.dumps({**network, "Backend": backend}))
    return [
        f"{each} {each.device or '-'} {'+'.join(f'IPv{family}' for family in each.families)}" for each in entrances(config, [made])
    ]


@pytest.mark.parametrize(
    ("backend", "network", "expected"),
    [
        ({"Type": "vxlan"}, V4, ["UDP 8472 flannel.1 IPv4"]),
        ({"Type": "vxlan", "Guard": "off"}, V4, ["UDP 8472 flannel.1 IPv4"]),
        ({"Type": "vxlan", "VNI": 7, "Port": 4789}, V6, ["UDP 4789 flannel-v6.7 IPv6"]),
        ({"Type": "vxlan", "Guard": "off"}, BOTH, ["UDP 8472 flannel.1 IPv4", "UDP 8472 flannel-v6.1 IPv6"]),
        ({"Type": "wireguard"}, V4, ["UDP 51820 flannel-wg IPv4"]),
        ({"Type": "wireguard"}, V6, ["UDP 51821 flannel-wg-v6 IPv6"]),
        ({"Type": "wireguard", "ListenPort": 5}, BOTH, ["UDP 5 flannel-wg IPv4", "UDP 51821 flannel-wg-v6 IPv6"]),
        ({"Type": "wireguard", "Mode": "ipv6"}, BOTH, ["UDP 51820 flannel-wg IPv6"]),
        ({"Type": "wireguard", "Mode": "auto"}, BOTH, ["UDP 51820 flannel-wg IPv4+IPv6"]),
        ({"Type": "udp", "Engine": "kernel"}, V4, ["UDP 8285 flannel0 IPv4"]),
        ({"Type": "udp", "Engine": "userspace", "Guard": "off", "Port": 9}, V4, ["UDP 9 flannel0 IPv4"]),
        ({"Type": "ipip"}, V4, ["IP protocol 4 flannel.ipip IPv4"]),
        ({"Type": "ipip", "Guard": "off"}, V4, ["IP protocol 4 flannel.ipip IPv4"]),
        ({"Type": "ipsec", "PSK": "x" * 96}, V4, ["UDP 500 - IPv4", "UDP 4500 - IPv4", "IP protocol 50 - IPv4"]),
        ({"Type": "ipsec", "PSK": "x" * 96, "UDPEncap": True}, V4, ["UDP 500 - IPv4", "UDP 4500 - IPv4"]),
        ({"Type": "host-gw"}, BOTH, []),
        ({"Type": "alloc"}, V4, []),
        ({"Type": "extension"}, V4, []),
    ],
)
def test_each_backend_says_where_its_packets_come_in(backend: dict[str, Any], network: dict[str, Any], expected: list[str]) -> None:
    assert told(backend, network) == expected


@completed
class Others:
    """A third party's, which says nothing of it."""

    name = "others"

    def devices(self, _config: object) -> dict[str, bool]:
        return {"other0": False}


def test_of_a_backend_that_does_not_say_it_what_it_guards_does() -> None:
    config, _made = plugins.parse(json.dumps({**V4, "Backend": {"Type": "alloc"}}))
    made: Any = Others()
    assert entrances(config, [made]) == []
    made.port = 4444
    assert entrances(config, [made]) == [Entrance(UDP, 4444, "other0")]
    made.guarded = Guard(GuardedPort("others", 5555, inner=8), "default", (4, 6))
    assert entrances(config, [made]) == [Entrance(UDP, 5555, "other0", (4, 6))]
    made.guarded = Guard(GuardedPort("others", 47, inner=4, datagram=False), "default")
    assert entrances(config, [made]) == [Entrance(47, 0, "other0")]


def test_of_several_backends_the_device_says_which_port() -> None:
    config, vxlan = plugins.parse(json.dumps({**V4, "Backend": {"Type": "vxlan"}}))
    _config, wireguard = plugins.parse(json.dumps({**V4, "Backend": {"Type": "wireguard"}}))
    assert isinstance(wireguard, StandsBeside)
    held = entrances(config, [vxlan, wireguard.beside(), wireguard])
    assert [port_by(held, name) for name in ("flannel.1", "flannel-wg", "flannel.ipip")] == [8472, 51820, 0]
    assert len(held) == 2


UFW = Ruleset(chains={("ip", "filter", "ufw-before-input"): ()})
NFT, NFT6 = ("chain INPUT of nft table ip filter (policy drop)", "chain INPUT of nft table ip6 filter (policy drop)")
LEGACY, LEGACY6 = ("chain INPUT of iptables-legacy (policy drop)", "chain INPUT of ip6tables-legacy (policy drop)")
INET, RAW = "chain input of nft table inet filter (policy drop)", "a rule in chain PREROUTING of nft table ip raw (handle 7)"
FIREWALLD, HARD = "a rule in chain in of nft table inet firewalld", "a rule in chain in of nft table inet hard (handle 2)"


@pytest.mark.parametrize(
    ("rules", "dropped", "entrance", "version", "expected"),
    [
        (Ruleset(), NFT, Entrance(UDP, 500), 4, "iptables -I INPUT -i eth1 -p udp --dport 500 -j ACCEPT"),
        (Ruleset(), NFT6, Entrance(UDP, 8472), 6, "ip6tables -I INPUT -i eth1 -p udp --dport 8472 -j ACCEPT"),
        (Ruleset(), LEGACY, Entrance(ESP), 4, "iptables-legacy -I INPUT -i eth1 -p esp -j ACCEPT"),
        (Ruleset(), LEGACY6, Entrance(UDP, 8472), 6, "ip6tables-legacy -I INPUT -i eth1 -p udp --dport 8472 -j ACCEPT"),
        (Ruleset(), FIREWALLD, Entrance(4), 4, "firewall-cmd --permanent --add-protocol=ipencap"),
        (Ruleset(), FIREWALLD, Entrance(UDP, 7), 6, "firewall-cmd --permanent --add-port=7/udp"),
        (Ruleset(), HARD, Entrance(4), 4, "nft insert rule inet hard in iifname eth1 meta l4proto ipencap accept"),
        (Ruleset(), HARD, Entrance(47), 4, "nft insert rule inet hard in iifname eth1 meta l4proto 47 accept"),
        (Ruleset(), INET, Entrance(UDP, 8472), 4, "nft insert rule inet filter input iifname eth1 udp dport 8472 accept"),
        (Ruleset(), RAW, Entrance(UDP, 8472), 4, "nft insert rule ip raw PREROUTING iifname eth1 udp dport 8472 accept"),
        (UFW, NFT, Entrance(ESP), 4, "ufw allow in on eth1 proto esp"),
        (UFW, NFT, Entrance(4), 4, "-A ufw-before-input -i eth1 -p ipencap -j ACCEPT in /etc/ufw/before.rules"),
    ],
)
def test_what_opens_it_is_in_the_words_of_whoever_shut_it(
    rules: Ruleset, dropped: str, entrance: Entrance, version: int, expected: str
) -> None:
    assert let_in(rules, dropped, "eth1", entrance, version).startswith(expected)
