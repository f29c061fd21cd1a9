"""What would a router with segmentation send for one GSO packet? The packets on its wire, byte for byte as Linux makes them.

The headers are the GSO packet's but for: total length; id, counting up; sequence number; PSH and FIN only on the last; CWR only
on the first; UDP length; the checksums. Linux: net/ipv4/af_inet.c inet_gso_segment, tcp_offload.c, udp_offload.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from backends.udp.worker.headers import (
    AT_ADDRESSES,
    AT_FRAGMENT,
    AT_PROTOCOL,
    AT_TOTAL,
    CWR,
    FIN,
    FULL,
    PSH,
    TCP,
    TCP_CHECK,
    TCP_FLAGS,
    TCP_OFFSET,
    UDP,
    UDP_HEADER,
    UDP_LENGTH,
    Cache,
    Headers,
    Octets,
    Rows,
    residue,
    swapped,
)
from backends.udp.worker.virtio import KIND_ECN, KIND_TCP, KIND_UDP

_ROOM = (1 << 16) + (1 << 17)
"""Bytes of one result: a GSO packet and one header more for each piece, of which Linux makes none below 36 bytes for TCP."""

_LONGEST = 65_507
"""Bytes that a datagram can carry. What is longer than a path takes is ``pmtu``'s: the device's MTU may change at any time."""

_SHAPES = 256

_ABOVE = FULL * FULL
"""A multiple of 0xffff above the sum of any packet."""


class Shape(NamedTuple):
    """What the header vectors depend on."""

    size: int
    ihl: int
    header: int
    packets: int
    protocol: int


@dataclass(frozen=True, slots=True)
class Segments:
    """The result: ``octets`` hold ``count`` packets of ``size`` bytes, of which the last may be shorter."""

    octets: memoryview
    size: int
    count: int


class Segmenter:
    """Segments into a buffer of its own."""

    def __init__(self) -> None:
        room = bytearray(_ROOM)
        self._view = memoryview(room)
        self._memory: Octets = np.frombuffer(room, np.uint8)
        self._headers: Cache[Shape, Headers] = Cache(self._lay_out, _SHAPES)

    def _lay_out(self, shape: Shape) -> Headers:
        size, ihl, header, packets, protocol = shape
        rows = Rows(self._memory, 0, size, ihl, header, packets, protocol)
        return Headers(rows, ihl, size, size - header, protocol)

    def segment(self, buffer: bytearray, octets: Octets, at: int, length: int, kind: int, piece: int) -> Segments | None:
        """The GSO packet of ``length`` bytes at ``at`` in ``buffer``, cut into pieces of ``piece`` bytes of payload.

        ``octets`` is the same memory as an array; ``kind`` and ``piece`` are the virtio header's. None for what the kernel never
        hands over. The result stays until the next is made.
        """
        ihl = (buffer[at] & 15) * 4
        protocol = buffer[at + AT_PROTOCOL]
        if kind & ~KIND_ECN == KIND_TCP and protocol == TCP and length >= ihl + 20:
            upper = (buffer[at + ihl + TCP_OFFSET] >> 4) * 4
            if upper < 20:
                return None
        elif kind == KIND_UDP and protocol == UDP:
            upper = UDP_HEADER
        else:
            return None
        header = ihl + upper
        payload = length - header
        fragment = (buffer[at + AT_FRAGMENT] << 8 | buffer[at + AT_FRAGMENT + 1]) & 0x3FFF
        if payload <= 0 or piece == 0 or fragment:
            return None
        size = header + piece
        count = -(-payload // piece)
        if size > _LONGEST or count * size > _ROOM:
            return None
        headers = self._headers[Shape(size, ihl, header, count, protocol)]
        rows = headers.rows

        template = bytearray(buffer[at : at + header])
        template[AT_TOTAL : AT_TOTAL + 2] = size.to_bytes(2, "big")
        flags = 0
        if protocol == TCP:
            flags = template[ihl + TCP_FLAGS]
            template[ihl + TCP_FLAGS] = flags & ~(FIN | PSH | CWR)
            template[ihl + TCP_CHECK : ihl + TCP_CHECK + 2] = b"\0\0"
        else:
            template[ihl + UDP_LENGTH : ihl + UDP_HEADER] = ((size - ihl) << 16).to_bytes(4, "big")
        headers.lay(template)
        if flags & CWR:
            rows.flags[0] |= CWR
        if flags & (FIN | PSH):
            rows.flags[-1] |= flags & (FIN | PSH)

        full, rest = divmod(payload, piece)
        body = at + header
        rows.body[:full] = octets[body : body + full * piece].reshape(full, piece)
        end = full * size
        if rest:
            last = end
            end += header + rest
            self._view[last + header : end] = memoryview(buffer)[body + full * piece : at + length]
            self._view[end : last + size] = bytes(last + size - end)
            headers.shorten(header + rest)

        # A row's sum is its upper layer's, for the IP header with its checksum counts as nothing.
        sums = rows.add_up()
        if rest:
            sums[-1] += FULL + swapped(upper + rest) - swapped(upper + piece)
        pseudo = residue(template[AT_ADDRESSES : AT_ADDRESSES + 8]) + swapped(protocol) + swapped(upper + piece)
        if protocol == TCP:
            np.subtract(_ABOVE - pseudo, sums, out=sums)
            np.remainder(sums, FULL, out=sums)
        else:  # 0 would say that there is none: it is sent as 0xffff (RFC 768)
            sums += np.uint32(pseudo)
            np.remainder(sums, FULL, out=sums)
            np.subtract(FULL, sums, out=sums)
        rows.upper_check[:] = sums
        return Segments(self._view[:end], size, count)
