"""Does a packet meet what a firewall rule asks for? Expressions of nft's JSON (libnftables-json(5)): true, false, or unknown.

What a rule asks of a part that the packet does not have (a TCP port of a UDP datagram) is false, as in the kernel, which looks at
the protocol first. What is not known here (the fib, limits) is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

Truth = bool | None
Parts = frozenset[int | str]
"""One value in each way that nft may print it."""

ICMP = {4: 1, 6: 58}
UDP, IPIP = 17, 4
ANY = -1
"""Of whatever protocol: what is asked of that, and of its header, is not known."""
_PROTOCOLS = {"icmp": 1, "ipencap": 4, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132}
_ECHO = {4: 8, 6: 128}
_TOLD = 64
"""Bits of a number that nft's JSON tells; of a longer one it is not known what it tells."""
_NOT = ("!=", "!")
"""The second is asked of flags: that none of them is set."""
_OF = {1: ("icmp", "th"), 17: ("udp", "th"), 58: ("icmpv6", "th")}
_OF_OTHERS = frozenset({"arp", "tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6", "igmp", "esp", "ah", "comp", "th"})
"""Headers that a packet of another protocol does not have; of any other (the frame's, what a tunnel carries) nothing is known."""
ALL_OTHERS = "*"
"""The element of a set that is met by whatever meets none of the others."""
MATCHING = frozenset({"limit", "quota", "ct count", "last", "connlimit"})
"""Statements that let a packet go on to the next or not, by what happened before."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet at a hook. ``arrives`` and ``leaves``: by which interface, empty where it is none; ``size`` in bytes with the IP
    header; ``states``: what connection tracking may say of it; ``transport``: its bytes from behind the IP header, as far as known;
    ``marked``: a rule may have given it a mark; ``behind``: the subnet of the containers that it comes from or goes to.
    """

    source: IPAddress
    destination: IPAddress
    arrives: str = ""
    leaves: str = ""
    protocol: int = 1
    port: int = 0
    size: int = 84
    states: frozenset[str] = frozenset({"new"})
    transport: bytes = b""
    marked: bool = False
    behind: IPNetwork | None = None

    @property
    def version(self) -> int:
        return int(self.source.version)

    @property
    def is_for_us(self) -> bool:
        """It comes to a port of this host, and is not forwarded."""
        return bool(self.arrives and self.port and not self.leaves)

    def larger(self, more: int) -> Packet:
        """The same, with so many bytes more in it."""
        return replace(self, size=self.size + more)


Sets = Mapping[str, Sequence[Any]]


def meets(match: Mapping[str, Any], packet: Packet, sets: Sets) -> Truth:
    """Whether the packet is what a ``match`` asks for. ``sets``: the elements of its table's, by name."""
    asked, right, op = match.get("left"), match.get("right"), match.get("op")
    if isinstance(asked, dict) and "ct" in asked:
        return _state(asked["ct"], right, op, packet, sets)
    left = value(asked, packet)
    if left is False:
        return False
    if left is None:
        return None
    if op in ("<", ">", "<=", ">="):
        return _ordered(left, right, str(op))
    found = among(left, right, sets)
    return found if found is None or op not in _NOT else not found


def value(asked: Any, packet: Packet) -> Parts | tuple[Parts, ...] | bool | None:
    """What the packet has there: False where it has no such part, None where that is not known."""
    match asked:
        case {"meta": {"key": str(key)}}:
            return _meta(key, packet)
        case {"fib": {"result": "type", "flags": ["daddr"]}}:
            return frozenset({"local"}) if packet.is_for_us else None
        case {"payload": {"tunnel": _}}:
            return None  # of what it carries, and not its own
        case {"payload": {"base": "th", "offset": int(offset), "len": int(length)}}:
            return _bits(packet.transport, offset, length)
        case {"payload": {"protocol": str(protocol), "field": str(name)}}:
            return _field(protocol, name, packet)
        case {"&": [inner, int(mask)]}:
            held = value(inner, packet)
            numbers = [each for each in held if isinstance(each, int)] if isinstance(held, frozenset) else []
            return frozenset({numbers[0] & mask}) if numbers else held if held is False else None
        case {"concat": [*each]}:
            parts = [value(one, packet) for one in each]
            if any(part is False for part in parts):
                return False
            known = tuple(part for part in parts if isinstance(part, frozenset))
            return known if len(known) == len(parts) else None
    return None


def among(left: Parts | tuple[Parts, ...] | bool, right: Any, sets: Sets) -> Truth:
    """Whether a value is the one on the right, or one of those."""
    match right:
        case str(name) if name.startswith("@"):
            return _any(among(left, each, sets) for each in sets[name[1:]]) if name[1:] in sets else None
        case {"set": [*each]} | [*each]:
            return _any(among(left, one, sets) for one in each)
        case str(word) if word == ALL_OTHERS:
            return True
        case {"elem": {"val": held, **more}}:
            found = among(left, held, sets)
            return None if found and not MATCHING.isdisjoint(more) else found
        case {"concat": [*each]}:
            if not isinstance(left, tuple) or len(left) != len(each):
                return None
            return _all(among(part, one, sets) for part, one in zip(left, each, strict=True))
    if not isinstance(left, frozenset):
        return None
    numbers = [each for each in left if isinstance(each, int)]
    match right:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            net = _network(address, length)
            return None if net is None or not numbers else net.first <= numbers[0] <= net.last
        case {"range": [first, last]}:
            ends = _number(first), _number(last)
            return None if None in ends or not numbers else bool(ends[0] <= numbers[0] <= ends[1])  # type: ignore[operator]
        case str(text) if text.endswith("*"):
            return any(isinstance(each, str) and each.startswith(text[:-1]) for each in left)
        case str(text):
            return text in left or _number(text) in left
        case bool():
            return None
        case int(number):
            return _unsigned(number) in left
    return None


