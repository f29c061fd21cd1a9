"""What would the host's firewall do with a packet, and by which rule? Its rules as nft lists them, walked as the kernel walks them.

A packet passes the base chains of a hook by priority, of all tables; an accept ends one of them, a drop ends the packet (nft(8)).
There is no way to ask the kernel itself without sending something. What cannot be judged here is a doubt, and never a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from netaddr import IPAddress

from flannelpy.core.errors import MalformedError
from flannelpy.core.filter_match import MATCHING, Packet, Truth, among, meets, value

Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]
Place = tuple[str, str, str]
"""Family, table, chain."""

_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_FILTERING = ("filter", "route")
"""Types of base chains; of the second is iptables' mangle table at hook output."""
_OLD = " (iptables-legacy)"
LEGACY = f"filter{_OLD}"
"""What the table of iptables-legacy is called here; its rules are deleted by their place in the chain."""

_NEXT, _LEAVE = "the next rule", "out of the chain"
_OUTCOMES = {
    "accept": ("accept",),
    "drop": ("drop",),
    "reject": ("drop",),
    "return": (_LEAVE,),
    "continue": (_NEXT,),
    "queue": ("accept", "drop"),  # as a program says
}
_DEEPEST = 16
"""Jumps into each other, as in the kernel."""
_BEFORE: Mapping[Hook, tuple[Hook, ...]] = {"input": ("prerouting",), "forward": ("prerouting",), "postrouting": ("output",)}
_FORWARDED: tuple[Hook, ...] = ("prerouting", "forward")
"""The hooks that a packet has passed before another one; before postrouting, where it is forwarded."""
_MARKING, _UNTRACKING = frozenset({"MARK", "CONNMARK", "HMARK"}), frozenset({"CT", "NOTRACK"})
ALTERING = _MARKING | _UNTRACKING
"""iptables' targets."""


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
    """All filtering chains of a host, and the sets that their rules name. ``others``: base chains that translate addresses."""

    bases: tuple[Base, ...] = ()
    chains: Mapping[Place, Sequence[Rule]] = field(default_factory=dict)
    sets: Mapping[tuple[str, str], Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    others: tuple[Base, ...] = ()
    alters: frozenset[tuple[str, str]] = frozenset()
    """Family and table of the rules that give packets a mark, or have them not tracked: what comes before is walked there alone."""


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
        others: list[Base] = []
        chains: dict[Place, list[Rule]] = {}
        sets: dict[tuple[str, str], dict[str, Sequence[Any]]] = {}
        for item in items:
            for kind, what in item.items():
                if kind == "chain":
                    place = (what["family"], what["table"], what["name"])
                    chains.setdefault(place, [])
                    if what.get("type"):
                        found = bases if what["type"] in _FILTERING else others
                        found.append(Base(place, what["hook"], int(what["prio"]), what.get("policy", "accept")))
                elif kind == "rule":
                    place = (what["family"], what["table"], what["chain"])
                    parts = tuple(part for part in what.get("expr", ()) if isinstance(part, dict))
                    chains.setdefault(place, []).append(Rule(place, what["handle"], parts))
                elif kind in ("set", "map"):
                    sets.setdefault((what["family"], what["table"]), {})[what["name"]] = what.get("elem", [])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedError(f"nft's list of rules: {error!r:.80}: expected JSON") from None
    return Ruleset(_sorted(bases), chains, sets, _sorted(others), altering(rule for held in chains.values() for rule in held))


def altering(rules: Iterable[Rule]) -> frozenset[tuple[str, str]]:
    """The tables of those that give packets a mark, or have them not tracked."""
    return frozenset(rule.place[:2] for rule in rules if any(_altered(part, _NOBODYS) is not _NOBODYS for part in rule.parts))


def _sorted(bases: Iterable[Base]) -> tuple[Base, ...]:
    return tuple(sorted(bases, key=lambda base: base.priority))


def judge(rules: Ruleset, hook: Hook, packet: Packet) -> Ruling:
    """What becomes of a packet at a hook."""
    doubts: list[str] = []
    if rules.alters:
        for before in _FORWARDED if hook == "postrouting" and packet.arrives else _BEFORE.get(hook, ()):
            packet = _left(rules, before, packet)
    for base in _at(rules, hook, packet):
        walk = _Walk(rules, packet)
        outcomes, packet = walk.chain(base.place, 0), walk.packet
        if base in rules.others:
            continue
        fates = [(base.policy if outcome == _LEAVE else outcome, by) for outcome, by in outcomes]
        drops = [(by, _said(by) if by else _policy(base)) for outcome, by in fates if outcome == "drop"]
        if not drops:
            continue
        rule, said = drops[-1]
        if len(drops) == len(fates):
            return Ruling(said, _remedy(base, rule, packet), base.place[1].startswith("flannelpy"))
        doubts += [each for _by, each in drops[:-1] if each != said]
        accepting = next((by for outcome, by in fates if outcome == "accept" and by), None)
        unless = f"{_said(accepting)} accepts it" if accepting else f"{_said(walk.unsure[0])} leads past it" if walk.unsure else ""
        doubts.append(f"{said}, unless {unless}" if fates[-1][0] == "drop" and unless else said)
    return Ruling(doubts=tuple(dict.fromkeys(doubts)))


def _at(rules: Ruleset, hook: Hook, packet: Packet) -> Iterator[Base]:
    """The base chains that it passes at a hook; those that only translate where they may matter to the others."""
    others = [base for base in rules.others if base.place[:2] in rules.alters] if rules.alters else ()
    bases = _sorted((*rules.bases, *others)) if others else rules.bases
    return (base for base in bases if base.hook == hook and base.place[0] in _FAMILIES[packet.version])


def _left(rules: Ruleset, hook: Hook, packet: Packet) -> Packet:
    """The packet as the chains of an earlier hook may have left it: with a mark, or not tracked."""
    passing = replace(packet, leaves="") if hook == "prerouting" else packet
    for base in _at(rules, hook, packet):
        if base.place[:2] not in rules.alters:
            continue
        walk = _Walk(rules, passing)
        walk.chain(base.place, 0)
        passing = walk.packet
    return replace(packet, marked=passing.marked, states=passing.states)


def _altered(part: Mapping[str, Any], packet: Packet) -> Packet:
    """The packet as a statement may leave it."""
    match part:
        case {"mangle": {"key": {"meta": {"key": "mark"}}}}:
            return replace(packet, marked=True)
        case {"notrack": _}:
            return replace(packet, states=packet.states | {"untracked"})
        case {"xt": {"type": "target", "name": str(name)}} if name in _MARKING:
            return replace(packet, marked=True)
        case {"xt": {"type": "target", "name": str(name)}} if name in _UNTRACKING:
            return replace(packet, states=packet.states | {"untracked"})
        case {"xt": None}:  # who knows
            return replace(packet, marked=True, states=packet.states | {"untracked"})
    return packet


_NOBODYS = Packet(IPAddress(0), IPAddress(0), states=frozenset())


_Fate = tuple[str, Rule | None]
"""What becomes of a packet, and by which rule."""


class _Walk:
    """``unsure``: the rules that may have kept the packet from those behind them, and may not; ``packet``: as they may leave it."""

    def __init__(self, rules: Ruleset, packet: Packet) -> None:
        self._rules = rules
        self.packet = packet
        self.unsure: list[Rule] = []
        self._known: dict[Place, list[_Fate]] = {}  # many rules may lead to one chain

    def chain(self, place: Place, depth: int) -> list[_Fate]:
        """All that may become of it in a chain: one fate where everything is known. The last is that of who comes to the end."""
        found: list[_Fate] = []
        for rule in self._rules.chains.get(place, ()) if depth <= _DEEPEST else ():
            truth = self._truth(rule)
            if truth is False:
                continue
            self._alter(rule)
            fates = self._fates(rule, depth)
            found += (fate for fate in fates if fate[0] != _NEXT)
            if (truth is None or len(fates) > 1) and any(outcome not in (_NEXT, "drop") for outcome, _by in fates):
                self.unsure.append(rule)
            if truth and all(outcome != _NEXT for outcome, _by in fates):
                return _distinct(found)
        return _distinct([*found, (_LEAVE, None)])

    def _alter(self, rule: Rule) -> None:
        before = self.packet
        for part in rule.parts if rule.place[:2] in self._rules.alters else ():
            self.packet = _altered(part, self.packet)
        if self.packet != before:
            self._known.clear()

    def _fates(self, rule: Rule, depth: int) -> list[_Fate]:
        """All that may become of it where the rule holds."""
        found: list[_Fate] = []
        for part in rule.parts:
            verdicts = self._verdicts(part, rule)
            fates = [fate for word, target in verdicts for fate in self._follow(rule, word, target, depth)]
            found += (fate for fate in fates if fate[0] != _NEXT)
            if fates and all(outcome != _NEXT for outcome, _by in fates):
                return _distinct(found)
        if rule.parts and rule.parts[-1] == {"xt": None}:  # where old versions of nft have iptables' target, and say no more
            found.append(("drop", rule))
        return _distinct([*found, (_NEXT, None)])

    def _follow(self, rule: Rule, word: str, target: str, depth: int) -> list[_Fate]:
        if word in ("jump", "goto"):
            place = (*rule.place[:2], target)
            if (fates := self._known.get(place)) is None:
                fates = self._known[place] = self.chain(place, depth + 1)
            return [(_NEXT if outcome == _LEAVE and word == "jump" else outcome, by) for outcome, by in fates]
        return [(outcome, None if outcome == _LEAVE else rule) for outcome in _OUTCOMES.get(word, _OUTCOMES["queue"])]

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
                return meets(asked, self.packet, self._sets(rule))
            case {"xt": {"type": "match", "name": "comment"}}:
                return True
            case {"xt": {"type": "match"}} | {"xt": None}:
                return None
            case {"set": {"stmt": within}} | {"meter": {"stmt": within}}:  # a limit for each address
                return None if any(name in MATCHING for one in _listed(within) for name in one) else True
        return None if any(name in MATCHING for name in part) else True

    def _verdicts(self, part: Mapping[str, Any], rule: Rule) -> Iterator[tuple[str, str]]:
        """What a statement may do: a word, and the chain that it leads to. Nothing where it decides nothing."""
        for word in (*_OUTCOMES, "jump", "goto"):
            if word in part:
                yield word, part[word]["target"] if word in ("jump", "goto") else ""
        match part:
            case {"xt": {"type": "target", "name": "REJECT" | "DROP"}}:
                yield "drop", ""
            case {"xt": {"type": "target", "name": "NFQUEUE"}}:
                yield "queue", ""
            case {"vmap": {"key": key, "data": data}}:
                yield from self._mapped(key, data, rule)

    def _mapped(self, key: Any, data: Any, rule: Rule) -> Iterator[tuple[str, str]]:
        """A verdict map: the verdict of the key that the packet has; of each that it may have, and of none."""
        held = value(key, self.packet)
        sets = self._sets(rule)
        pairs = sets.get(data[1:]) if isinstance(data, str) else data.get("set") if isinstance(data, dict) else None
        if pairs is None:
            yield "queue", ""  # who knows
        for pair in pairs or ():
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], dict):
                continue
            if isinstance(key, dict) and "ct" in key:
                found = meets({"left": key, "op": "in", "right": pair[0]}, self.packet, sets)
            else:
                found = among(held, pair[0], sets) if held not in (None, False) else held
            word, target = next(iter(pair[1].items()))
            if found is not False:
                yield word, target["target"] if isinstance(target, dict) else ""
            if found:
                return
        yield "continue", ""

    def _sets(self, rule: Rule) -> Mapping[str, Sequence[Any]]:
        return self._rules.sets.get(rule.place[:2], {})


