"""Is a rule of iptables-nft taken for what it asks? nft's JSON and text of one host, and of rules in any form.

The host (tests/unit/data/iptables_nft.*, iptables 1.8.9, nft 1.0.6): RHEL's INPUT, kube-proxy's FORWARD, and ufw's way to ask
whether a packet is for this host.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.envelope import Envelope
from flannelpy.core.filter_match import UDP, Packet
from flannelpy.core.firewall_drops import Ground, Way, dropped, passages
from flannelpy.core.packet_filter import Base, Rule, Ruleset, judge, read
from flannelpy.core.xt_matches import untold, with_text
from tests.unit.test_packet_filter import BACK, DROP, OUT, outcome

DATA = Path(__file__).parent / "data"
TABLE = ("ip", "filter")
NAMED = read((DATA / "iptables_nft.json").read_text().replace("\n", ""))
HOST = with_text(NAMED, TABLE, (DATA / "iptables_nft.txt").read_text())
COMES = Packet(IPAddress("192.0.2.2"), IPAddress("192.0.2.1"), "eth1", protocol=UDP, port=8472)


def established(packet: Packet) -> Packet:
    return replace(packet, states=frozenset({"established"}))


@pytest.mark.parametrize(
    ("hook", "packet", "expected"),
    [
        ("input", COMES, "passes"),
        ("input", replace(COMES, port=8473), "dropped"),
        ("input", established(replace(COMES, port=8473)), "passes"),
        ("input", replace(COMES, port=22), "dropped"),  # open for TCP
        ("input", replace(COMES, port=51820), "dropped"),
        ("forward", OUT, "passes"),
        ("forward", BACK, "passes"),
        ("forward", replace(OUT, states=frozenset({"invalid"})), "dropped"),
    ],
)
def test_a_real_host(hook: str, packet: Packet, expected: str) -> None:
    assert outcome(HOST, packet, hook) == expected
    if packet.port not in (22, 8473):
        assert outcome(NAMED, packet, hook) != "dropped", "of what is only named nothing is known"


def test_a_real_host_whose_port_is_closed_is_told_why() -> None:
    by = "a rule in chain INPUT of nft table ip filter (handle 10)"
    assert judge(HOST, "input", replace(COMES, port=51820)).dropped == by  # ufw-not-local returns what is for this host
    assert judge(HOST, "input", replace(COMES, port=8473)).dropped == by


def test_the_agent_does_not_call_an_open_port_closed() -> None:
    ground = Ground("eth1", (IPAddress("192.0.2.1"),), "docker0", 1450)
    for port, words in ((8472, ""), (8473, "UDP 8473 from 192.0.2.2")):
        envelope = Envelope(port=port, vni=1)
        way = Way(IPNetwork("10.5.7.0/24"), IPNetwork("10.5.9.0/24"), "flannel.1", envelope, IPAddress("192.0.2.2"))
        said = "; ".join(dropped(HOST, list(passages([way], ground)), "eth1").values())
        assert said.startswith(words) if words else not said
        assert not dropped(NAMED, list(passages([way], ground)), "eth1")


def test_only_what_filters_and_is_not_told_is_listed_once_more() -> None:
    assert untold(NAMED) == [TABLE]
    assert untold(HOST) == []
    assert untold(replace(NAMED, bases=())) == []
    assert untold(replace(NAMED, chains={place: [] for place in NAMED.chains})) == []


# ------------------------------------------------------------------------------------------------------ rules in any form

PLACE = (*TABLE, "INPUT")
STATES = ("new", "established", "related", "invalid", "untracked")


def xt(name: str) -> dict[str, dict[str, str]]:
    return {"xt": {"type": "match", "name": name}}


def one_rule(text: str, *names: str, other: str = "{}") -> Ruleset:
    """A rule that drops, by handle 7, and how nft prints it; ``other``: a part more, in JSON."""
    rule = Rule(PLACE, 7, (*(xt(name) for name in names), json.loads(other), DROP))
    rules = Ruleset((Base(PLACE, "input", 0, "accept"),), {PLACE: [rule]})
    listed = f"table ip filter {{ # handle 1\n\tchain INPUT {{ # handle 7\n\t\t{text} counter drop # handle 7\n\t}}\n}}\n"
    return with_text(rules, TABLE, listed)


asked = st.tuples(st.sampled_from(("conntrack", "state")), st.sets(st.sampled_from(STATES), min_size=1), st.booleans())


@given(
    st.lists(asked, min_size=1, max_size=3),
    st.sets(st.sampled_from(STATES), min_size=1),
    st.sampled_from(("!", "!=")),
    st.sampled_from(("", 'iifname "ct state new" ', "meta l4proto 17 ", " ")),
    st.sampled_from(("", ' comment "ct state invalid # handle 7"', ' log prefix "fib daddr type local"')),
)
def test_states_are_those_of_the_text(
    matches: list[tuple[str, set[str], bool]], states: set[str], sign: str, before: str, behind: str
) -> None:
    """However many matches, each of any states, negated or not; what stands in quotes is nobody's match."""
    text = " ".join(f"ct state {f'{sign} ' if no else ''}{','.join(sorted(values))}" for _name, values, no in matches)
    rules = one_rule(f"{before}{text}{behind}", *(name for name, _values, _no in matches))
    held = {state: all((state in values) != no for _name, values, no in matches) for state in STATES}
    packet = replace(COMES, states=frozenset(states))
    each = {held[state] for state in states}
    got = outcome(rules, packet, "input")
    if len(states) == 1 or len(matches) == 1:
        assert got == ("doubt" if len(each) > 1 else "dropped" if each == {True} else "passes")
    else:  # one by one each may be in doubt where all together are not
        assert got == "doubt" or each == {got == "dropped"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ("conntrack",)),
        ("xt match conntrack", ("conntrack",)),
        ('xt match "state"', ("state",)),
        ("ct status dnat", ("conntrack",)),  # --ctstate DNAT,NEW
        ("ct status assured", ("conntrack",)),
        ("ct state new ct original protocol 17", ("conntrack",)),
        ("ct direction original ct state new", ("conntrack",)),
        ("ct state new", ("conntrack", "conntrack")),
        ("ct state new xt match conntrack", ("conntrack", "conntrack")),
        ("ct state new ct state new", ("conntrack",)),
        ("ct state 0x8", ("conntrack",)),
        ("ct state { new, established }", ("conntrack",)),
        ("ct state new,dnat", ("conntrack",)),
        ("ct state new | established", ("state",)),
        ("fib daddr type local . iif", ("addrtype",)),
        ("ct statement new", ("state",)),
        ('ct state new comment "half', ("state",)),
        ("fib saddr type local", ("addrtype",)),  # also where it was asked for --dst-type beside that
        ("fib daddr . iif type local", ("addrtype",)),
        ("fib daddr type local fib saddr type local", ("addrtype",)),
        ("fib daddr type { local, elsewhere }", ("addrtype",)),
        ("xt match addrtype", ("addrtype",)),
        ("ct state new", ("conntrack", "recent")),
        ("", ("a match of tomorrow",)),
    ],
)
def test_what_cannot_be_read_is_not_known(text: str, names: tuple[str, ...]) -> None:
    assert outcome(one_rule(text, *names), COMES, "input") == "doubt"


