"""What of the overlay does the host's own firewall drop? What has to pass for some peers, and which rules stop it.

Judged is what comes from other hosts and what goes to them, with all that is around it, and what is forwarded from and to
containers: a new packet of no protocol in particular, from and to two addresses of a subnet, for a rule about one container or one
service is somebody's policy. Told is only what is certain; rules that may drop something are ``flannelpy trace``'s to speak of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.entrances import Entrance, iptables, let_in
from flannelpy.core.envelope import Envelope
from flannelpy.core.filter_match import ANY, UDP, Packet
from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.packet_filter import LEGACY, Hook, Rule, Ruleset, Ruling, judge

SMALL = 84
"""Bytes of a small packet, with its IP header: as ping's."""

SYMMETRIC = frozenset({"established"})

Step = tuple[Hook, Packet]


@dataclass(frozen=True, slots=True)
class Way:
    """How packets go to a peer: from containers in ``ours`` to those in ``theirs`` by ``device``, in an ``envelope`` to ``outer``;
    without one, as they are.
    """

    ours: IPNetwork
    theirs: IPNetwork
    device: str
    envelope: Envelope | None = None
    outer: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """Where: the uplink with its addresses, empty where packets leave by any link; the bridge of the containers, empty without
    one; the MTU of the overlay, in bytes. ``told``: that the chains of hook forward drop something is told elsewhere.
    """

    uplink: str
    own: tuple[IPAddress, ...]
    bridge: str
    mtu: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """What has to pass, in words, and the hooks on its way. It is dropped where it is in each of its ``guises``; ``port``: that it
    comes in by, 0 without one; ``net``: that is forwarded.
    """

    said: str
    guises: tuple[tuple[Step, ...], ...]
    more: int
    port: int = 0
    net: IPNetwork | None = None


def passages(ways: Iterable[Way], ground: Ground) -> Iterator[Passage]:
    """All that has to pass for these peers."""
    for way in ways:
        if way.envelope is not None and way.outer is not None and ground.uplink:
            own = next((each for each in ground.own if each.version == way.outer.version), None)
            if own is not None:
                yield from _outside(way, way.envelope, way.outer, own, ground)
        if ground.bridge:
            yield from _forwarded(way, ground)


def _outside(way: Way, envelope: Envelope, outer: IPAddress, own: IPAddress, ground: Ground) -> Iterator[Passage]:
    overhead = envelope.overhead(outer.version)
    size, more = SMALL + overhead, max(0, ground.mtu - SMALL)
    ours, theirs = _some(way.ours)[-1], _some(way.theirs)[-1]
    comes = Packet(outer, own, ground.uplink, "", envelope.protocol, envelope.port, size)
    comes = replace(comes, transport=envelope.transport(theirs, ours))
    leaves = Packet(own, outer, "", ground.uplink, envelope.protocol, envelope.port, size)
    leaves = replace(leaves, transport=envelope.transport(ours, theirs))
    # VXLAN's source port is another one for each flow, so that to conntrack no packet is an answer to one of ours (RFC 7348 5).
    states = [leaves.states] if envelope.vni is not None else [leaves.states, SYMMETRIC]
    yield Passage(
        f"{envelope} from {outer} on {ground.uplink}",
        tuple((("prerouting", packet), ("input", packet)) for packet in (replace(comes, states=held) for held in states)),
        more,
        envelope.port,
    )
    yield Passage(
        f"{envelope} to {outer} on {ground.uplink}",
        tuple((("output", packet), ("postrouting", packet)) for packet in (replace(leaves, states=held) for held in states)),
        more,
    )


def _forwarded(way: Way, ground: Ground) -> Iterator[Passage]:
    for ours, theirs, arrives, leaves in (
        (way.ours, way.theirs, ground.bridge, way.device),
        (way.theirs, way.ours, way.device, ground.bridge),
    ):
        guises = []
        for source, destination in zip(_some(ours), _some(theirs), strict=False):
            packet = Packet(source, destination, arrives, leaves, ANY, size=SMALL, behind=way.ours)
            hooks: tuple[Step, ...] = (("prerouting", replace(packet, leaves="")), ("forward", packet), ("postrouting", packet))
            guises.append(tuple(step for step in hooks if not (ground.told and step[0] == "forward")))
        said = f"what containers in {ours} send to {theirs} by {leaves}"
        yield Passage(said, tuple(guises), max(0, ground.mtu - SMALL), net=way.ours)


def _some(net: IPNetwork) -> list[IPAddress]:
    """Two addresses of containers, far from each other; of a small subnet what there is."""
    return [IPAddress(value, net.version) for value in sorted({min(net.first + 2, net.last), max(net.first, net.last - 2)})]


def dropped(rules: Ruleset, wanted: Sequence[Passage], uplink: str) -> dict[str, str]:
    """What is certainly dropped, by the rule that drops it, in words that end in a command that mends it."""
    if not rules.bases:
        return {}
    rules = narrowed(rules, [packet for each in wanted for guise in each.guises for _hook, packet in guise])
    found: dict[str, tuple[str, list[str]]] = {}
    for each in wanted:
        for more, what in ((0, ""), (each.more, "large packets, ")) if each.more else ((0, ""),):
            ruling = _ruling(rules, each, more)
            if ruling is not None:
                _remedy, said = found.setdefault(ruling.dropped, (_mend(rules, ruling, each, uplink), []))
                said.append(what + each.said)
                break
    return {by: f"{_listed(said)}, dropped by {by}: {remedy}" for by, (remedy, said) in found.items()}


