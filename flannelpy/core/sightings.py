"""Where was a packet of ours seen, and where last? It is known by a mark in its data that nobody else can have."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from netaddr import IPAddress

from flannelpy.core.envelope import Envelope

Kind = Literal["request", "answer", "error"]

_IPV4 = 0x45
"""Version 4, five words: ours have no options."""
_IP, _ICMP_HEADER, _ETHERNET = 20, 8, 14
_ICMP = 1
_REQUEST, _ANSWER = 8, 0
_ERRORS = {
    (3, 0): "its network cannot be reached",
    (3, 1): "its host cannot be reached",
    (3, 3): "nobody listens at that port",
    (3, 9): "prohibited",
    (3, 10): "prohibited",
    (3, 13): "prohibited",
    (11, 0): "it was on its way for too long (TTL)",
}
"""Type and code (RFC 792, RFC 1812), in words."""


@dataclass(frozen=True, slots=True)
class Way:
    """By what a packet goes, as the kernel has it: the containers' bridge (``mtu``: its own), the overlay's device, the uplink;
    empty where there is none, or it is not known. ``outer``: where an envelope goes.
    """

    bridge: str = ""
    mtu: int = 0
    overlay: str = ""
    envelope: Envelope | None = None
    outer: IPAddress | None = None
    uplink: str = ""

    @property
    def blind(self) -> str:
        """Where nothing can be known by what is inside; empty where it can everywhere."""
        return self.uplink if self.envelope is not None and self.envelope.hidden and self.overlay else ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """``sent``: by this host, else it came in; ``sequence``: which of our packets it is, or answers; ``after_s``: since that was
    sent; ``said``: by an error, in words.
    """

    place: str
    sent: bool
    kind: Kind
    sequence: int
    after_s: float
    data: bytes
    said: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of our packets of ``size`` bytes: ``answered``, and in words; ``last``: the last sighting."""

    size: int
    answered: bool
    said: str
    last: Sighting | None


def recognised(data: bytes, mark: bytes) -> tuple[Kind, int, str] | None:
    """What a frame is to us, of which of our packets (the sequence), and what an error says; None where it is nothing."""
    found = data.find(mark)
    icmp = found - _ICMP_HEADER
    if found < 0 or icmp < 0:
        return None
    (sequence,) = struct.unpack_from("!H", data, icmp + 6)
    for error in dict.fromkeys((_outermost(data), icmp - _IP - _ICMP_HEADER)):
        if (said := _error(data, error, icmp)) is not None:
            return "error", int(sequence), said
    if data[icmp] not in (_REQUEST, _ANSWER):
        return None
    return "request" if data[icmp] == _REQUEST else "answer", int(sequence), ""


def _outermost(data: bytes) -> int:
    """Where ICMP would begin behind the first IP header."""
    return _IP if data[:1] == bytes([_IPV4]) else _ETHERNET + _IP


def _error(data: bytes, at: int, quoted: int) -> str | None:
    """What the ICMP error at this place says, in which ``quoted`` is our own; None where there is none."""
    header = at - _IP
    if header < 0 or at + _ICMP_HEADER > quoted or data[header] != _IPV4 or data[header + 9] != _ICMP:
        return None
    kind, code = data[at], data[at + 1]
    if kind not in (3, 11) or data[at + _ICMP_HEADER] != _IPV4:
        return None
    who = IPAddress(int.from_bytes(data[header + 12 : header + 16], "big"), 4)
    if (kind, code) == (3, 4):
        return f"{who}: too large, the way carries {int.from_bytes(data[at + 6 : at + 8], 'big')} bytes"
    return f"{who}: {_ERRORS.get((kind, code), f'ICMP type {kind}, code {code}')}"


def stage(one: Sighting, way: Way) -> int:
    """How far on the way there and back that is: what came in at a device has there the time of the one before it."""
    there = [way.bridge, way.overlay, way.uplink]
    at = there.index(one.place) if one.place in there else 0
    return at if one.kind == "request" else 10 - at


def outcome(seen: Sequence[Sighting], way: Way, size: int, missed: int = 0, smaller: Outcome | None = None) -> Outcome:
    """What became of the packets of one ``size``, of which these are all sightings. ``missed``: how many packets passed that
    could not be looked at; ``smaller``: what became of those before.
    """
    last = max(seen, key=lambda one: stage(one, way), default=None)
    answers = [one for one in seen if one.kind == "answer" and one.place == way.bridge]
    if answers:
        return Outcome(size, True, f"{size} bytes: answered after {answers[0].after_s * 1000:.2f} ms", last)
    errors = [one for one in seen if one.kind == "error"]
    if errors:
        return Outcome(size, False, f"{size} bytes: stopped, {errors[-1].said}", last)
    more = "; small ones are answered: the way does not carry that many bytes" if smaller is not None and smaller.answered else ""
    more += f"; {missed:,} packets passed unseen, ours may be among them" if missed else ""
    return Outcome(size, False, f"{size} bytes: {_lost(last, way)}{more}", last)


def _lost(last: Sighting | None, way: Way) -> str:
    if last is None:
        return f"not even seen to come in by {way.bridge}: does a bridge's port forward there?"
    if last.kind == "answer":
        into = way.overlay if last.place == way.uplink and way.overlay else way.bridge
        return f"the answer was last seen to come in by {last.place}: this host did not let it through to {into}"
    if last.place == way.bridge:
        out = way.overlay or way.uplink
        return f"last seen to come in by {way.bridge}: this host did not send it on{f' by {out}' if out else ''}"
    if last.place == way.overlay and way.blind:
        return f"last seen at {way.overlay}; what leaves by {way.blind} is encrypted and cannot be known, and no answer came"
    if last.place == way.overlay:
        return f"last seen at {way.overlay}: nothing of it left by {way.uplink or 'any uplink'}"
    to = f" to {way.outer}" if way.outer is not None else ""
    return f"last seen to leave by {way.uplink}{to}: lost or dropped on the way there, there, or on the way back"