def test_what_is_known_of_several_is_enough_where_it_does_not_hold() -> None:
    assert outcome(one_rule("ct state established ct status assured", "conntrack"), COMES, "input") == "passes"
    assert outcome(one_rule("ct state established", "conntrack", "recent"), COMES, "input") == "passes"


def test_words_of_nfts_own_matches_are_not_taken_for_those_of_iptables() -> None:
    mark = '{"match": {"op": "==", "left": {"ct": {"key": "mark"}}, "right": 5}}'
    assert outcome(one_rule("ct mark 5 ct state established", "conntrack", other=mark), COMES, "input") == "doubt"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fib daddr type local", "dropped"),
        ("fib daddr type != local", "passes"),
        ("fib daddr type multicast", "passes"),
        ("fib daddr type { local, broadcast }", "dropped"),
        ("fib daddr type != { local, broadcast }", "passes"),
        ("fib daddr type != { multicast, broadcast }", "dropped"),
    ],
)
def test_what_comes_to_a_port_here_is_for_this_host(text: str, expected: str) -> None:
    assert outcome(one_rule(text, "addrtype"), COMES, "input") == expected


def test_a_table_that_is_gone_by_then_and_one_of_another_name_tell_nothing() -> None:
    text = (DATA / "iptables_nft.txt").read_text()
    assert with_text(NAMED, ("ip6", "filter"), text) == NAMED
    assert outcome(with_text(NAMED, TABLE, ""), COMES, "input") == outcome(NAMED, COMES, "input") == "doubt"
