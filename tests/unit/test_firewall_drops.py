"""What of the overlay is said to be dropped, and by which rule? Rules as nft prints them, and what has to pass for a peer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.envelope import Envelope
from flannelpy.core.filter_match import IPIP
from flannelpy.core.firewall_drops import Ground, Way, dropped, narrowed, passages, with_accepts
from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.packet_filter import Base, Rule, Ruleset
from flannelpy.kernel.legacy_rules import with_legacy
from tests.unit.test_packet_filter import ACCEPT, DROP, asks, ip, meta, net, table

OURS, THEIRS = IPNetwork("10.5.7.0/24"), IPNetwork("10.5.9.0/24")
PEER, OWN = IPAddress("192.0.2.9"), IPAddress("192.0.2.7")
VXLAN = Way(OURS, THEIRS, "flannel.1", Envelope(port=8472, vni=1, bound="eth1"), PEER)
UDP = Way(OURS, THEIRS, "flannel0", Envelope(port=8285), PEER)
IP_IP = Way(OURS, THEIRS, "flannel.ipip", Envelope(IPIP), PEER)
WIREGUARD = Way(OURS, THEIRS, "flannel-wg", Envelope(port=51820, hidden=True), PEER)
HOST_GW = Way(OURS, THEIRS, "eth1")
GROUND = Ground("eth1", (OWN,), "docker0", 1450)

IN = "from 192.0.2.9 on eth1"
OUT = "to 192.0.2.9 on eth1"
FROM, TO = "containers in 10.5.7.0/24 send to 10.5.9.0/24 by", "containers in 10.5.9.0/24 send to 10.5.7.0/24 by docker0"
STATE = {"ct": {"key": "state"}}
PORT = {"payload": {"protocol": "udp", "field": "dport"}}
ESTABLISHED = [asks(STATE, ["established", "related"], "in"), ACCEPT]


def said(rules: Ruleset, way: Way = VXLAN, ground: Ground = GROUND) -> str:
    return "; ".join(dropped(rules, list(passages([way], ground)), ground.uplink).values())


def port(number: int) -> dict[str, Any]:
    return asks(PORT, number)


CASES: dict[str, tuple[list[Any], str, Way, str]] = {
    "the port": ([port(8472), DROP], "input", VXLAN, f"UDP 8472 {IN}"),
    "the port of udp": ([port(8285), DROP], "input", UDP, f"UDP 8285 {IN}"),
    "the port of wireguard": ([port(51820), DROP], "input", WIREGUARD, f"UDP 51820 {IN}"),
    "another port": ([port(8473), DROP], "input", VXLAN, ""),
    "the port of nobody's envelope": ([port(8472), DROP], "input", HOST_GW, ""),
    "IPIP": ([asks(meta("l4proto"), 4), DROP], "input", IP_IP, f"IP protocol 4 {IN}"),
    "IPIP, where UDP is what there is": ([asks(meta("l4proto"), 4), DROP], "input", VXLAN, ""),
    "what goes out": ([asks(ip("daddr"), "192.0.2.9"), DROP], "output", VXLAN, f"UDP 8472 {OUT}"),
    "what goes out elsewhere": ([asks(ip("daddr"), "192.0.2.8"), DROP], "output", VXLAN, ""),
    "before routing": ([asks(ip("saddr"), "192.0.2.9"), DROP], "prerouting", VXLAN, f"UDP 8472 {IN}"),
    "after routing": ([asks(meta("oifname"), "eth1"), DROP], "postrouting", VXLAN, f"UDP 8472 {OUT}"),
    "from containers": ([asks(ip("saddr"), net("10.5.7.0/24")), DROP], "forward", VXLAN, f"{FROM} flannel.1"),
    "from containers of a wider network": ([asks(ip("saddr"), net("10.5.0.0/16")), DROP], "forward", VXLAN, f"{FROM} flannel.1"),
    "to containers": ([asks(ip("daddr"), net("10.5.7.0/24")), DROP], "forward", VXLAN, TO),
    "by the uplink": ([asks(meta("oifname"), "eth1"), DROP], "forward", HOST_GW, f"{FROM} eth1"),
    "one container": ([asks(ip("daddr"), "10.5.7.2"), DROP], "forward", VXLAN, ""),
    "one service": ([asks({"payload": {"protocol": "tcp", "field": "dport"}}, 22), DROP], "forward", VXLAN, ""),
    "ICMP": ([asks(meta("l4proto"), "icmp"), DROP], "forward", VXLAN, ""),
    "who knows": ([{"limit": {"rate": 1, "per": "second"}}, DROP], "forward", VXLAN, ""),
    "large ones": ([asks(meta("length"), 1400, ">"), DROP], "output", VXLAN, f"large packets, UDP 8472 {OUT}"),
    "huge ones": ([asks(meta("length"), 1500, ">"), DROP], "output", VXLAN, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_dropped_is_told_with_the_rule_and_how_it_is_mended(name: str) -> None:
    rule, hook, way, expected = CASES[name]
    told = said(table(rule, hook=hook), way)
    assert (expected in told) if expected else told == ""
    if expected:
        assert "a rule in chain c of nft table inet t (handle 0): nft delete rule inet t c handle 0" in told


def test_a_stateful_firewall_lets_in_answers_and_vxlan_never_is_one() -> None:
    """A tunnel with one port on both ends is opened by what this host sends; VXLAN has another source port for each flow."""
    rules = table(ESTABLISHED, policy="drop", hook="input")
    assert f"UDP 8472 {IN}" in said(rules, VXLAN)
    assert "nft insert rule inet t c udp dport 8472 accept" in said(rules, VXLAN)
    assert said(rules, UDP) == said(rules, WIREGUARD) == said(rules, IP_IP) == ""
    assert f"UDP 51820 {IN}" in said(table(policy="drop", hook="input"), WIREGUARD)


def test_what_may_be_accepted_for_what_a_tunnel_carries_is_not_told() -> None:
    inner = {"payload": {"tunnel": "vxlan", "protocol": "ip", "field": "saddr"}}
    accepted = [port(8472), asks(inner, net("10.9.0.0/16")), {"accept": None}]
    assert said(table(accepted, [port(8472), DROP], hook="input"), VXLAN) == ""


@pytest.mark.parametrize(
    ("rules", "remedy"),
    [
        (
            table(policy="drop"),
            "nft insert rule inet t c ip saddr 10.5.7.0/24 accept && nft insert rule inet t c ip daddr 10.5.7.0/24 accept",
        ),
        (
            with_legacy(Ruleset(), 4, ["-P FORWARD DROP"]),
            "iptables-legacy -I FORWARD -s 10.5.7.0/24 -j ACCEPT && iptables-legacy -I FORWARD -d 10.5.7.0/24 -j ACCEPT",
        ),
    ],
)
def test_what_mends_a_policy_mends_it_for_all_containers_and_both_ways(rules: Ruleset, remedy: str) -> None:
    told = said(rules, HOST_GW)
    assert told.endswith(f": {remedy}")
    assert FROM in told
    assert TO in told


def test_forwarding_that_is_told_of_elsewhere_is_not_told_twice() -> None:
    rules = table(policy="drop")
    assert FROM in said(rules)
    told = replace(GROUND, told=True)
    assert said(rules, ground=told) == ""
    assert IN in said(table([port(8472), DROP], hook="input"), ground=told)


def test_without_a_bridge_nothing_is_forwarded_and_without_an_uplink_all_links_will_do() -> None:
    rules = table([DROP])
    assert said(rules, ground=replace(GROUND, bridge="")) == ""
    assert said(table([DROP], hook="input"), ground=replace(GROUND, uplink="")) == ""
    assert said(table([DROP], hook="input"), ground=replace(GROUND, own=(IPAddress("fd00::7"),))) == ""


def test_one_rule_is_told_once_however_much_it_drops() -> None:
    ways = [replace(VXLAN, theirs=IPNetwork(f"10.5.{n}.0/24"), outer=IPAddress(f"192.0.2.{n}")) for n in range(9, 14)]
    told = dropped(table([port(8472), DROP], hook="input"), list(passages(ways, GROUND)), "eth1")
    assert len(told) == 1
    assert f"UDP 8472 {IN} and UDP 8472 from 192.0.2.10 on eth1 (and 3 more), dropped by" in next(iter(told.values()))


def test_a_rule_about_one_peer_is_found_among_others() -> None:
    ways = [replace(VXLAN, theirs=IPNetwork(f"10.5.{n}.0/24"), outer=IPAddress(f"192.0.2.{n}")) for n in range(9, 12)]
    told = dropped(table([asks(ip("saddr"), "192.0.2.11"), DROP], hook="input"), list(passages(ways, GROUND)), "eth1")
    assert [text.partition(",")[0] for text in told.values()] == ["UDP 8472 from 192.0.2.11 on eth1"]


@pytest.mark.parametrize(
    ("family", "remedy"),
    [
        ("ip", "iptables -I INPUT -i eth1 -p udp --dport 8472 -j ACCEPT, and where your rules are kept"),
        ("inet", "nft insert rule inet filter INPUT udp dport 8472 accept"),  # what iptables accepts it drops all the same
    ],
)
def test_a_policy_of_nftables_own_table_filter_is_none_of_iptables(family: str, remedy: str) -> None:
    place = (family, "filter", "INPUT")
    assert said(Ruleset((Base(place, "input", 0, "drop"),), {place: ()})).endswith(f"{family} filter (policy drop): {remedy}")


@pytest.mark.parametrize(
    ("lines", "expected", "remedy"),
    [
        (
            ["-P INPUT DROP"],
            "chain INPUT of iptables-legacy (policy drop)",
            "iptables-legacy -I INPUT -p udp --dport 8472 -j ACCEPT",
        ),
        (["-P INPUT DROP", "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT"], "", ""),
        (
            ["-P INPUT ACCEPT", "-A INPUT -i lo -j ACCEPT", "-A INPUT -p udp -m udp --dport 8472 -j DROP"],
            "rule 2 of chain INPUT of iptables-legacy",
            "iptables-legacy -D INPUT 2",
        ),
        (
            ["-P FORWARD ACCEPT", "-P INPUT ACCEPT", "-A INPUT -i lo -j ACCEPT", "-A FORWARD -s 10.5.7.0/24 -j REJECT"],
            "rule 1 of chain FORWARD of iptables-legacy",
            "iptables-legacy -D FORWARD 1",
        ),
    ],
)
def test_rules_of_iptables_legacy_are_named_by_their_place(lines: list[str], expected: str, remedy: str) -> None:
    told = said(with_legacy(Ruleset(), 4, lines))
    assert (f"dropped by {expected}: {remedy}" in told) if expected else told == ""


def test_an_input_that_ufw_or_firewalld_closes_is_opened_by_them() -> None:
    ufw = table([{"jump": {"target": "ufw-reject-input"}}], hook="input", family="ip", **{"ufw-reject-input": [[DROP]]})
    renamed = Ruleset(
        tuple(replace(base, place=("ip", "filter", "INPUT")) for base in ufw.bases),
        {("ip", "filter", "INPUT" if place[2] == "c" else place[2]): _moved(held) for place, held in ufw.chains.items()},
    )
    assert "ufw allow in on eth1 to any port 8472 proto udp" in said(renamed)
    base = replace(table(policy="drop", hook="input").bases[0], place=("inet", "firewalld", "filter_INPUT"))
    assert "firewall-cmd --permanent --add-port=8472/udp" in said(Ruleset((base,), {}))


def _moved(rules: Any) -> list[Any]:
    return [replace(rule, place=("ip", "filter", "INPUT" if rule.place[2] == "c" else rule.place[2])) for rule in rules]


def test_of_thousands_of_rules_those_remain_that_may_matter() -> None:
    others = [[asks(ip("saddr"), f"198.51.{n // 250}.{n % 250}"), DROP] for n in range(2000)]
    named = [[asks(meta("iifname"), f"veth{n}"), DROP] for n in range(100)]
    kept: list[Any] = [
        [asks(ip("saddr"), "198.51.100.1", "!="), ACCEPT],
        [asks(meta("iifname"), "eth*"), ACCEPT],
        [asks(ip("daddr"), net("192.0.2.0/25")), ACCEPT],
        [asks(ip("saddr"), {"set": ["198.51.100.1"]}), ACCEPT],
    ]
    rules = table(*others, *named, *kept, [port(8472), DROP], hook="input")
    packets = [packet for each in passages([VXLAN], GROUND) for guise in each.guises for _hook, packet in guise]
    (left,) = narrowed(rules, packets).chains.values()
    assert [dict(rule.parts[0]) for rule in left] == [rule[0] for rule in [*kept, [port(8472)]]]
    assert f"UDP 8472 {IN}" in said(table(*others, *named, [port(8472), DROP], hook="input"))


OURS_FIRST = [
    ForwardAccept("nft", "FORWARD", "flannelpy", source=IPNetwork("10.5.0.0/16")),
    ForwardAccept("nft", "FORWARD", "flannelpy", destination=IPNetwork("10.5.0.0/16")),
]


@pytest.mark.parametrize(("put", "passes"), [(OURS_FIRST, True), (OURS_FIRST[:1], True), ([], False)])
@pytest.mark.parametrize("tool", ["nft", "legacy"])
def test_our_own_rules_stand_before_the_others(put: list[ForwardAccept], passes: bool, tool: Any) -> None:
    lines = ["-P FORWARD ACCEPT", "-A FORWARD -s 10.5.0.0/16 -j DROP", "-A FORWARD -j DROP"]
    place = ("ip", "filter", "FORWARD")
    rules = Ruleset((Base(place, "forward", 0, "accept"),), {place: (Rule(place, 1, (DROP,)),)})
    rules = with_legacy(Ruleset(), 4, lines) if tool == "legacy" else rules
    assert bool(said(with_accepts(rules, [replace(each, tool=tool) for each in put]))) != passes


def test_what_a_rule_of_ours_leaves_alone_is_left_alone() -> None:
    inside = ForwardAccept("nft", "DOCKER-USER", "flannelpy", IPNetwork("10.5.0.0/16"), IPNetwork("10.5.0.0/16"), not_in="docker0")
    place = ("ip", "filter", "DOCKER-USER")
    rules = with_accepts(Ruleset((Base(place, "forward", 0, "drop"),), {place: ()}), [inside])
    assert (FROM in said(rules), TO in said(rules)) == (True, False)
    assert with_accepts(Ruleset(), [inside]) == Ruleset()  # no such chain here
