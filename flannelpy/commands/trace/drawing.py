"""What does a packet look like, layer by layer? A box of lines, and what is inside of an envelope in a box of its own.

scapy knows the headers; where one ends and the next begins is reckoned here, for what is inside of UDP only the sender knows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from flannelpy.core.envelope import Envelope
from flannelpy.core.filter_match import UDP
from flannelpy.core.foreign import printable

_ETHERNET, _UDP, _VXLAN, _ICMP = 14, 8, 8, 8
_IPV4 = b"\x08\x00"
DEEPEST = 4
"""Packets within packets that are drawn; whoever answers us may have put one into the other a thousand times."""
_KINDS = {0: "echo reply", 3: "destination unreachable", 8: "echo request", 11: "time exceeded"}


@dataclass(slots=True)
class Box:
    """``rows``: a layer's name, its bytes, and what matters in it. ``inside``: what the last of them carries."""

    rows: list[tuple[str, int, str]] = field(default_factory=list)
    inside: Box | None = None


def draw(data: bytes, title: str, envelope: Envelope | None, mark: bytes) -> list[str]:
    """The lines of a frame, or of a bare IPv4 packet. ``envelope``: what may be around it; ``mark``: our data begins with it."""
    lines = _lines(boxes(data, envelope, mark))
    title = f" {printable(title, 70)} "
    width = max(len(title) + 4, *map(len, lines))
    return [f"+-{title:-<{width + 1}}+", *(f"| {line:<{width}} |" for line in lines), f"+{'-' * (width + 2)}+"]


def _lines(box: Box) -> list[str]:
    lines = [f"{name:<9}{size:>5}  {said}".rstrip() for name, size, said in box.rows]
    if box.inside is None:
        return lines
    inner = _lines(box.inside)
    width = max(map(len, inner))
    edge = f"+{'-' * (width + 2)}+"
    return [*lines, edge, *(f"| {line:<{width}} |" for line in inner), edge]


def boxes(data: bytes, envelope: Envelope | None, mark: bytes, depth: int = 0) -> Box:
    """The layers. What is too short for what it says it is, or too ``depth`` within others, is shown as bytes."""
    box = Box()
    if depth > DEEPEST:
        box.rows.append(("bytes", len(data), ""))
        return box
    if data[12:14] == _IPV4 and data[:1] != b"\x45":
        _ethernet(box, data)
        data = data[_ETHERNET:]
    _ip(box, data, envelope, mark, depth)
    return box


def _ethernet(box: Box, data: bytes) -> None:
    from scapy.layers.l2 import Ether

    frame = Ether(data[:_ETHERNET])
    box.rows.append(("Ethernet", _ETHERNET, f"{frame.src} > {frame.dst}"))


def _ip(box: Box, data: bytes, envelope: Envelope | None, mark: bytes, depth: int) -> None:
    from scapy.layers.inet import IP

    size = (data[0] & 15) * 4 if data else 0
    if len(data) < 20 or data[0] >> 4 != 4 or not 20 <= size <= len(data):
        box.rows.append(("bytes", len(data), "no IPv4 packet"))
        return
    header = IP(data[:20])  # without its options, which anybody may have written
    flags = "".join(f", {name}" for name in ("DF", "MF") if getattr(header.flags, name))
    box.rows.append(("IPv4", size, f"{header.src} > {header.dst}, TTL {header.ttl}{flags}"))
    inside = data[size : header.len or len(data)]  # behind it there may be the padding of a short frame
    if header.proto == 1:
        _icmp(box, inside, mark, depth)
    elif header.proto == UDP and envelope is not None and envelope.protocol == UDP:
        _udp(box, inside, envelope, mark, depth)
    elif header.proto == 4:
        box.inside = boxes(inside, None, mark, depth + 1)
    else:
        box.rows.append(("data", len(inside), f"IP protocol {header.proto}"))


def _udp(box: Box, data: bytes, envelope: Envelope, mark: bytes, depth: int) -> None:
    from scapy.layers import inet

    if len(data) < _UDP:
        box.rows.append(("bytes", len(data), "cut off"))
        return
    header, inside = inet.UDP(data[:_UDP]), data[_UDP:]
    box.rows.append(("UDP", _UDP, f"{header.sport} > {header.dport}"))
    if envelope.hidden:
        box.rows.append(("data", len(inside), "encrypted"))
        return
    if envelope.vni is not None and len(inside) > _VXLAN:
        box.rows.append(("VXLAN", _VXLAN, f"VNI {int.from_bytes(inside[4:7], 'big')}"))  # RFC 7348 section 5
        inside = inside[_VXLAN:]
    box.inside = boxes(inside, None, mark, depth + 1)


def _icmp(box: Box, data: bytes, mark: bytes, depth: int) -> None:
    if len(data) < _ICMP:
        box.rows.append(("bytes", len(data), "cut off"))
        return
    (kind, code, ident, sequence), inside = (
        struct.unpack_from("!BB2xHH", data),
        data[_ICMP:],
    )  # scapy asks some types for more bytes
    echo = f", id {ident}, sequence {sequence}" if kind in (0, 8) else f", code {code}"
    box.rows.append(("ICMP", _ICMP, f"{_KINDS.get(kind, f'type {kind}')}{echo}"))
    if inside and kind not in (0, 8):
        box.inside = boxes(inside, None, mark, depth + 1)  # the packet that it is about
    elif inside:
        box.rows.append(("data", len(inside), "our mark" if inside.startswith(mark) else ""))
