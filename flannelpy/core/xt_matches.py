"""What do iptables-nft's matches ask for? nft's JSON only names them; its text tells of the same rules, by handle, what they ask.

What the text does not tell either stays a match of which nothing is known. So does what it tells otherwise than the kernel goes by:
of ``--ctstate DNAT,ESTABLISHED`` there is ``ct status dnat``, and of ``--src-type`` with ``--dst-type`` the first alone.
Sources: nft(8), iptables-extensions(8), iptables' libxt_conntrack.c, libxt_state.c and libxt_addrtype.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from flannelpy.core.packet_filter import Rule, Ruleset

Part = Mapping[str, Any]

_WORDS = {"conntrack": "ct", "state": "ct", "addrtype": "fib"}
"""How nft begins what such a match asks for."""
_LEFT: dict[str, Part] = {"ct": {"ct": {"key": "state"}}, "fib": {"fib": {"result": "type", "flags": ["daddr"]}}}
_VALUES = {
    "ct": frozenset({"invalid", "new", "established", "related", "untracked"}),
    "fib": frozenset(
        "unspec unicast local broadcast anycast multicast blackhole unreachable prohibit throw nat xresolve".split()  # noqa: SIM905
    ),
}
_ASKED = {
    # ``!``: none of these; old versions of iptables write != and mean that.
    "ct": re.compile(r"(?<!\S)ct(?: state (?P<no>!=? )?(?P<values>[a-z]+(?:,[a-z]+)*))?(?!\S)(?! [|&^.])"),
    "fib": re.compile(r"(?<!\S)fib(?: daddr type (?P<no>!= )?(?P<values>[a-z]+|\{ [a-z]+(?:, [a-z]+)* \}))?(?!\S)(?! [|&^.])"),
}
_RULE = re.compile(r"\t\t(?P<text>.*) # handle (?P<handle>\d+)")
_QUOTED = re.compile(r'"[^"]*"')


def untold(rules: Ruleset) -> list[tuple[str, str]]:
    """Family and name of the filtering tables with matches that JSON only names."""
    there = {place[:2] for place, chain in rules.chains.items() if any(_word(part) for rule in chain for part in rule.parts)}
    return [table for table in dict.fromkeys(base.place[:2] for base in rules.bases) if table in there]


def with_text(rules: Ruleset, table: tuple[str, str], text: str) -> Ruleset:
    """The same, with what ``nft -a list table`` tells of the matches of a table."""
    told = dict(_told(text))
    chains = {
        place: [_joined(rule, told.get(rule.handle, "")) for rule in chain] if place[:2] == table else chain
        for place, chain in rules.chains.items()
    }
    return replace(rules, chains=chains)


def _told(text: str) -> Iterator[tuple[int, str]]:
    """Each rule by its handle, without what stands in quotes, which is anybody's: comments, names, what is logged."""
    for line in text.split("\n"):
        if match := _RULE.fullmatch(line):
            bare = _QUOTED.sub("", match["text"])
            if '"' not in bare:
                yield int(match["handle"]), bare


def _joined(rule: Rule, text: str) -> Rule:
    parts = rule.parts
    for word in {word for part in parts if (word := _word(part))}:
        named = [part for part in parts if _word(part) == word]
        others = [part for part in parts if _word(part) != word]
        if not named or f"'{word}'" in repr(others):  # whose words these are could not be told
            continue
        asked = [_match(word, found) for found in _ASKED[word].finditer(text)]
        known = [one for one in asked if one is not None]
        parts = (*known, *(() if len(known) == len(asked) == len(named) else named[:1]), *others)
    return replace(rule, parts=parts)


def _match(word: str, found: re.Match[str]) -> Part | None:
    """In JSON; None where it asks for something else, or is not understood."""
    values = re.findall("[a-z]+", found["values"] or "")
    if not values or not _VALUES[word].issuperset(values):
        return None
    return {"match": {"op": "!=" if found["no"] else "in", "left": _LEFT[word], "right": {"set": values}}}


def _word(part: Part) -> str:
    match part:
        case {"xt": {"type": "match", "name": str(name)}}:
            return _WORDS.get(name, "")
    return ""
