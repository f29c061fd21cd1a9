"""What would the host's firewall do with a packet, and by which rule? Its rules as nft lists them, walked as the kernel walks them.

A packet passes the base chains of a hook by priority, of all tables; an accept ends one of them, a drop ends the packet (nft(8)).
There is no way to ask the kernel itself without sending something. What cannot be judged here is a doubt, and never a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flannelpy.core.errors import MalformedError
from flannelpy.core.filter_match import MATCHING, Packet, Truth, among, meets, value

Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]
Place = tuple[str, str, str]
"""Family, table, chain."""

_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
LEGACY = "filter (iptables-legacy)"
"""What the table of iptables-legacy is called here; its rules are deleted by their place in the chain."""

_ENDING = ("accept", "drop", "reject", "return", "jump", "goto")
_DEEPEST = 16
"""Jumps into each other, as in the kernel."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``handle``: by what it is deleted; ``parts``: its statements in nft's JSON."""

    place: Place
    handle: int
    parts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Base:
    """A chain that packets come to by themselves. ``policy``: accept or drop, where no rule says otherwise."""

    place: Place
    hook: str
    priority: int
    policy: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All filtering chains of a host, and the sets that their rules name."""

    bases: tuple[Base, ...] = ()
    chains: Mapping[Place, Sequence[Rule]] = field(default_factory=dict)
    sets: Mapping[tuple[str, str], Mapping[str, Sequence[Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ruling:
    """``dropped``: by what, in words, empty where it passes; ``remedy``: a command; ``doubts``: rules that may drop it."""

    dropped: str = ""
    remedy: str = ""
    ours: bool = False
    doubts: tuple[str, ...] = ()


def read(text: str) -> Ruleset:
    """What ``nft -j list ruleset`` prints, or several lists, a line each. Raises MalformedError."""
    try:
        items: list[dict[str, Any]] = [item for line in text.splitlines() if line.strip() for item in json.loads(line)["nftables"]]
        bases: list[Base] = []
        chains: dict[Place, list[Rule]] = {}
        sets: dict[tuple[str, str], dict[str, Sequence[Any]]] = {}
        for item in items:
            for kind, what in item.items():
                if kind == "chain":
                    place = (what["family"], what["table"], what["name"])
                    chains.setdefault(place, [])
                    if what.get("type") == "filter":
                        bases.append(Base(place, what["hook"], int(what["prio"]), what.get("policy", "accept")))
                elif kind == "rule":
                    place = (what["family"], what["table"], what["chain"])
                    parts = tuple(part for part in what.get("expr", ()) if isinstance(part, dict))
                    chains.setdefault(place, []).append(Rule(place, what["handle"], parts))
                elif kind in ("set", "map"):
                    sets.setdefault((what["family"], what["table"]), {})[what["name"]] = what.get("elem", [])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedError(f"nft's list of rules: {error!r:.80}: expected JSON") from None
    return Ruleset(tuple(sorted(bases, key=lambda base: base.priority)), chains, sets)


def judge(rules: Ruleset, hook: Hook, packet: Packet) -> Ruling:
    """What becomes of a packet at a hook."""
    walk = _Walk(rules, packet)
    for base in rules.bases:
        if base.hook != hook or base.place[0] not in _FAMILIES[packet.version]:
            continue
        walk.perhaps = ""
        outcome, rule = walk.chain(base.place, 0)
        if outcome == "go on":
            outcome, rule = base.policy, None
        if outcome == "drop":
            said = _said(rule) if rule is not None else f"chain {base.place[2]} of {_named(base.place)} (policy drop)"
            if not walk.perhaps:
                ours = base.place[1].startswith("flannelpy")
                return Ruling(said, _remedy(base, rule, packet), ours, tuple(walk.doubts))
            walk.doubts.append(f"{said}, unless {walk.perhaps} accepts it")
    return Ruling(doubts=tuple(dict.fromkeys(walk.doubts)))


def let_in(rules: Ruleset, dropped: str, interface: str, port: int) -> str:
    """How whoever has made the rule that a ruling names would open a UDP port, for good; ``dropped`` is the ruling's."""
    if dropped.endswith(" firewalld") or " firewalld " in dropped:
        return f"firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload (the zone that {interface} is in)"
    if any(name.startswith("ufw") for _family, _table, name in rules.chains):
        return f"ufw allow in on {interface} to any port {port} proto udp"
    if " filter" in dropped or "-legacy" in dropped:
        return f"iptables -I INPUT -i {interface} -p udp --dport {port} -j ACCEPT, and where your rules are kept"
    return f"let it in there: iifname {interface} udp dport {port} accept"


