"""Which policy rule decides, and how is it called? Rules as the kernel holds them, and tables that have a route or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.policy_rule import GOTO, NOTHING, PolicyRule, concerning, decides

DST, SRC = IPAddress("10.5.9.2"), IPAddress("10.5.7.2")
LOCAL_RULE, MAIN_RULE = PolicyRule(4, 0, table=255), PolicyRule(4, 32766)
TO = PolicyRule(4, 100, table=66, destination=IPNetwork("10.5.9.0/24"))
ROUTES: Mapping[int, int] = {254: 24, 66: 0}


def named(*rules: PolicyRule, source: IPAddress | None = None, arrives: str = "", routes: Mapping[int, int] = ROUTES) -> str:
    found = decides([MAIN_RULE, *rules, LOCAL_RULE], DST, source, arrives, routes.get)
    return "" if found is None else str(found)


CASES = {
    "none": ([], ""),
    "to": ([TO], "pref 100 from all to 10.5.9.0/24 lookup 66"),
    "to another": ([replace(TO, destination=IPNetwork("10.5.8.0/24"))], ""),
    "from": ([PolicyRule(4, 9, table=66, source=IPNetwork("10.5.7.0/24"))], "pref 9 from 10.5.7.0/24 lookup 66"),
    "from another": ([PolicyRule(4, 9, table=66, source=IPNetwork("10.5.6.0/24"))], ""),
    "iif": ([PolicyRule(4, 9, table=66, arrives="docker0")], "pref 9 from all iif docker0 lookup 66"),
    "iif of another": ([PolicyRule(4, 9, table=66, arrives="eth0")], ""),
    "oif": ([PolicyRule(4, 9, table=66, leaves="eth0")], ""),
    "a mark": ([PolicyRule(4, 9, table=66, mark=(7, 0xFF))], ""),
    "no such mark": (
        [PolicyRule(4, 9, table=66, mark=(7, 0xFF), inverted=True)],
        "pref 9 not from all fwmark 0x7/0xff lookup 66",
    ),
    "prohibit": ([PolicyRule(4, 9, "prohibit")], "pref 9 from all prohibit"),
    "a table without a route": ([replace(TO, table=67)], ""),
    "the main table first": ([replace(MAIN_RULE, priority=50), TO], ""),
    "the main table, its default not": ([replace(MAIN_RULE, priority=50, suppressed=0), TO], ""),
    "the main table, nothing of it": ([replace(MAIN_RULE, priority=50, suppressed=24), TO], str(TO)),
    "after the main table": ([replace(TO, priority=32767)], ""),
    "the first of two": ([TO, replace(TO, priority=99, table=66, source=IPNetwork("10.5.7.0/24"))], "pref 99 from 10.5.7.0/24"),
    "nop": ([PolicyRule(4, 9, NOTHING), TO], str(TO)),
    "goto beyond it": ([PolicyRule(4, 9, GOTO, target=200), TO], ""),
    "goto it": ([PolicyRule(4, 9, GOTO, target=100), TO], str(TO)),
    "what is not known": ([replace(TO, more=True)], ""),
    "IPv6": ([PolicyRule(6, 9, table=66)], ""),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule(name: str) -> None:
    rules, expected = CASES[name]
    found = named(*rules, source=SRC, arrives="docker0")
    assert found.startswith(expected) if expected else found == ""


def test_what_the_host_sends_itself_has_no_source_yet_and_is_of_lo() -> None:
    assert named(PolicyRule(4, 9, table=66, source=IPNetwork("10.5.7.0/24"))) == ""
    assert named(PolicyRule(4, 9, table=66, arrives="lo")) == "pref 9 from all iif lo lookup 66"
    assert named(PolicyRule(4, 9, table=66, arrives="docker0")) == ""


def test_rules_about_a_network_are_those_that_speak_of_it_and_lead_elsewhere() -> None:
    networks = [IPNetwork("10.5.0.0/16")]
    by_source = PolicyRule(4, 9, table=66, source=IPNetwork("10.0.0.0/8"))
    forbidding = PolicyRule(4, 9, "prohibit", destination=IPNetwork("10.5.9.2/32"))
    others = [
        MAIN_RULE,
        PolicyRule(4, 9, destination=IPNetwork("10.5.0.0/16")),
        PolicyRule(4, 9, table=220),
        PolicyRule(4, 9, table=66, source=IPNetwork("192.0.2.0/24")),
        PolicyRule(6, 9, table=66, source=IPNetwork("fd00::/8")),
        PolicyRule(4, 9, NOTHING, destination=IPNetwork("10.5.0.0/16")),
    ]
    assert concerning([*others, TO, by_source, forbidding], networks) == [TO, by_source, forbidding]
    assert concerning([*others, TO], []) == []
