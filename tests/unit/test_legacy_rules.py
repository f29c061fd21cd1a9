"""Is a line of ``iptables -S`` taken for what it says? Each option, negated or not, with as many values as it has, in any order."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress

from flannelpy.core.filter_match import UDP, Packet
from flannelpy.core.packet_filter import Base, Rule, Ruleset, judge
from flannelpy.kernel.forward import LINES, Forward
from flannelpy.kernel.legacy_rules import with_legacy
from flannelpy.kernel.nft import Nft
from tests.unit.test_packet_filter import BACK, OUT, outcome

COMES = Packet(IPAddress("192.0.2.2"), IPAddress("192.0.2.1"), "eth1", protocol=UDP, port=8472)


LEGACY = {
    "-P FORWARD DROP": "dropped",
    "-P FORWARD ACCEPT": "passes",
    "-A FORWARD -s 10.5.7.0/24 -j DROP": "dropped",
    "-A FORWARD ! -s 10.5.7.0/24 -j DROP": "passes",
    "-A FORWARD -d 10.5.9.2/32 -i docker0 -j REJECT --reject-with icmp-port-unreachable": "dropped",
    "-A FORWARD -i eth+ -j DROP": "passes",
    "-A FORWARD -i docker+ -j DROP": "dropped",
    "-A FORWARD -p icmp -j DROP": "dropped",
    "-A FORWARD -p udp -m udp --dport 53:100 -j DROP": "passes",
    "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j DROP": "passes",
    "-A FORWARD -m conntrack --ctstate NEW -j DROP": "dropped",
    "-A FORWARD -m conntrack --ctstate ESTABLISHED,UNTRACKED -j DROP": "doubt",
    '-A FORWARD -s 10.5.7.0/24 -m comment --comment "a b" -j DROP': "dropped",
    "-A FORWARD -m statistic --mode random --probability 0.5 -j DROP": "doubt",
    "-A FORWARD -s broken -j DROP": "doubt",
    '-A FORWARD -m comment --comment "unclosed -j DROP': "doubt",
    "-A FORWARD ! -d 10.5.8.0/24 ! -i eth+ ! -p udp -j DROP": "dropped",
    "-A FORWARD ! -o flannel.1 -j DROP": "passes",
    "-A FORWARD -s 10.5.0.2/255.255.0.255 -j DROP": "doubt",
    "-A FORWARD -m conntrack ! --ctstate INVALID -j DROP": "dropped",
    "-A FORWARD -m conntrack ! --ctstate NEW,INVALID -j DROP": "passes",
    "-A FORWARD -m state ! --state RELATED,ESTABLISHED -j DROP": "dropped",
    "-A FORWARD -m conntrack --ctstate DNAT -j DROP": "passes",
    "-A FORWARD -m conntrack --ctstate NEW --ctstatus ASSURED -j DROP": "doubt",
    "-A FORWARD -m conntrack ! --ctstatus ASSURED -j DROP": "doubt",
    "-A FORWARD -m set --match-set peers src,dst -j DROP": "doubt",
    "-A FORWARD -m set ! --match-set peers src -j DROP": "doubt",
    "-A FORWARD -f -j DROP": "doubt",
    "-A FORWARD ! -f -s 10.5.8.0/24 -j DROP": "passes",
    "-A FORWARD -m recent --set --name x --mask 255.255.255.255 --rsource -j DROP": "doubt",
    "-A FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP": "passes",
    "-A FORWARD -p icmp -m icmp ! --icmp-type 8/0 -j DROP": "doubt",
    "-A FORWARD -m comment --comment -j -j DROP": "dropped",
    '-A FORWARD -m comment --comment "! -j ACCEPT" -j DROP': "dropped",
    "-A FORWARD -m string --string -p --algo bm --to 65535 -j DROP": "doubt",
    "-A FORWARD -m string --string -j --algo bm --to 65535 -j DROP": "doubt",
    '-A FORWARD -j LOG --log-prefix "-j DROP"': "passes",
    "-A FORWARD -j LOG --log-prefix -j --log-level 7": "passes",
    "-A FORWARD -j NFQUEUE --queue-num 3 --queue-bypass": "doubt",
    "-A FORWARD -i docker0": "passes",
    "-A FORWARD !": "passes",
}


@pytest.mark.parametrize("line", LEGACY)
def test_lines_of_iptables_legacy(line: str) -> None:
    lines = [line] if line.startswith("-P") else ["-P FORWARD ACCEPT", line]
    assert outcome(with_legacy(Ruleset(), 4, lines), OUT) == LEGACY[line]


def test_chains_of_iptables_legacy() -> None:
    lines = ["-P FORWARD DROP", "-N USER", "-A FORWARD -j USER", "-A USER -s 10.5.7.0/24 -j ACCEPT", "-A USER -j RETURN"]
    assert outcome(with_legacy(Ruleset(), 4, lines), OUT) == "passes"
    assert outcome(with_legacy(Ruleset(), 4, lines), BACK) == "dropped"


def test_a_line_that_cannot_be_read_keeps_its_place() -> None:
    lines = ["-P FORWARD ACCEPT", '-A FORWARD --comment "unclosed -j ACCEPT', "-A FORWARD -s 10.5.9.2/32 -j DROP"]
    first, second = (f"rule {number} of chain FORWARD of iptables-legacy" for number in (1, 2))
    assert judge(with_legacy(Ruleset(), 4, lines), "forward", BACK).doubts == (first, f"{second}, unless {first} accepts it")


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ("--dport 8472", "dropped"),
        ("! --dport 8472", "passes"),
        ("--dport 8472:65535", "dropped"),
        ("! --dport 0:8471", "dropped"),
        ("-m multiport --dports 53,8000:9000", "dropped"),
        ("-m multiport ! --dports 53,8000:9000", "passes"),
        ("-m multiport --dports 53,123", "passes"),
        ("-m multiport --ports 53,123", "doubt"),
        ("--sport 1:100", "doubt"),
    ],
)
def test_ports(ports: str, expected: str) -> None:
    lines = ["-P INPUT ACCEPT", f"-A INPUT -p udp -m udp {ports} -j DROP"]
    assert outcome(with_legacy(Ruleset(), 4, lines), COMES, "input") == expected
    assert outcome(with_legacy(Ruleset(), 4, lines), replace(COMES, protocol=6), "input") == "passes"


def test_what_an_unknown_match_may_let_in_is_not_certainly_dropped() -> None:
    lines = ["-P INPUT ACCEPT", "-A INPUT -m set --match-set peers src -j ACCEPT", "-A INPUT -j DROP"]
    assert outcome(with_legacy(Ruleset(), 4, lines), COMES, "input") == "doubt"


@pytest.mark.parametrize(
    ("target", "where", "expected"),
    [
        ("CT --notrack", "-p udp -m udp --dport 8472", "doubt"),
        ("NOTRACK", "", "doubt"),
        ("CT --notrack", "-p tcp", "dropped"),
        ("CT --notrack", "-m set --match-set peers src", "doubt"),
        ("TRACE", "", "dropped"),
    ],
)
def test_what_the_table_raw_has_not_tracked_is_no_new_connection(target: str, where: str, expected: str) -> None:
    rules = with_legacy(Ruleset(), 4, ["-P PREROUTING ACCEPT", f"-A PREROUTING {where} -j {target}"], "raw")
    lines = ["-P INPUT ACCEPT", "-A INPUT -m conntrack --ctstate NEW -j DROP"]
    assert outcome(with_legacy(rules, 4, lines), COMES, "input") == expected
    others = with_legacy(rules, 6, lines)
    assert outcome(with_legacy(others, 4, lines), COMES, "input") == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [("MARK --set-xmark 0x1/0xffffffff", "doubt"), ("CONNMARK --restore-mark", "doubt"), ("DSCP", "dropped")],
)
def test_a_mark_of_the_table_mangle_is_one_for_nft_too(target: str, expected: str) -> None:
    unmarked = {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 0}}
    place = ("inet", "f", "i")
    rules = Ruleset((Base(place, "input", 0, "accept"),), {place: [Rule(place, 1, (unmarked, {"drop": None}))]})
    assert outcome(rules, COMES, "input") == "dropped"
    lines = ["-P PREROUTING ACCEPT", "-N ALL", "-A PREROUTING -j ALL", f"-A ALL -j {target}"]
    assert outcome(with_legacy(rules, 4, lines, "mangle"), COMES, "input") == expected


@pytest.mark.parametrize(("count", "apart"), [(1, False), (LINES + 1, True)])
def test_many_rules_are_read_while_all_else_goes_on(count: int, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def note(rules: Ruleset, *_args: object) -> Ruleset:
        threads.append(threading.current_thread())
        return rules

    async def lines(_self: Forward, version: int, *_chain: str, table: str = "filter") -> list[str]:
        return [f"-A PREROUTING -s 192.0.2.{version} -j DROP"] * count if table == "raw" else []

    class Nothing:
        async def listed(self, _what: str) -> str:
            return ""

        async def everything(self) -> str:
            return ""

    monkeypatch.setattr("flannelpy.kernel.forward.with_legacy", note)
    monkeypatch.setattr(Forward, "_legacy_lines", lines)
    forward = Forward(cast(Nft, Nothing()))
    asyncio.run(forward.foreign_rules())
    asyncio.run(forward.filter_rules())
    assert [thread is not threading.main_thread() for thread in threads] == [apart] * 4


KNOWN: dict[str, bool] = {
    "-s 192.0.2.0/24": True,
    "-d 192.0.2.9/32": False,
    "-i eth+": True,
    "-p udp": True,
    "-p tcp": False,
    "--dport 8472": True,
    "--dports 53,123": False,
    "--ctstate NEW,RELATED": True,
    "--state ESTABLISHED": False,
}
UNKNOWN = (
    "-f",
    "--socket",
    "--mark 0x1",
    "--match-set a src",
    "--tcp-flags SYN,ACK SYN",
    "--three of these here",
    "-x",
    "--y --z 5",
)
NO_MATCH = ('-m comment --comment "! -j ACCEPT"', "-m conntrack", "-m udp", "--comment -j")


@given(
    st.lists(st.tuples(st.sampled_from([*KNOWN, *UNKNOWN]), st.booleans()), max_size=5),
    st.lists(st.sampled_from(NO_MATCH), max_size=2),
    st.sampled_from(["ACCEPT", "DROP", "REJECT --reject-with icmp-port-unreachable", "OTHER", "LOG --log-prefix -j"]),
    st.randoms(),
)
def test_options_in_any_order_negated_or_not(asked: list[tuple[str, bool]], noise: list[str], target: str, chance: Random) -> None:
    words = [f"! {text}" if no else text for text, no in asked] + noise
    chance.shuffle(words)
    policy = "DROP" if target == "ACCEPT" else "ACCEPT"
    lines = [f"-P INPUT {policy}", "-N OTHER", f"-A INPUT {' '.join(words)} -j {target}", "-A OTHER -j DROP"]
    truths = [None if text in UNKNOWN else KNOWN[text] != no for text, no in asked]
    holds = False if False in truths else None if None in truths else True
    dropped = {True: policy != "DROP", False: policy == "DROP"}
    expected = "doubt" if holds is None else "dropped" if dropped[holds] else "passes"
    if target.startswith("LOG"):
        expected = "passes"
    assert outcome(with_legacy(Ruleset(), 4, lines), COMES, "input") == expected


@pytest.mark.parametrize(
    ("table", "program", "hook"),
    [
        ("raw", "iptables-legacy -t raw", "prerouting"),
        ("mangle", "iptables-legacy -t mangle", "forward"),
        ("mangle", "iptables-legacy -t mangle", "postrouting"),
        ("filter", "iptables-legacy", "forward"),
    ],
)
def test_a_rule_is_deleted_in_its_own_table(table: str, program: str, hook: Any) -> None:
    chain = hook.upper()
    rules = with_legacy(Ruleset(), 4, [f"-P {chain} ACCEPT", f"-A {chain} -s 10.5.7.0/24 -j DROP"], table)
    ruling = judge(with_legacy(rules, 4, ["-P INPUT ACCEPT"]), hook, OUT)
    assert (ruling.dropped, ruling.remedy) == (f"rule 1 of chain {chain} of {program}", f"{program} -D {chain} 1")
