"""What do the rules of iptables-legacy say? Lines of ``iptables -S`` (iptables(8)) as rules in nft's form, to be walked like those.

What is not understood of a line is a match of which nothing is known, so that its rule is a doubt and no verdict.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from netaddr import AddrFormatError, IPNetwork

from flannelpy.core.packet_filter import LEGACY, Base, Rule, Ruleset
from flannelpy.kernel.forward_text import FAMILIES

_HOOKS = {"INPUT": "input", "FORWARD": "forward", "OUTPUT": "output"}
_UNKNOWN: dict[str, Any] = {"xt": {"type": "match", "name": "?"}}
_ENDS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
_LEFT = {
    "-s": ("addr", "saddr"),
    "-d": ("addr", "daddr"),
    "-i": ("meta", "iifname"),
    "-o": ("meta", "oifname"),
    "-p": ("meta", "l4proto"),
    "--dport": ("port", "dport"),
}


def with_legacy(rules: Ruleset, version: int, lines: Iterable[str]) -> Ruleset:
    """These and those."""
    family = FAMILIES[version]
    bases, chains = list(rules.bases), dict(rules.chains)
    for line in lines:
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        if len(words) < 2:
            continue
        place = (family, LEGACY, words[1])
        if words[0] in ("-P", "-N"):
            chains.setdefault(place, [])
            if words[0] == "-P" and words[1] in _HOOKS:
                bases.append(Base(place, _HOOKS[words[1]], 0, "drop" if words[2:] == ["DROP"] else "accept"))
        elif words[0] == "-A":
            before = chains.get(place, ())
            chains[place] = [*before, Rule(place, len(before) + 1, tuple(_parts(words[2:], family)))]
    return replace(rules, bases=tuple(sorted(bases, key=lambda base: base.priority)), chains=chains)


def _parts(words: list[str], family: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    at, op = 0, "=="
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 2
        if word == "!":
            op, at = "!=", at - 1
            continue
        if word in _LEFT:
            found.append({"match": {"op": op, "left": _left(word, family), "right": _right(word, value)}})
        elif word == "--ctstate":
            found.append({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": value.lower().split(",")}})
        elif word == "-j":
            found.append({_ENDS[value]: None} if value in _ENDS else {"jump": {"target": value}})
            if value == "REJECT":
                break
        elif word == "-g":
            found.append({"goto": {"target": value}})
        elif word == "--reject-with" or (word == "-m" and value in ("comment", "conntrack", "udp", "tcp")) or word == "--comment":
            pass
        else:
            found.append(_UNKNOWN)
        op = "=="
    return found


def _left(word: str, family: str) -> dict[str, Any]:
    kind, name = _LEFT[word]
    if kind == "meta":
        return {"meta": {"key": name}}
    return {"payload": {"protocol": family if kind == "addr" else "th", "field": name}}


def _right(word: str, value: str) -> Any:
    if word in ("-s", "-d"):
        try:
            net = IPNetwork(value)
        except (AddrFormatError, ValueError):
            return None
        return {"prefix": {"addr": str(net.network), "len": net.prefixlen}}
    if word in ("-i", "-o") and value.endswith("+"):
        return f"{value[:-1]}*"
    if word == "--dport":
        ends = [int(end) for end in value.split(":") if end.isdecimal()]
        return {"range": ends} if len(ends) == 2 else ends[0] if ends else None
    return int(value) if value.isdecimal() else value