def _ruling(rules: Ruleset, passage: Passage, more: int) -> Ruling | None:
    """The ruling that drops it; None where any guise passes, or may."""
    first = None
    for guise in passage.guises:
        rulings = (judge(rules, hook, packet.larger(more)) for hook, packet in guise)
        ruling = next((one for one in rulings if one.dropped), None)
        if ruling is None:
            return None
        first = first or ruling
    return first


def _mend(rules: Ruleset, ruling: Ruling, passage: Passage, uplink: str) -> str:
    """How whoever made the rule would let it through; else the ruling's own remedy."""
    by, net = ruling.dropped, passage.net
    firewalld = by.endswith(" firewalld") or " firewalld " in by
    ufw = iptables(by) and " ufw" in by
    if passage.port and (firewalld or ufw or ("policy drop" in by and " filter (" in by and iptables(by))):
        _hook, packet = passage.guises[0][0]
        return let_in(rules, by, uplink, Entrance(UDP, passage.port), packet.version)
    if firewalld and net is not None:
        return f"firewall-cmd --permanent --zone=trusted --add-source={net} && firewall-cmd --reload, and for each peer's subnet"
    return ruling.remedy


def _listed(said: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(said))
    more = len(distinct) - 2
    return " and ".join(distinct[:2]) + (f" (and {more} more)" if more > 0 else "")


def with_accepts(rules: Ruleset, put: Iterable[ForwardAccept]) -> Ruleset:
    """The same with these rules of ours before the others in their chains, as the agent puts them there."""
    chains = dict(rules.chains)
    for each in put:
        family = "ip" if each.version == 4 else "ip6"
        place = (family, LEGACY if each.tool == "legacy" else "filter", each.chain)
        if place not in chains:
            continue
        parts: list[Mapping[str, Any]] = [
            _match({"payload": {"protocol": family, "field": field}}, {"prefix": {"addr": str(net.ip), "len": net.prefixlen}})
            for field, net in (("saddr", each.source), ("daddr", each.destination))
            if net is not None
        ]
        parts += [_match({"meta": {"key": "iifname"}}, each.not_in, "!=")] if each.not_in else []
        chains[place] = [Rule(place, 0, (*parts, {"accept": None})), *chains[place]]
    return replace(rules, chains=chains)


def _match(left: Mapping[str, Any], right: Any, op: str = "==") -> Mapping[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


# ------------------------------------------------------------------------------------------------------ what may matter

_FIELDS = {"saddr": "source", "daddr": "destination"}
_DEVICES = {"iifname": "arrives", "oifname": "leaves"}


def narrowed(rules: Ruleset, packets: Sequence[Packet]) -> Ruleset:
    """The same without the rules that none of these packets meets, by an address or an interface that they ask for: of thousands
    (blocklists) nearly all.
    """
    known: dict[str, frozenset[int]] = {
        field: frozenset(int(getattr(packet, name)) for packet in packets) for field, name in _FIELDS.items()
    }
    names = {key: frozenset(getattr(packet, name) for packet in packets) for key, name in _DEVICES.items()}
    chains = {
        place: [rule for rule in held if not _is_of_others(rule, known, names)] if held else held
        for place, held in rules.chains.items()
    }
    return replace(rules, chains=chains)


def _is_of_others(rule: Rule, known: Mapping[str, frozenset[int]], names: Mapping[str, frozenset[str]]) -> bool:
    for part in rule.parts:
        match = part.get("match")
        if match is None or match.get("op") != "==":
            continue
        left, right = match.get("left"), match.get("right")
        if not isinstance(left, dict):
            continue
        payload, meta = left.get("payload"), left.get("meta")
        if payload is not None and payload.get("field") in known and "tunnel" not in payload:
            ends = _ends(right)
            if ends is not None and not any(ends[0] <= each <= ends[1] for each in known[payload["field"]]):
                return True
        elif meta is not None and meta.get("key") in names and isinstance(right, str) and right[:1] not in ("@", ""):
            wanted = names[meta["key"]]
            if right not in wanted and not (right.endswith("*") and any(each.startswith(right[:-1]) for each in wanted)):
                return True
    return False


def _ends(right: Any) -> tuple[int, int] | None:
    """First and last of the addresses on the right of a comparison; None where that is anything else."""
    length: int | None = None
    if isinstance(right, dict) and isinstance(prefix := right.get("prefix"), dict):
        right, length = prefix.get("addr"), prefix.get("len")
        if not isinstance(length, int):
            return None
    if not isinstance(right, str):
        return None
    first = _value(right)
    if first is None:
        return None
    host = 0 if length is None else (1 << max(0, (128 if ":" in right else 32) - length)) - 1
    return first & ~host, first | host


def _value(text: str) -> int | None:
    """An address as a number. IPv4's without netaddr, which takes ten times as long: of thousands of rules each has one."""
    parts = text.split(".")
    if len(parts) == 4 and all(part.isdecimal() and len(part) < 4 for part in parts):
        a, b, c, d = map(int, parts)
        return a << 24 | b << 16 | c << 8 | d
    try:
        return int(IPAddress(text)) if ":" in text else None
    except (AddrFormatError, ValueError):
        return None