# --------------------------------------------------------------------------------------------------------------- the packet


def _meta(key: str, packet: Packet) -> Parts | None:
    version = packet.version
    known: Mapping[str, Callable[[], Parts | None]] = {
        "iifname": lambda: frozenset({packet.arrives}),
        "oifname": lambda: frozenset({packet.leaves}),
        "iif": lambda: frozenset({packet.arrives or "no interface"}),
        "oif": lambda: frozenset({packet.leaves or "no interface"}),
        "l4proto": lambda: _protocol(packet),
        "nfproto": lambda: frozenset({f"ipv{version}", {4: 2, 6: 10}[version]}),
        "protocol": lambda: frozenset({{4: "ip", 6: "ip6"}[version], {4: 0x800, 6: 0x86DD}[version]}),
        "length": lambda: frozenset({packet.size}),
        "mark": lambda: None if packet.marked else frozenset({0}),
    }
    return known[key]() if key in known else None


def _field(protocol: str, name: str, packet: Packet) -> Parts | bool | None:
    if protocol in ("ip", "ip6"):
        if protocol != {4: "ip", 6: "ip6"}[packet.version]:
            return False
        fields = {
            "saddr": frozenset({int(packet.source)}),
            "daddr": frozenset({int(packet.destination)}),
            "length": frozenset({packet.size if packet.version == 4 else packet.size - 40}),
        }
        return _protocol(packet) if name in ("protocol", "nexthdr") else fields.get(name)
    if packet.protocol == ANY:
        return None
    if protocol not in _OF.get(packet.protocol, ()):
        return False if protocol in _OF_OTHERS else None
    if packet.protocol == UDP:
        return frozenset({packet.port}) if name == "dport" else None
    echo = ("echo-request", _ECHO[packet.version]) if "new" in packet.states else ("echo-reply", {4: 0, 6: 129}[packet.version])
    return frozenset(echo) if name == "type" else frozenset({0}) if name == "code" else None


def _protocol(packet: Packet) -> Parts | None:
    if packet.protocol == ANY:
        return None
    return frozenset({packet.protocol, *(name for name, number in _PROTOCOLS.items() if number == packet.protocol)})


def _bits(data: bytes, offset: int, length: int) -> Parts | None:
    if offset + length > len(data) * 8 or length > _TOLD:
        return None
    whole = int.from_bytes(data, "big")
    return frozenset({whole >> (len(data) * 8 - offset - length) & ((1 << length) - 1)})


def _state(ct: Any, right: Any, op: Any, packet: Packet, sets: Sets) -> Truth:
    if isinstance(ct, dict) and ct.get("key") == "status" and right in ("dnat", "snat"):
        return op in _NOT  # nobody translates what hosts of an overlay send each other
    if not isinstance(ct, dict) or ct.get("key") != "state":
        return None
    listed = right.get("set", right) if isinstance(right, dict) else right
    if isinstance(listed, str) and listed.startswith("@"):
        listed = sets.get(listed[1:])
    wanted = listed if isinstance(listed, list) else [listed]
    if not all(isinstance(each, str) for each in wanted):
        return None
    hits = packet.states if ALL_OTHERS in wanted else packet.states & set(wanted)
    found = True if hits == packet.states else None if hits else False
    return found if found is None or op not in _NOT else not found


# ------------------------------------------------------------------------------------------------------------------ numbers


def _ordered(left: Parts | tuple[Parts, ...] | bool, right: Any, op: str) -> Truth:
    numbers = [each for each in left if isinstance(each, int)] if isinstance(left, frozenset) else []
    other = _number(right)
    if not numbers or other is None:
        return None
    number = numbers[0]
    return {"<": number < other, ">": number > other, "<=": number <= other, ">=": number >= other}[op]


def _number(text: Any) -> int | None:
    if isinstance(text, int):
        return _unsigned(text)
    if not isinstance(text, str):
        return None
    if text in _PROTOCOLS:
        return _PROTOCOLS[text]
    try:
        return int(IPAddress(text)) if "." in text or ":" in text else None
    except (AddrFormatError, ValueError):
        return None


def _unsigned(number: int) -> int:
    """nft writes what has the highest of 64 bits set as a negative number."""
    return number + (1 << _TOLD) if number < 0 else number


def _network(address: str, length: int) -> IPNetwork | None:
    try:
        return IPNetwork(f"{address}/{length}")
    except (AddrFormatError, ValueError):
        return None


def _any(each: Any) -> Truth:
    found: Truth = False
    for one in each:
        if one:
            return True
        found = None if one is None else found
    return found


def _all(each: Any) -> Truth:
    found: Truth = True
    for one in each:
        if one is False:
            return False
        found = None if one is None else found
    return found
