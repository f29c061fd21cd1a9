"""Which received packets could a router with segmentation have made from one, and what was that one?

Coalesced are neighbours of one flow whose headers differ in nothing but what ``segment`` makes different: ids that count up (or
stay, where DF makes them meaningless), sequence numbers without a gap, PSH and FIN only on the last, CWR only on the first; and
whose checksums are right, for those of the whole are made anew and would cover up a wrong one. Never fragments, IP options, SYN,
RST, URG, UDP without a checksum. Linux's receive offload has the same rules: net/ipv4/tcp_offload.c tcp_gro_receive, udp_offload.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from backends.udp.protocol import HEADER_BYTES, Offload
from backends.udp.worker.headers import (
    AT_ADDRESSES,
    AT_CHECK,
    AT_FRAGMENT,
    AT_ID,
    AT_PROTOCOL,
    AT_TOTAL,
    CWR,
    FIN,
    FULL,
    IHL,
    PSH,
    RST,
    SYN,
    TCP,
    TCP_CHECK,
    TCP_FLAGS,
    TCP_OFFSET,
    UDP,
    UDP_CHECK,
    UDP_HEADER,
    UDP_LENGTH,
    URG,
    Cache,
    Headers,
    Numbers,
    Octets,
    Rows,
    residue,
    swapped,
)
from backends.udp.worker.virtio import HEADER, KIND_ECN, KIND_TCP, KIND_UDP, NEEDS_CHECKSUM

Span = tuple[int, int]
"""First packet of a run, and the one past its last."""

_SHAPES = 128
_DONT_FRAGMENT = 0x40


class Shape(NamedTuple):
    """What the header vectors depend on."""

    size: int
    header: int
    packets: int
    protocol: int


class _Vectors:
    """Rows of the received buffer, and their payloads as pieces for ``writev``."""

    __slots__ = ("bodies", "rows")

    def __init__(self, memory: Octets, shape: Shape) -> None:
        size, header, packets, protocol = shape
        self.rows = Rows(memory, 0, size, IHL, header, packets, protocol)
        view = memory.data
        self.bodies = [view[row * size + header : (row + 1) * size] for row in range(packets)]


def _model(shape: Shape) -> Headers:
    size, header, packets, protocol = shape
    rows = Rows(np.zeros((packets + 1) * header, np.uint8), 0, header, IHL, header, packets, protocol)
    return Headers(rows, IHL, size, size - header, protocol)


class Coalescer:
    """Looks at equal-sized packets that stand at the head of ``buffer``, as UDP_GRO hands them over.

    ``memory`` is the same as an array; it must reach one packet further than what is received.
    """

    def __init__(self, buffer: bytearray, memory: Octets, offloads: Offload) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._tcp = Offload.TCP in offloads
        self._never = SYN | RST | URG | (0 if Offload.TCP_ECN in offloads else CWR)
        self._udp = Offload.UDP in offloads
        self._vectors: Cache[Shape, _Vectors] = Cache(lambda shape: _Vectors(memory, shape), _SHAPES)
        self._models: Cache[Shape, Headers] = Cache(_model, _SHAPES)

    def forgo(self, at: int) -> None:
        """Coalesce no more of the protocol of the packet at ``at``: the device did not take it."""
        if self._buffer[at + AT_PROTOCOL] == TCP:
            self._tcp = False
        else:
            self._udp = False

    def header(self, at: int) -> int:
        """The size of IP and upper header where the packet at ``at`` may be coalesced with others; 0 where not."""
        buffer = self._buffer
        if buffer[at] != 0x45 or buffer[at + AT_FRAGMENT] & ~_DONT_FRAGMENT or buffer[at + AT_FRAGMENT + 1]:
            return 0
        protocol = buffer[at + AT_PROTOCOL]
        if protocol == TCP and self._tcp:
            upper = (buffer[at + IHL + TCP_OFFSET] >> 4) * 4
            return IHL + upper if upper >= 20 and not buffer[at + IHL + TCP_FLAGS] & self._never else 0
        return IHL + UDP_HEADER if protocol == UDP and self._udp else 0

    def runs(self, length: int, size: int) -> Iterator[Span]:
        """The packets of ``size`` bytes in the first ``length`` bytes, of which the last may be shorter, as runs to be coalesced.

        A run of one is to be passed on as it is.
        """
        count = -(-length // size)
        sums: Numbers | None = None
        first = 0
        while first < count:
            past = first + 1
            at = first * size
            # What is looked at has to hold an IPv4 header and the fields of the upper one.
            header = self.header(at) if past < count and size > IHL + UDP_HEADER else 0
            if 0 < header < size:
                shape = Shape(size, header, count, self._buffer[at + AT_PROTOCOL])
                if sums is None:
                    self._view[length : count * size] = bytes(count * size - length)
                    sums = self._vectors[shape].rows.add_up()
                past = self._reach(first, length, shape, sums)
            yield first, past
            first = past

    def _reach(self, first: int, length: int, shape: Shape, sums: Numbers) -> int:
        """The packet past the last that ``segment`` would have made of one that begins with packet ``first``."""
        size, header, count, protocol = shape
        buffer, at, alone = self._buffer, first * size, first + 1
        template = buffer[at : at + header]
        flags = template[IHL + TCP_FLAGS] if protocol == TCP else 0
        total = template[AT_TOTAL] << 8 | template[AT_TOTAL + 1]
        if total != size or flags & (PSH | FIN) or int.from_bytes(template[:IHL], "big") % FULL:
            return alone
        rows = self._vectors[shape].rows
        left, last = count - first, length - (count - 1) * size
        model = self._models[Shape(size, header, left, protocol)]

        follower = buffer[at + size + AT_ID : at + size + AT_FRAGMENT]
        staying = template[AT_FRAGMENT] == _DONT_FRAGMENT and follower == template[AT_ID:AT_FRAGMENT]
        model.lay(template, staying=staying)
        model.upper_check[:] = rows.upper_check[first:]
        if protocol == TCP:
            final = buffer[(count - 1) * size + IHL + TCP_FLAGS] & (PSH | FIN)
            if final or flags & CWR:
                model.flags[1:] = flags & ~CWR
                model.flags[-1] |= final
        elif template[IHL + UDP_LENGTH : IHL + UDP_CHECK] != (size - IHL).to_bytes(2, "big"):
            return alone
        if last < size:
            model.shorten(last)
        seen = rows.header[first:]
        past = count
        if model.header.tobytes() != seen.tobytes():
            past = first + int((model.header != seen).any(axis=1).argmax())
            if past < count and protocol == TCP and self._ends(past * size, model.header[past - first].tobytes()):
                past += 1
        if past == count and last <= header:
            past -= 1  # all header: it was never part of what was cut

        pseudo = residue(template[AT_ADDRESSES:IHL]) + swapped(protocol)
        found = sums[first:past] + (pseudo + swapped(size - IHL))
        if past == count and last < size:
            found[-1] += FULL + swapped(last - IHL) - swapped(size - IHL)
        found %= FULL
        if np.count_nonzero(found):
            past = first + int((found != 0).argmax())
        if protocol == UDP:
            stated = rows.upper_check[first:past] != 0
            if not stated.all():
                past = first + int(stated.argmin())
        return max(past, alone)

    def _ends(self, at: int, model: bytes) -> bool:
        """Does the packet at ``at`` differ from what was expected in nothing but PSH or FIN, which end a run?"""
        mark = IHL + TCP_FLAGS
        seen = self._buffer[at : at + len(model)]
        seen[mark] &= ~(PSH | FIN)
        return seen == model

    def coalesce(self, first: int, past: int, length: int, size: int) -> list[memoryview | bytearray]:
        """The run as one GSO packet: virtio header, headers and payloads, to be written in one call.

        TTL and header of the first packet are taken as they stand now.
        """
        buffer = self._buffer
        at = first * size
        protocol = buffer[at + AT_PROTOCOL]
        header = self.header(at)
        vectors = self._vectors[Shape(size, header, -(-length // size), protocol)]
        bodies: list[memoryview | bytearray] = [*vectors.bodies[first:past]]
        end = past * size
        piece = size - header
        total = (past - first) * piece + header
        if end > length:
            bodies[-1] = self._view[(past - 1) * size + header : length]
            total -= end - length

        front = bytearray(HEADER_BYTES) + buffer[at : at + header]
        base = HEADER_BYTES
        front[base + AT_TOTAL : base + AT_TOTAL + 2] = total.to_bytes(2, "big")
        front[base + AT_CHECK : base + AT_CHECK + 2] = b"\0\0"
        own = int.from_bytes(front[base : base + IHL], "big") % FULL
        front[base + AT_CHECK : base + AT_CHECK + 2] = ((FULL - own) % FULL).to_bytes(2, "big")
        upper = base + IHL
        kind = KIND_UDP
        at_check = UDP_CHECK
        if protocol == TCP:
            kind = KIND_TCP
            at_check = TCP_CHECK
            front[upper + TCP_FLAGS] |= buffer[(past - 1) * size + IHL + TCP_FLAGS] & (PSH | FIN)
            if front[upper + TCP_FLAGS] & CWR:
                kind |= KIND_ECN
        else:
            front[upper + UDP_LENGTH : upper + UDP_LENGTH + 2] = (total - IHL).to_bytes(2, "big")
        addresses = front[base + AT_ADDRESSES : base + IHL]
        pseudo = (int.from_bytes(addresses, "big") + protocol + total - IHL) % FULL or FULL
        front[upper + at_check : upper + at_check + 2] = pseudo.to_bytes(2, "big")
        HEADER.pack_into(front, 0, NEEDS_CHECKSUM, kind, header, piece, IHL, at_check)
        return [front, *bodies]