def _listed(held: Any) -> list[Any]:
    return held if isinstance(held, list) else [held]


def _distinct(fates: list[_Fate]) -> list[_Fate]:
    """Each once, where it comes last: chains that many rules may lead to would else multiply theirs."""
    return list({(outcome, id(by)): (outcome, by) for outcome, by in reversed(fates)}.values())[::-1]


def _policy(base: Base) -> str:
    return f"chain {base.place[2]} of {_named(base.place)} (policy {base.policy})"


def _table(place: Place) -> str:
    return f"{place[0]} {place[1]}"


def legacy(table: str) -> str:
    """What a table of iptables-legacy is called here."""
    return f"{table}{_OLD}"


def _is_old(place: Place) -> bool:
    return place[1].endswith(_OLD)


def _named(place: Place) -> str:
    return _iptables(place) if _is_old(place) else f"nft table {_table(place)}"


def _iptables(place: Place) -> str:
    table = place[1].removesuffix(_OLD)
    return f"{'iptables' if place[0] == 'ip' else 'ip6tables'}-legacy{'' if table == 'filter' else f' -t {table}'}"


def _said(rule: Rule) -> str:
    if _is_old(rule.place):
        return f"rule {rule.handle} of chain {rule.place[2]} of {_iptables(rule.place)}"
    return f"a rule in chain {rule.place[2]} of nft table {_table(rule.place)} (handle {rule.handle})"


def _remedy(base: Base, rule: Rule | None, packet: Packet) -> str:
    if rule is not None:
        if _is_old(rule.place):
            return f"{_iptables(rule.place)} -D {rule.place[2]} {rule.handle}"
        return f"nft delete rule {' '.join(rule.place)} handle {rule.handle}"
    old, end = _is_old(base.place), packet.behind or packet.source
    if packet.port:
        asked = [f"-p udp --dport {packet.port}" if old else f"udp dport {packet.port}"]
    elif old:
        asked = [f"-s {end}", f"-d {end}"]
    else:
        asked = [f"{'ip' if packet.version == 4 else 'ip6'} {side} {end}" for side in ("saddr", "daddr")]
    put = f"{_iptables(base.place)} -I {base.place[2]} %s -j ACCEPT" if old else f"nft insert rule {' '.join(base.place)} %s accept"
    return " && ".join(put % each for each in (asked if packet.behind is not None else asked[:1]))
