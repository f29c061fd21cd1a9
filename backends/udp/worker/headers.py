"""How is arithmetic done on many packets at once? Equal-sized packets in one buffer are a matrix; each header field is a vector.

A numpy call costs about the same for one packet as for sixty: what depends only on the shape (size, header, number) is made once
and kept. Sums are one's complement (RFC 1071) and are taken modulo 0xffff in the machine's own order of bytes, which that
arithmetic permits; ``swapped`` brings a number from the wire's order into it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Octets = NDArray[np.uint8]
Words = NDArray[np.uint16]
Numbers = NDArray[np.uint32]

ORDER = sys.byteorder
FULL = 0xFFFF

IHL = 20
"""Bytes of an IPv4 header without options."""
UDP_HEADER = 8
TCP, UDP = 6, 17
FIN, SYN, RST, PSH, URG, CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80

AT_TOTAL, AT_ID, AT_FRAGMENT, AT_TTL, AT_PROTOCOL, AT_CHECK, AT_ADDRESSES = 2, 4, 6, 8, 9, 10, 12
TCP_SEQUENCE, TCP_OFFSET, TCP_FLAGS, TCP_CHECK = 4, 12, 13, 16
UDP_LENGTH, UDP_CHECK = 4, 6

MOST = 64
"""Datagrams in one call: the kernel's limit for UDP_SEGMENT and UDP_GRO (UDP_MAX_SEGMENTS of the first kernels that have it)."""


def swapped(word: int) -> int:
    """A 16-bit number of the wire as the machine would read its two bytes."""
    return int.from_bytes(word.to_bytes(2, "big"), ORDER)


def residue(octets: bytes | bytearray | memoryview) -> int:
    """The one's complement sum of an even number of bytes, modulo 0xffff, in the machine's order."""
    return int.from_bytes(octets, ORDER) % FULL