class _Walk:
    """``perhaps``: a rule before that may have accepted the packet, in words; ``doubts``: those that may have dropped it."""

    def __init__(self, rules: Ruleset, packet: Packet) -> None:
        self._rules = rules
        self._packet = packet
        self.perhaps = ""
        self.doubts: list[str] = []

    def chain(self, place: Place, depth: int) -> tuple[str, Rule | None]:
        """accept, drop or go on, and by which rule."""
        if depth > _DEEPEST:
            return "go on", None
        for rule in self._rules.chains.get(place, ()):
            truth = self._truth(rule)
            if truth is False:
                continue
            for verdict, target in self._verdicts(rule):
                outcome, by = self._follow(rule, verdict, target, depth)
                if truth is None:
                    self._note(outcome, by or rule)
                elif outcome == "return":
                    return "go on", None
                elif outcome in ("accept", "drop") or verdict == "goto":
                    return outcome, by
        return "go on", None

    def _note(self, outcome: str, rule: Rule) -> None:
        """What a rule would do that may hold or not."""
        if outcome == "drop":
            self.doubts.append(_said(rule))
        elif outcome in ("accept", "return"):  # what comes behind a return may never be asked
            self.perhaps = self.perhaps or _said(rule)

    def _follow(self, rule: Rule, verdict: str, target: str, depth: int) -> tuple[str, Rule | None]:
        if verdict in ("jump", "goto"):
            return self.chain((*rule.place[:2], target), depth + 1)
        return ("drop" if verdict == "reject" else verdict), rule

    def _truth(self, rule: Rule) -> Truth:
        found: Truth = True
        for part in rule.parts:
            one = self._holds(part, rule)
            if one is False:
                return False
            found = None if one is None else found
        return found

    def _holds(self, part: Mapping[str, Any], rule: Rule) -> Truth:
        match part:
            case {"match": dict(asked)}:
                return meets(asked, self._packet, self._sets(rule))
            case {"xt": {"type": "match", "name": "comment"}}:
                return True
            case {"xt": {"type": "match", "name": "conntrack" | "state"}}:
                # What is asked of it nft does not tell in JSON. Nearly always: of connections that stand.
                return True if self._packet.states == {"established"} else False if self._packet.states == {"new"} else None
            case {"xt": {"type": "match", "name": "addrtype"}} if _for_us(self._packet):
                return True  # nearly always it is asked for LOCAL, as ufw does
            case {"xt": {"type": "match"}} | {"xt": None}:
                return None
        return None if any(name in MATCHING for name in part) else True

    def _verdicts(self, rule: Rule) -> Iterator[tuple[str, str]]:
        """What it does where it holds: a word, and the chain that it leads to."""
        for part in rule.parts:
            for word in _ENDING:
                if word in part:
                    yield word, part[word]["target"] if word in ("jump", "goto") else ""
            match part:
                case {"xt": {"type": "target", "name": "REJECT" | "DROP"}}:
                    yield "drop", ""
                case {"vmap": {"key": key, "data": data}}:
                    yield from self._mapped(key, data, rule)

    def _mapped(self, key: Any, data: Any, rule: Rule) -> Iterator[tuple[str, str]]:
        """A verdict map: the verdict of the first key that the packet has."""
        held = value(key, self._packet)
        sets = self._sets(rule)
        pairs = sets.get(data[1:], ()) if isinstance(data, str) else data.get("set", ()) if isinstance(data, dict) else ()
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], dict):
                continue
            if isinstance(key, dict) and "ct" in key:
                found = meets({"left": key, "op": "in", "right": pair[0]}, self._packet, sets)
            else:
                found = among(held, pair[0], sets) if held not in (None, False) else held
            word, target = next(iter(pair[1].items()))
            if found:
                yield word, target["target"] if isinstance(target, dict) else ""
                return
            if found is None and word in ("drop", "jump", "goto"):
                self.doubts.append(_said(rule))

    def _sets(self, rule: Rule) -> Mapping[str, Sequence[Any]]:
        return self._rules.sets.get(rule.place[:2], {})


def _for_us(packet: Packet) -> bool:
    """What comes to a port of this host, and is not forwarded."""
    return bool(packet.arrives and packet.port and not packet.leaves)


def _table(place: Place) -> str:
    return f"{place[0]} {place[1]}"


def _named(place: Place) -> str:
    return _iptables(place) if place[1] == LEGACY else f"nft table {_table(place)}"


def _iptables(place: Place) -> str:
    return f"{'iptables' if place[0] == 'ip' else 'ip6tables'}-legacy"


def _said(rule: Rule) -> str:
    if rule.place[1] == LEGACY:
        return f"rule {rule.handle} of chain {rule.place[2]} of {_iptables(rule.place)}"
    return f"a rule in chain {rule.place[2]} of nft table {_table(rule.place)} (handle {rule.handle})"


def _remedy(base: Base, rule: Rule | None, packet: Packet) -> str:
    if rule is not None:
        if rule.place[1] == LEGACY:
            return f"{_iptables(rule.place)} -D {rule.place[2]} {rule.handle}"
        return f"nft delete rule {' '.join(rule.place)} handle {rule.handle}"
    if base.place[1] == LEGACY:
        what = f"-p udp --dport {packet.port}" if packet.port else f"-s {packet.source}"
        return f"{_iptables(base.place)} -I {base.place[2]} {what} -j ACCEPT"
    family = "ip" if packet.version == 4 else "ip6"
    what = f"udp dport {packet.port}" if packet.port else f"{family} saddr {packet.source}"
    return f"nft insert rule {' '.join(base.place)} {what} accept"
