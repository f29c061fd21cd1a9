"""Does a rule of the firewall do to a packet what we say? Rules as nft prints them in JSON, and as iptables -S does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress

from flannelpy.core.envelope import Envelope
from flannelpy.core.errors import MalformedError
from flannelpy.core.filter_match import Packet
from flannelpy.core.packet_filter import Rule, Ruleset, _Walk, judge, read

HERE, THERE = IPAddress("10.5.7.2"), IPAddress("10.5.9.2")
OUT = Packet(HERE, THERE, "docker0", "flannel.1")
BACK = Packet(THERE, HERE, "flannel.1", "docker0", states=frozenset({"established"}))
INNER = Envelope(port=8472, vni=1).transport(THERE, HERE)
ENCAPSULATED = Packet(
    IPAddress("192.0.2.9"), IPAddress("192.0.2.7"), "eth1", "", 17, 8472, 134, frozenset({"new", "established"}), INNER
)

DROP = {"drop": None}
ACCEPT = {"accept": None}


def asks(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def ip(field: str) -> dict[str, Any]:
    return {"payload": {"protocol": "ip", "field": field}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def payload(offset: int, length: int) -> dict[str, Any]:
    return {"payload": {"base": "th", "offset": offset, "len": length}}


def net(text: str) -> dict[str, Any]:
    address, _, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}


def table(*rules: list[Any], policy: str = "accept", family: str = "inet", hook: str = "forward", **others: Any) -> Ruleset:
    """One base chain ``c`` of table ``t`` with these rules; ``others``: more chains (lists) and sets (tuples), by name."""
    items: list[Any] = [{"table": {"family": family, "name": "t"}}]
    items.append(
        {"chain": {"family": family, "table": "t", "name": "c", "type": "filter", "hook": hook, "prio": 0, "policy": policy}}
    )
    chains = {"c": list(rules), **{name: held for name, held in others.items() if isinstance(held, list)}}
    for name, held in chains.items():
        for number, expr in enumerate(held):
            items.append({"rule": {"family": family, "table": "t", "chain": name, "handle": number, "expr": expr}})
    for name, held in others.items():
        if isinstance(held, tuple):
            items.append({"set": {"family": family, "table": "t", "name": name, "elem": list(held)}})
    return read(json.dumps({"nftables": items}))


def update(*each: dict[str, Any]) -> dict[str, Any]:
    """A statement that puts the source into a set, with these beside it."""
    return {"set": {"op": "update", "elem": ip("saddr"), "set": "@seen", **({"stmt": list(each)} if each else {})}}


def verdicts(key: dict[str, Any], *pairs: list[Any]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": list(pairs)}}}


STATE = {"ct": {"key": "state"}}
ETHER = {"payload": {"protocol": "ether", "field": "saddr"}}
MARK = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 16}}
FIB = {"fib": {"result": "type", "flags": ["daddr"]}}
RULES = {
    "nothing": ([], OUT, "passes"),
    "a source": ([[asks(ip("saddr"), net("10.5.7.0/24")), DROP]], OUT, "dropped"),
    "another source": ([[asks(ip("saddr"), net("10.5.8.0/24")), DROP]], OUT, "passes"),
    "not that source": ([[asks(ip("saddr"), net("10.5.8.0/24"), "!="), DROP]], OUT, "dropped"),
    "an address": ([[asks(ip("daddr"), "10.5.9.2"), {"reject": None}]], OUT, "dropped"),
    "a range": ([[asks(ip("daddr"), {"range": ["10.5.9.1", "10.5.9.3"]}), DROP]], OUT, "dropped"),
    "one of several": ([[asks(ip("daddr"), {"set": ["10.5.1.1", net("10.5.9.0/24")]}), DROP]], OUT, "dropped"),
    "none of several": ([[asks(ip("daddr"), {"set": ["10.5.1.1", net("10.5.2.0/24")]}), DROP]], OUT, "passes"),
    "accepted before": ([[asks(meta("iifname"), "docker0"), ACCEPT], [DROP]], OUT, "passes"),
    "accepted the other way only": ([[asks(meta("iifname"), "docker0"), ACCEPT], [DROP]], BACK, "dropped"),
    "a name with a star": ([[asks(meta("oifname"), "flannel*"), DROP]], OUT, "dropped"),
    "established": ([[asks(STATE, ["established", "related"], "in"), ACCEPT], [DROP]], BACK, "passes"),
    "new": ([[asks(STATE, ["established", "related"], "in"), ACCEPT], [DROP]], OUT, "dropped"),
    "either": ([[asks(STATE, "established", "in"), ACCEPT], [DROP]], ENCAPSULATED, "doubt"),
    "icmp": ([[asks(meta("l4proto"), "icmp"), DROP]], OUT, "dropped"),
    "an echo request": ([[asks({"payload": {"protocol": "icmp", "field": "type"}}, "echo-request"), DROP]], OUT, "dropped"),
    "a port of another protocol": (
        [[asks({"payload": {"protocol": "tcp", "field": "dport"}}, 22, "!="), DROP]],
        OUT,
        "passes",
    ),
    "the port": ([[asks({"payload": {"protocol": "udp", "field": "dport"}}, 8472), DROP]], ENCAPSULATED, "dropped"),
    "another port": ([[asks({"payload": {"protocol": "udp", "field": "dport"}}, 8473), DROP]], ENCAPSULATED, "passes"),
    "too long": ([[asks(meta("length"), 1400, ">"), DROP]], OUT.larger(1400), "dropped"),
    "not too long": ([[asks(meta("length"), 1400, ">"), DROP]], OUT, "passes"),
    "a mark": ([[asks({"&": [meta("mark"), 16384]}, 16384), DROP]], OUT, "passes"),
    "a mark that a rule before has given": ([[MARK], [asks(meta("mark"), 16), ACCEPT], [DROP]], OUT, "doubt"),
    "a mark that a rule has given to others": (
        [[asks(meta("iifname"), "eth9"), MARK], [asks(meta("mark"), 16), ACCEPT], [DROP]],
        OUT,
        "dropped",
    ),
    "no mark, which a rule before has given": ([[MARK], [asks(meta("mark"), 16, "!="), DROP]], OUT, "doubt"),
    "iptables' MARK": (
        [[{"xt": {"type": "target", "name": "MARK"}}], [asks({"&": [meta("mark"), 1]}, 1), ACCEPT], [DROP]],
        OUT,
        "doubt",
    ),
    "not tracked": ([[{"notrack": None}], [asks(STATE, ["established", "untracked"], "in"), ACCEPT], [DROP]], OUT, "doubt"),
    "iptables' CT": (
        [[{"xt": {"type": "target", "name": "CT"}}], [asks(STATE, "untracked", "in"), ACCEPT], [DROP]],
        OUT,
        "doubt",
    ),
    "tracked": ([[asks(STATE, ["established", "untracked"], "in"), ACCEPT], [DROP]], OUT, "dropped"),
    "a frame's sender": ([[asks(ETHER, "02:00:00:00:00:01"), ACCEPT], [DROP]], ENCAPSULATED, "doubt"),
    "a frame's sender, of what is forwarded": ([[asks(ETHER, "02:00:00:00:00:01"), ACCEPT], [DROP]], OUT, "doubt"),
    "the source of what a tunnel carries": (
        [[asks({"payload": {"tunnel": "vxlan", "protocol": "ip", "field": "saddr"}}, net("10.5.0.0/16")), ACCEPT], [DROP]],
        ENCAPSULATED,
        "doubt",
    ),
    "a rate for each address": ([[update({"limit": {"rate": 1000, "per": "second", "inv": True}}), DROP]], OUT, "doubt"),
    "a number of flows for each address": ([[update({"ct count": {"val": 20, "inv": True}}), DROP]], OUT, "doubt"),
    "each address counted": ([[update({"counter": None}), DROP]], OUT, "dropped"),
    "each address": ([[update(), DROP]], OUT, "dropped"),
    "a meter": ([[{"meter": {"key": ip("saddr"), "stmt": {"limit": {"rate": 1}}, "name": "m"}}, DROP]], OUT, "doubt"),
    "all others of a map, accepted": ([[verdicts(ip("saddr"), [net("10.9.0.0/16"), DROP], ["*", ACCEPT])], [DROP]], OUT, "passes"),
    "all others of a map, dropped": ([[verdicts(ip("saddr"), [net("10.9.0.0/16"), ACCEPT], ["*", DROP])]], OUT, "dropped"),
    "not among all others of a map": ([[verdicts(ip("saddr"), [net("10.5.0.0/16"), ACCEPT], ["*", DROP])]], OUT, "passes"),
    "all other states of a map": ([[verdicts(STATE, ["established", ACCEPT], ["*", DROP])]], OUT, "dropped"),
    "all others of a set": ([[asks(ip("saddr"), {"set": ["10.9.0.1", "*"]}), DROP]], OUT, "dropped"),
    "an element with a limit": (
        [[asks(ip("saddr"), {"set": [{"elem": {"val": "10.5.7.2", "limit": {"rate": 1, "per": "second"}}}]}), DROP]],
        OUT,
        "doubt",
    ),
    "the fib": ([[asks({"fib": {"result": "type"}}, "local"), DROP]], OUT, "doubt"),
    "a limit": ([[{"limit": {"rate": 1, "per": "second"}}, ACCEPT], [DROP]], OUT, "doubt"),
    "a match that nft does not tell": ([[{"xt": {"type": "match", "name": "addrtype"}}, DROP]], OUT, "doubt"),
    "for this host, of what comes to a port here": ([[asks(FIB, "local"), DROP]], ENCAPSULATED, "dropped"),
    "not for this host, of what comes to a port here": ([[asks(FIB, "local", "!="), DROP]], ENCAPSULATED, "passes"),
    "for this host, of what is forwarded": ([[asks(FIB, "local"), DROP]], OUT, "doubt"),
    "perhaps returned from": ([[{"limit": {"rate": 1, "per": "second"}}, {"return": None}], [DROP]], OUT, "doubt"),
    "firewalld's first rules": ([[asks({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT], [DROP]], OUT, "dropped"),
    "iptables' conntrack, new": ([[{"xt": {"type": "match", "name": "conntrack"}}, ACCEPT], [DROP]], OUT, "doubt"),
    "iptables' conntrack, established": ([[{"xt": {"type": "match", "name": "conntrack"}}, ACCEPT], [DROP]], BACK, "doubt"),
    "none of these states": ([[asks(STATE, ["invalid", "established"], "!"), DROP]], OUT, "dropped"),
    "none of these states, one of which it is": ([[asks(STATE, ["invalid", "established"], "!"), DROP]], BACK, "passes"),
    "not translated": ([[asks({"ct": {"key": "status"}}, "dnat", "!"), DROP]], OUT, "dropped"),
    "iptables' REJECT": ([[{"counter": None}, {"xt": {"type": "target", "name": "REJECT"}}]], OUT, "dropped"),
    "iptables' NFQUEUE": ([[{"xt": {"type": "target", "name": "NFQUEUE"}}]], OUT, "doubt"),
    "to a program": ([[{"queue": {"num": 0}}]], OUT, "doubt"),
    "iptables' target, of which an old nft says nothing": ([[{"counter": None}, {"xt": None}]], OUT, "doubt"),
    "iptables' LOG": ([[{"xt": {"type": "target", "name": "LOG"}}]], OUT, "passes"),
    "IPv6's address": ([[asks({"payload": {"protocol": "ip6", "field": "saddr"}}, "fd00::1", "!="), DROP]], OUT, "passes"),
    "a VNI": ([[asks(payload(96, 24), 1), DROP]], ENCAPSULATED, "dropped"),
    "the inner source": ([[asks(payload(336, 24), 0x0A0509), DROP]], ENCAPSULATED, "dropped"),
    "beyond what is known": ([[asks(payload(3360, 8), 0), DROP]], ENCAPSULATED, "doubt"),
    "a map by source": (
        [[{"vmap": {"key": ip("saddr"), "data": {"set": [["10.5.1.1", ACCEPT], ["10.5.7.2", DROP]]}}}]],
        OUT,
        "dropped",
    ),
    "a map by state": ([[{"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT], ["new", DROP]]}}}]], OUT, "dropped"),
    "a map that is not told": ([[{"vmap": {"key": STATE, "data": "@gone"}}]], OUT, "doubt"),
    "a map that says to go on": (
        [[{"vmap": {"key": STATE, "data": {"set": [["new", {"continue": None}]]}}}], [DROP]],
        OUT,
        "dropped",
    ),
    "a map without it": ([[{"vmap": {"key": ip("saddr"), "data": {"set": [["10.5.1.1", DROP]]}}}]], OUT, "passes"),
}


def outcome(rules: Ruleset, packet: Packet, hook: Any = "forward") -> str:
    ruling = judge(rules, hook, packet)
    assert not (ruling.dropped and ruling.doubts)
    return "dropped" if ruling.dropped else "doubt" if ruling.doubts else "passes"


@pytest.mark.parametrize("name", RULES)
def test_a_rule(name: str) -> None:
    rules, packet, expected = RULES[name]
    assert outcome(table(*rules), packet) == expected


def test_a_policy_drops_what_no_rule_accepts() -> None:
    ruling = judge(table(policy="drop", family="ip"), "forward", OUT)
    assert ruling.dropped == "chain c of nft table ip t (policy drop)"
    assert ruling.remedy == "nft insert rule ip t c ip saddr 10.5.7.2 accept"
    assert outcome(table([ACCEPT], policy="drop"), OUT) == "passes"
    assert outcome(table(policy="drop", family="ip6"), OUT) == "passes"
    assert outcome(table(policy="drop"), OUT, "input") == "passes"


def test_chains_of_chains() -> None:
    source = asks(ip("saddr"), net("10.5.7.0/24"))
    assert outcome(table([{"jump": {"target": "more"}}], [DROP], more=[[ACCEPT]]), OUT) == "passes"
    assert outcome(table([{"jump": {"target": "more"}}], [DROP], more=[[source, {"return": None}], [ACCEPT]]), OUT) == "dropped"
    assert outcome(table([{"goto": {"target": "more"}}], [DROP], more=[]), OUT) == "passes"
    assert outcome(table([{"goto": {"target": "more"}}], policy="drop", more=[]), OUT) == "dropped"
    assert outcome(table([{"jump": {"target": "c"}}]), OUT) == "passes"
    dropped = judge(table([{"jump": {"target": "more"}}], more=[[ACCEPT], [DROP]], policy="drop"), "forward", BACK)
    assert not dropped.dropped
    found = judge(table([{"jump": {"target": "more"}}], more=[[source, DROP]]), "forward", OUT)
    assert found.remedy == "nft delete rule inet t more handle 0"


@pytest.mark.parametrize("verdict", [ACCEPT, {"return": None}, {"jump": {"target": "more"}}, {"goto": {"target": "more"}}])
def test_a_map_whose_key_is_not_known_may_keep_a_packet_from_what_comes_behind(verdict: dict[str, Any]) -> None:
    """ENCAPSULATED may be new or established: what a map says of one of them is no more certain than a match of it."""
    by_map = [{"vmap": {"key": STATE, "data": {"set": [["established", verdict], ["invalid", DROP]]}}}]
    by_match = [asks(STATE, "established", "in"), verdict]
    for rule in (by_map, by_match):
        assert outcome(table(rule, [DROP], more=[[ACCEPT]]), ENCAPSULATED) == "doubt"
        assert outcome(table(rule, [DROP], more=[[DROP]], policy="drop"), ENCAPSULATED) == (
            "doubt" if verdict == ACCEPT else "dropped"
        )
        assert outcome(table(rule, [ACCEPT], more=[[ACCEPT]], policy="drop"), ENCAPSULATED) == (
            "doubt" if verdict == {"return": None} else "passes"
        )


def test_a_doubt_names_what_may_drop_it_and_what_may_keep_it_from_that() -> None:
    perhaps = {"limit": {"rate": 1, "per": "second"}}
    first, second = (f"a rule in chain c of nft table inet t (handle {handle})" for handle in (0, 1))
    assert judge(table([perhaps, ACCEPT], [DROP]), "forward", OUT).doubts == (f"{second}, unless {first} accepts it",)
    assert judge(table([perhaps, {"return": None}], [DROP]), "forward", OUT).doubts == (f"{second}, unless {first} leads past it",)
    assert judge(table([perhaps, DROP], [ACCEPT]), "forward", OUT).doubts == (first,)
    assert judge(table([perhaps, DROP], [DROP]), "forward", OUT).dropped == second
    by_policy = judge(table([{"return": None}], policy="drop"), "forward", OUT)
    assert by_policy.dropped == "chain c of nft table inet t (policy drop)"
    told = judge(table([perhaps, {"return": None}], [perhaps, ACCEPT], policy="drop"), "forward", OUT).doubts
    assert told == (f"chain c of nft table inet t (policy drop), unless {second} accepts it",)


CONDITIONS = {True: asks(ip("saddr"), "10.5.7.2"), False: asks(ip("saddr"), "10.5.7.3"), None: {"limit": {"rate": 1}}}
VERDICTS: list[dict[str, Any]] = [ACCEPT, DROP, {"return": None}, {"counter": None}]


def rules_of(*below: str) -> st.SearchStrategy[list[tuple[bool | None, dict[str, Any]]]]:
    """Some rules that may lead to these chains."""
    leading = [{word: {"target": name}} for name in below for word in ("jump", "goto")]
    return st.lists(st.tuples(st.sampled_from([*CONDITIONS]), st.sampled_from([*VERDICTS, *leading])), max_size=4)


def once(chains: dict[str, Any], name: str, chances: Iterator[bool]) -> str:
    """What the kernel does with one packet, where each condition that is not known holds as it happens."""
    for condition, verdict in chains[name]:
        if not (next(chances) if condition is None else condition):
            continue
        ((word, held),) = verdict.items()
        if word in ("accept", "drop"):
            return str(word)
        if word == "return":
            return ""
        if word in ("jump", "goto"):
            there = once(chains, held["target"], chances)
            if there or word == "goto":
                return there
    return ""


def every(chains: dict[str, Any], policy: str) -> set[str]:
    """All that may become of a packet."""
    found: set[str] = set()
    ahead: list[tuple[bool, ...]] = [()]
    while ahead:
        chances = ahead.pop()
        try:
            found.add(once(chains, "c", iter(chances)) or policy)
        except StopIteration:
            ahead += [(*chances, True), (*chances, False)]
    return found


@given(rules_of("a", "b"), rules_of("b"), rules_of(), st.sampled_from(["accept", "drop"]))
def test_what_is_certain_is_what_happens_however_the_unknown_falls_out(c: Any, a: Any, b: Any, policy: str) -> None:
    chains = {"c": c, "a": a, "b": b}
    listed = {name: [[CONDITIONS[condition], verdict] for condition, verdict in held] for name, held in chains.items()}
    got = outcome(table(*listed.pop("c"), policy=policy, **listed), OUT)
    results = every(chains, policy)
    assert got == ("passes" if "drop" not in results else "dropped" if results == {"drop"} else "doubt")


def test_sets_hold_addresses_prefixes_ranges_and_pairs() -> None:
    in_set = [asks(ip("saddr"), "@who"), DROP]
    assert outcome(table(in_set, who=("10.5.1.1", "10.5.7.2")), OUT) == "dropped"
    assert outcome(table(in_set, who=({"elem": {"val": net("10.5.7.0/24"), "timeout": 5}},)), OUT) == "dropped"
    assert outcome(table(in_set, who=()), OUT) == "passes"
    assert outcome(table(in_set), OUT) == "doubt"
    pair = [asks({"concat": [ip("saddr"), payload(336, 24)]}, "@pairs"), ACCEPT]
    assert outcome(table(pair, [DROP], pairs=({"concat": ["192.0.2.9", 0x0A0509]},)), ENCAPSULATED) == "passes"
    assert outcome(table(pair, [DROP], pairs=({"concat": ["192.0.2.9", 0x0A0508]},)), ENCAPSULATED) == "dropped"
    ranges = ({"concat": [net("192.0.2.0/24"), {"range": [0x0A0500, 0x0A05FF]}]},)
    assert outcome(table(pair, [DROP], pairs=ranges), ENCAPSULATED) == "passes"


def test_numbers_of_64_bits_are_told_with_a_sign_and_longer_ones_not_at_all() -> None:
    here, there = IPAddress("fd00:10:1:255a::2"), IPAddress("fd00:10:1:a9ec::2")
    inner = Envelope(port=8472, vni=1).transport(there, here)
    packet = replace(ENCAPSULATED, source=IPAddress("fd00:50::c"), destination=IPAddress("fd00:50::b"), transport=inner)
    told = (int(there) >> 64) - (1 << 64)
    assert told < 0
    assert outcome(table([asks(payload(304, 64), told), DROP]), packet) == "dropped"
    assert outcome(table([asks(payload(304, 64), told + 1), DROP]), packet) == "passes"
    assert outcome(table([asks(payload(304, 64), {"range": [told - 1, told + 1]}), DROP]), packet) == "dropped"
    assert outcome(table([asks(payload(304, 128), 5), DROP]), packet) == "doubt"


def test_every_table_of_the_hook_has_a_say() -> None:
    both = json.dumps(
        {
            "nftables": [
                {
                    "chain": {
                        "family": "ip",
                        "table": name,
                        "name": "c",
                        "type": "filter",
                        "hook": "forward",
                        "prio": 0,
                        "policy": policy,
                    }
                }
                for name, policy in (("a", "accept"), ("b", "drop"))
            ]
        }
    )
    assert judge(read(both), "forward", OUT).dropped == "chain c of nft table ip b (policy drop)"


@pytest.mark.parametrize("text", ["{", "[]", '{"nftables": [{"chain": {}}]}', '{"nftables": 5}'])
def test_what_is_no_list_of_rules_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(MalformedError):
        read(text)
    assert read("") == Ruleset()


@pytest.mark.parametrize(("chains", "each"), [(2, 5), (6, 30), (12, 8)])
@pytest.mark.parametrize("word", ["jump", "goto"])
def test_a_chain_that_many_rules_may_lead_to_is_gone_through_once(
    monkeypatch: pytest.MonkeyPatch, chains: int, each: int, word: str
) -> None:
    """By unknown matches, into the next and the next: the ways through them are more than there is memory for."""
    looked_at, truth = list[Rule](), _Walk._truth

    def counted(walk: _Walk, rule: Rule) -> bool | None:
        looked_at.append(rule)
        return truth(walk, rule)

    monkeypatch.setattr(_Walk, "_truth", counted)
    unknown = {"xt": {"type": "match", "name": "foo"}}
    names = [f"c{number}" for number in range(chains)]
    others = {name: [[unknown, {word: {"target": then}}]] * each for name, then in pairwise(names)}
    rules = table(*[[unknown, {word: {"target": names[0]}}]] * each, [DROP], **others, **{names[-1]: [[unknown, ACCEPT]] * each})
    ruling = judge(rules, "forward", OUT)
    assert ruling.dropped == ""
    assert ruling.doubts
    assert len(looked_at) <= (chains + 1) * each + 1


@pytest.mark.parametrize(
    ("hook", "prio", "kind", "hooked", "expected"),
    [
        ("prerouting", -150, "filter", "forward", "doubt"),
        ("prerouting", -100, "nat", "forward", "doubt"),
        ("prerouting", -150, "filter", "postrouting", "doubt"),
        ("forward", -150, "filter", "postrouting", "doubt"),
        ("forward", -150, "filter", "forward", "doubt"),
        ("forward", 150, "filter", "forward", "dropped"),
        ("postrouting", 100, "nat", "forward", "dropped"),
        ("output", -150, "route", "forward", "dropped"),
        ("output", -150, "route", "postrouting", "dropped"),
    ],
)
def test_a_mark_counts_from_where_it_is_given(hook: str, prio: int, kind: str, hooked: Any, expected: str) -> None:
    """``iifname docker0 mark set 16`` in a chain of its own, and ``mark 16 accept; drop`` in another."""
    chains = [("m", hook, prio, kind, "accept"), ("c", hooked, 0, "filter", "drop")]
    items: list[Any] = [
        {"chain": {"family": "inet", "table": "t", "name": name, "type": type_, "hook": at, "prio": priority, "policy": policy}}
        for name, at, priority, type_, policy in chains
    ]
    for name, expr in (("m", [asks(meta("iifname"), "docker0"), MARK]), ("c", [asks(meta("mark"), 16), ACCEPT])):
        items.append({"rule": {"family": "inet", "table": "t", "chain": name, "handle": 1, "expr": expr}})
    rules = read(json.dumps({"nftables": items}))
    assert outcome(rules, OUT, hooked) == expected
    assert outcome(rules, BACK, hooked) == "dropped"


def test_states_may_be_in_a_set_with_a_name() -> None:
    rule = [asks(STATE, "@known"), ACCEPT]
    assert outcome(table(rule, policy="drop", known=("new",)), OUT) == "passes"
    assert outcome(table(rule, policy="drop", known=("established",)), OUT) == "dropped"
    assert outcome(table(rule, policy="drop"), OUT) == "doubt"


def test_what_drops_in_mangles_chain_at_hook_output_is_seen() -> None:
    sent = replace(ENCAPSULATED, arrives="", leaves="eth1")
    items: list[Any] = [
        {"chain": {"family": "ip", "table": "mangle", "name": "OUTPUT", "type": "route", "hook": "output", "prio": -150}},
        {"rule": {"family": "ip", "table": "mangle", "chain": "OUTPUT", "handle": 4, "expr": [DROP]}},
    ]
    assert judge(read(json.dumps({"nftables": items})), "output", sent).remedy == "nft delete rule ip mangle OUTPUT handle 4"


@pytest.mark.parametrize(("marks", "looks"), [(["mangle"], 0), (["mangle", "filter"], 1), ([], 0)])
def test_of_the_hooks_before_only_tables_that_mark_are_walked(
    marks: list[str], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a host's thousands of rules few give a mark: none is to be asked for more than once because of them."""
    hooks = {"mangle": "prerouting", "filter": "forward", "last": "postrouting"}
    items: list[dict[str, Any]] = []
    for name, hook in hooks.items():
        place = {"family": "ip", "table": name, "chain": "c"}
        items.append({"chain": {"family": "ip", "table": name, "name": "c", "type": "filter", "hook": hook, "prio": 0}})
        items.append({"rule": {**place, "handle": 1, "expr": [MARK] if name in marks else [{"counter": None}]}})
    rules, walked = read(json.dumps({"nftables": items})), list[str]()
    chain = _Walk.chain
    monkeypatch.setattr(_Walk, "chain", lambda walk, place, depth: (walked.append(place[1]), chain(walk, place, depth))[1])
    assert judge(rules, "postrouting", OUT) == judge(rules, "forward", OUT)
    assert (walked.count("last"), walked.count("filter")) == (1, looks + 1)