_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Cache(Generic[_K, _V]):
    """What was made for a key, for at most ``limit`` keys; the oldest goes first, so that no traffic can make it grow."""

    __slots__ = ("_limit", "_made", "_make")

    def __init__(self, make: Callable[[_K], _V], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._made: dict[_K, _V] = {}

    def __getitem__(self, key: _K) -> _V:
        value = self._made.get(key)
        if value is None:
            if len(self._made) >= self._limit:
                del self._made[next(iter(self._made))]
            value = self._made[key] = self._make(key)
        return value

    def __len__(self) -> int:
        return len(self._made)


class Rows:
    """``count`` packets of ``size`` bytes, one after the other from ``at`` on, whose upper header begins after ``ihl`` bytes.

    ``header`` counts IP and upper header. ``number`` is the id as a number, ``ident`` the same bytes as a machine's word; the
    checksums are machine's words, too. Vectors of a header that the packets do not have are not to be looked at.
    """

    __slots__ = (
        "_odd",
        "body",
        "check",
        "flags",
        "header",
        "ident",
        "ip_words",
        "number",
        "sequence",
        "sums",
        "total",
        "udp_length",
        "upper_check",
        "whole",
        "words",
    )

    def __init__(self, memory: Octets, at: int, size: int, ihl: int, header: int, count: int, protocol: int) -> None:
        def vector(kind: str, offset: int) -> NDArray[Any]:
            return np.ndarray((count,), np.dtype(kind), memory.data, at + offset, (size,))

        def block(first: int, past: int) -> Octets:
            return np.ndarray((count, past - first), np.uint8, memory.data, at + first, (size, 1))

        upper_check = ihl + (TCP_CHECK if protocol == TCP else UDP_CHECK)
        self.whole = block(0, size)
        self.header = block(0, header)
        self.body = block(header, size)
        self.total: Words = vector(">u2", AT_TOTAL)
        self.ident: Words = vector("u2", AT_ID)
        self.number: Words = vector(">u2", AT_ID)
        self.check: Words = vector("u2", AT_CHECK)
        self.flags: Octets = vector("u1", ihl + TCP_FLAGS)
        self.sequence: Numbers = vector(">u4", ihl + TCP_SEQUENCE)
        self.upper_check: Words = vector("u2", upper_check)
        self.udp_length: Words = vector(">u2", ihl + UDP_LENGTH)
        self.ip_words: Words = np.ndarray((count, ihl // 2), np.uint16, memory.data, at, (size, 2))
        # Of an odd size every other row is unaligned, and its last byte stands alone: such rows are summed in a padded copy.
        self._odd = size % 2 == 1
        self.words: Words = (
            np.zeros((count, (size + 1) // 2), np.uint16)
            if self._odd
            else np.ndarray((count, size // 2), np.uint16, memory.data, at, (size, 2))
        )
        self.sums: Numbers = np.empty(count, np.uint32)

    def add_up(self) -> Numbers:
        """The sum of each row's 16-bit words; the array is used again by the next call."""
        if self._odd:
            self.words.view(np.uint8)[:, :-1] = self.whole
        return np.add.reduce(self.words, axis=1, dtype=np.uint32, out=self.sums)


class Headers:
    """Rows whose headers are written: those that segmentation gives the packets of one flow, ``piece`` bytes of payload apart.

    Linux: net/ipv4/af_inet.c inet_gso_segment, tcp_offload.c tcp_gso_segment.
    """

    __slots__ = ("_ihl", "_last", "_offsets", "_plain", "_sequences", "_size", "_tcp", "flags", "header", "rows", "upper_check")

    def __init__(self, rows: Rows, ihl: int, size: int, piece: int, protocol: int) -> None:
        count = len(rows.total)
        self.rows = rows
        self.header = rows.header
        self.flags = rows.flags
        self.upper_check = rows.upper_check
        self._ihl = ihl
        self._size = size
        self._tcp = protocol == TCP
        self._offsets: Numbers = np.arange(count, dtype=np.uint32) * np.uint32(piece)
        self._sequences: Numbers = np.empty(count, np.uint32)
        self._plain = self._last = 0

    def lay(self, template: bytearray, *, staying: bool = False) -> None:
        """All rows from the header in ``template``, which is as it shall be but for what counts up; ``staying``: ids do not."""
        rows, ihl = self.rows, self._ihl
        count = len(self._offsets)
        rows.header[:] = np.frombuffer(template, np.uint8)
        ident = template[AT_ID] << 8 | template[AT_ID + 1]
        template[AT_ID : AT_ID + 2] = _NOTHING
        template[AT_CHECK : AT_CHECK + 2] = _NOTHING
        plain = self._plain = int.from_bytes(template[:ihl], "big") % FULL
        if staying:
            self._last = ident
            rows.check[:] = CHECKS[plain + ident]
        else:
            # Consecutive ids, and the checksums that they make. After 0xffff comes 0, whose sum is not the next one's.
            self._last = (ident + count - 1) & FULL
            rows.ident[:] = IDENTS[ident : ident + count]
            rows.check[:] = CHECKS[plain + ident : plain + ident + count]
            if ident + count > FULL + 1:
                past = FULL + 1 - ident
                rows.check[past:] = CHECKS[plain : plain + count - past]
        if self._tcp:
            sequence = int.from_bytes(template[ihl + TCP_SEQUENCE : ihl + TCP_SEQUENCE + 4], "big")
            np.add(self._offsets, sequence, out=self._sequences)
            rows.sequence[:] = self._sequences

    def shorten(self, length: int) -> None:
        """The last packet has ``length`` bytes."""
        self.rows.total[-1] = length
        self.rows.check[-1] = CHECKS[(self._plain + self._last + length - self._size) % FULL]
        if not self._tcp:
            self.rows.udp_length[-1] = max(length - self._ihl, 0)


_NOTHING = bytes(2)


def _tables() -> tuple[Words, Words]:
    numbers = np.arange((1 << 17) + (1 << 13), dtype=np.uint32)
    idents = (numbers & FULL).astype(">u2").view(np.uint16)
    checks = ((FULL - numbers % FULL) % FULL).astype(">u2").view(np.uint16)
    return idents, checks


IDENTS, CHECKS = _tables()
"""By number: that 16-bit number, and the checksum that a sum of that number makes, as they stand on the wire.

Consecutive ids make consecutive sums, so a slice of each is a vector ready to be stored.
"""
