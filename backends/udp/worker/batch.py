"""How are many small packets made ready to leave at once? By header vectors of those of one size and one destination.

What ``packet.outbound`` decides for one is decided here for all or for none: where they are not alike, each goes that way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.udp.protocol import HEADER_BYTES
from backends.udp.worker.headers import AT_ADDRESSES, AT_CHECK, AT_TOTAL, AT_TTL, FULL, Cache, Numbers, Octets, Words, swapped
from backends.udp.worker.packet import SHORTEST
from backends.udp.worker.peers import Peer, PeerTable
from backends.udp.worker.virtio import HEADER, NEEDS_CHECKSUM

FEW = 6
"""Below this number, one by one is as quick."""

_SHAPES = 256

_HOP = np.uint32(swapped(0x0100))
"""One in the TTL, as it stands in the checksum's word: see ``packet.ttl_decremented``."""


class _Shape(NamedTuple):
    at: int
    size: int
    packets: int
    summed_from: int
    summed_to: int


class _Vectors:
    """The fields that are looked at or changed; and the words that a checksum is made of, where one is to be made."""

    __slots__ = ("check", "destination", "field", "first", "summed", "total", "ttl")

    def __init__(self, memory: Octets, shape: _Shape) -> None:
        at, size, count, start, offset = shape

        def vector(kind: str, where: int) -> NDArray[np.generic]:
            return np.ndarray((count,), np.dtype(kind), memory.data, at + where, (size,))

        self.first = vector("u1", 0)
        self.total = vector(">u2", AT_TOTAL)
        self.ttl: Octets = np.ndarray((count,), np.uint8, memory.data, at + AT_TTL, (size,))
        self.check: Words = np.ndarray((count,), np.uint16, memory.data, at + AT_CHECK, (size,))
        self.destination = vector("u4", AT_ADDRESSES + 4)
        self.summed: Words = np.ndarray((count, (size - start) // 2), np.uint16, memory.data, at + start, (size, 2))
        self.field: Words = np.ndarray((count,), np.uint16, memory.data, at + start + offset, (size,))


class Batch:
    """Looks at packets in ``memory``, which follow one another without a gap."""

    def __init__(self, memory: Octets) -> None:
        self._memory = memory
        self._vectors: Cache[_Shape, _Vectors] = Cache(lambda shape: _Vectors(memory, shape), _SHAPES)

    def prepare(self, at: int, size: int, count: int, heads: bytes, peers: PeerTable) -> Peer | None:
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
        vectors = self._vectors[_Shape(at, size, count, *((start, offset) if summed else (0, 0)))]
        first = vectors.first.tobytes()
        destination = vectors.destination.tobytes()
        if not (
            first == b"\x45" * count
            and vectors.total.tobytes() == size.to_bytes(2, "big") * count
            and destination == destination[:4] * count
            and vectors.ttl.min() > 1
        ):
            return None
        peer = peers.find(int.from_bytes(destination[:4], "big"))
        if peer is None:
            return None
        vectors.ttl[:] -= 1
        check = vectors.check.astype(np.uint32)
        check += _HOP
        vectors.check[:] = check % FULL
        if summed:
            sums: Numbers = np.add.reduce(vectors.summed, axis=1, dtype=np.uint32)
            vectors.field[:] = FULL - sums % FULL  # never 0, which in UDP would say that there is none
        return peer
