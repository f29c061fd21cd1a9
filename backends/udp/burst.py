"""How are many small packets made ready to leave at once? Those of one size and one destination, by columns: TTL and checksums.

What ``packet.outbound`` decides for one is decided here for all or for none: where they are not alike, each goes that way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.udp.columns import AT_ADDRESSES, AT_CHECK, AT_TOTAL, AT_TTL, FULL, Kept, Numbers, Octets, Words, swapped
from backends.udp.offload import HEADER, HEADER_BYTES, NEEDS_CHECKSUM
from backends.udp.packet import SHORTEST
from backends.udp.table import Peer, Table

FEW = 6
"""Below this number, one by one is as quick."""

_SHAPES = 256

_HOP = np.uint32(swapped(0x0100))
"""One in the TTL, as it stands in the checksum's word: see ``packet.aged``."""


class _Shape(NamedTuple):
    at: int
    size: int
    packets: int
    summed_from: int
    summed_to: int


class _Columns:
    """The fields that are looked at or changed; and the words that a checksum is made of, where one is to be made."""

    __slots__ = ("check", "destination", "field", "first", "summed", "total", "ttl")

    def __init__(self, memory: Octets, shape: _Shape) -> None:
        at, size, count, start, offset = shape

        def column(kind: str, where: int) -> NDArray[np.generic]:
            return np.ndarray((count,), np.dtype(kind), memory.data, at + where, (size,))

        self.first = column("u1", 0)
        self.total = column(">u2", AT_TOTAL)
        self.ttl: Octets = np.ndarray((count,), np.uint8, memory.data, at + AT_TTL, (size,))
        self.check: Words = np.ndarray((count,), np.uint16, memory.data, at + AT_CHECK, (size,))
        self.destination = column("u4", AT_ADDRESSES + 4)
        self.summed: Words = np.ndarray((count, (size - start) // 2), np.uint16, memory.data, at + start, (size, 2))
        self.field: Words = np.ndarray((count,), np.uint16, memory.data, at + start + offset, (size,))


class Burst:
    """Looks at packets in ``memory``, which follow one another without a gap."""

    def __init__(self, memory: Octets) -> None:
        self._memory = memory
        self._columns: Kept[_Shape, _Columns] = Kept(lambda shape: _Columns(memory, shape), _SHAPES)

    def prepare(self, at: int, size: int, count: int, heads: bytes, table: Table) -> Peer | None:
        """``count`` packets of ``size`` bytes from ``at`` on, ready to leave; None where they are not alike, and untouched then.

        ``heads`` are their virtio headers.
        """
        head = heads[:HEADER_BYTES]
        if size < SHORTEST or size % 2 or at % 2 or heads != head * count:
            return None
        flags, _, _, _, start, offset = HEADER.unpack(head)
        summed = flags & NEEDS_CHECKSUM
        if summed and (start < SHORTEST or start % 2 or offset % 2 or start + offset + 2 > size):
            return None
        columns = self._columns[_Shape(at, size, count, *((start, offset) if summed else (0, 0)))]
        first = columns.first.tobytes()
        destination = columns.destination.tobytes()
        if not (
            first == b"\x45" * count
            and columns.total.tobytes() == size.to_bytes(2, "big") * count
            and destination == destination[:4] * count
            and columns.ttl.min() > 1
        ):
            return None
        peer = table.find(int.from_bytes(destination[:4], "big"))
        if peer is None:
            return None
        columns.ttl[:] -= 1
        check = columns.check.astype(np.uint32)
        check += _HOP
        columns.check[:] = check % FULL
        if summed:
            sums: Numbers = np.add.reduce(columns.summed, axis=1, dtype=np.uint32)
            columns.field[:] = FULL - sums % FULL  # never 0, which in UDP would say that there is none
        return peer
