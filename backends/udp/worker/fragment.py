"""What does a router make of a packet that is too long and may be cut? Its fragments: RFC 791 3.2, RFC 1812 4.2.2.7."""

from __future__ import annotations

from backends.udp.worker.packet import checksum

DONT_FRAGMENT = 0x4000
_MORE = 0x2000
_OFFSET = 0x1FFF
_UNIT = 8
"""Offsets count in eight bytes."""

_END, _NOTHING = 0, 1
_COPIED = 0x80
"""The bit of an option's type that says: in every fragment."""


def fragments(packet: memoryview, mtu: int) -> list[bytes]:
    """``packet``, whose header is in order, in pieces of at most ``mtu`` bytes.

    It may be a fragment itself. Empty where it cannot be: ``mtu`` is too small, or it would reach beyond the longest packet.
    """
    size = (packet[0] & 15) * 4
    header, rest = bytes(packet[:size]), packet[size:]
    place = header[6] << 8 | header[7]
    made = []
    at = 0
    while at < len(rest):
        step = mtu - len(header)
        more = _MORE
        if step >= len(rest) - at:
            step, more = len(rest) - at, place & _MORE
        elif step < _UNIT:
            return []
        else:
            step -= step % _UNIT
        offset = (place & _OFFSET) + at // _UNIT
        if offset > _OFFSET:
            return []
        made.append(_headed(header, place & ~(_MORE | _OFFSET) | more | offset, rest[at : at + step]))
        if not at:
            header = _of_later_ones(header)
        at += step
    return made


def _headed(header: bytes, place: int, payload: memoryview) -> bytes:
    """A fragment: ``header`` with the length, the place and the checksum that are its own."""
    length = len(header) + len(payload)
    made = bytearray(header)
    made[2:4] = length.to_bytes(2, "big")
    made[6:8] = place.to_bytes(2, "big")
    made[10:12] = b"\0\0"
    made[10:12] = checksum(made).to_bytes(2, "big")
    return bytes(made) + payload


def _of_later_ones(header: bytes) -> bytes:
    """The header without the options that are the first fragment's alone."""
    kept = b""
    at = 20
    while at < len(header) and header[at] != _END:
        if header[at] == _NOTHING:
            at += 1
            continue
        length = header[at + 1] if at + 1 < len(header) else 0
        if length < 2 or at + length > len(header):
            break  # what cannot be read is not copied
        if header[at] & _COPIED:
            kept += header[at : at + length]
        at += length
    kept += bytes(-len(kept) % 4)
    return bytes((0x40 | (20 + len(kept)) // 4,)) + header[1:20] + kept
