"""What do the rules of iptables-legacy say? Lines of ``iptables -S`` (iptables(8)) as rules in nft's form, to be walked like those.

What is not understood of a line is a match of which nothing is known, so that its rule is a doubt and no verdict.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from netaddr import AddrFormatError, IPNetwork

from flannelpy.core.packet_filter import ALTERING, Base, Place, Rule, Ruleset, altering, legacy
from flannelpy.kernel.forward_text import FAMILIES

PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0}
"""The tables that filter, or may, in their order at a hook."""
_HOOKS = {name.upper(): name for name in ("prerouting", "input", "forward", "output", "postrouting")}
_UNKNOWN: dict[str, Any] = {"xt": {"type": "match", "name": "?"}}
_ENDS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "NFQUEUE": "queue"}
_TOLD = ("comment", "conntrack", "state", "udp", "tcp", "multiport")
"""Matches that ask for nothing but by their options."""
_LEFT = {
    "-s": ("addr", "saddr"),
    "-d": ("addr", "daddr"),
    "-i": ("meta", "iifname"),
    "-o": ("meta", "oifname"),
    "-p": ("meta", "l4proto"),
    "--dport": ("port", "dport"),
    "--dports": ("port", "dport"),
}


def with_legacy(rules: Ruleset, version: int, lines: Iterable[str], table: str = "filter") -> Ruleset:
    """These and those of a table."""
    family = FAMILIES[version]
    bases, chains = list(rules.bases), dict[Place, list[Rule]]()
    for line in lines:
        words = line.split()[:2]
        if len(words) < 2:
            continue
        place = (family, legacy(table), words[1])
        if words[0] in ("-P", "-N"):
            chains.setdefault(place, [])
            if words[0] == "-P" and words[1] in _HOOKS:
                bases.append(
                    Base(place, _HOOKS[words[1]], PRIORITIES[table], "drop" if line.split()[2:3] == ["DROP"] else "accept")
                )
        elif words[0] == "-A":
            held = chains.setdefault(place, [])
            held.append(Rule(place, len(held) + 1, tuple(_read(line, family))))
    return replace(
        rules,
        bases=tuple(sorted(bases, key=lambda base: base.priority)),
        chains={**rules.chains, **chains},
        alters=rules.alters | altering(rule for held in chains.values() for rule in held),
    )


def _read(line: str, family: str) -> list[dict[str, Any]]:
    try:
        return _parts(shlex.split(line)[2:], family)
    except ValueError:
        return [_UNKNOWN, {"queue": {}}]


def _parts(words: list[str], family: str) -> list[dict[str, Any]]:
    """What a rule asks for and does. How many values an option has that is not known is not known either: the next option begins
    with a dash, or a ``!``.
    """
    found: list[dict[str, Any]] = []
    at = 0
    while at < len(words):
        op, at = ("!=", at + 1) if words[at] == "!" else ("==", at)
        word, value, *_ = *words[at : at + 2], "", ""
        at += 2
        said = value != "" and not value.startswith(("-", "!"))  # else the word is no option, but somebody's value
        if word in ("-j", "-g") and said:
            return [*found, _end(word, value)]  # what follows are the target's own options
        if word in _LEFT and said:
            found.append({"match": {"op": op, "left": _left(word, family), "right": _right(word, value)}})
        elif word in ("--ctstate", "--state") and said:
            right = value.lower().split(",")
            if "untracked" in right:  # as the table raw says, which root alone may read
                found.append(_UNKNOWN)
                continue
            found.append({"match": {"op": "!=" if op == "!=" else "in", "left": {"ct": {"key": "state"}}, "right": right}})
        elif word != "--comment" and not (word == "-m" and value in _TOLD):
            found.append(_UNKNOWN)
            at -= 1
            while at < len(words) and not words[at].startswith("-") and words[at] != "!":
                at += 1
    return found


def _end(word: str, target: str) -> dict[str, Any]:
    if target in ALTERING:
        return {"xt": {"type": "target", "name": target}}
    return {_ENDS[target]: None} if target in _ENDS else {"goto" if word == "-g" else "jump": {"target": target}}


def _left(word: str, family: str) -> dict[str, Any]:
    kind, name = _LEFT[word]
    if kind == "meta":
        return {"meta": {"key": name}}
    return {"payload": {"protocol": family if kind == "addr" else "th", "field": name}}


def _right(word: str, value: str) -> Any:
    if word in ("-s", "-d"):
        return _network(value)
    if word in ("-i", "-o") and value.endswith("+"):
        return f"{value[:-1]}*"
    if word in ("--dport", "--dports"):
        ports = [_ports(each) for each in value.split(",")]
        return None if None in ports else {"set": ports}
    return int(value) if value.isdecimal() else value


def _network(text: str) -> Any:
    """None where the mask is none of leading bits, which iptables has written out."""
    address, _, length = text.partition("/")
    try:
        net = IPNetwork(f"{address}/{int(length)}" if length else address)
    except (AddrFormatError, ValueError):
        return None
    return {"prefix": {"addr": str(net.network), "len": net.prefixlen}}


def _ports(text: str) -> Any:
    ends = [int(end) for end in text.split(":") if end.isdecimal()]
    return {"range": ends} if len(ends) == 2 else ends[0] if len(ends) == 1 and text.isdecimal() else None
