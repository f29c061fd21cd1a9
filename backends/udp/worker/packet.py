"""What becomes of one packet? Checks, TTL and checksum, on a buffer; no descriptor, no clock.

Each decision returns an index of ``counters.COUNTERS`` for a packet that must be dropped. flannel-compat 9.4; checks that
flannel lacks are marked.
"""

from __future__ import annotations

from struct import Struct

from backends.udp.counters import (
    IN_INNER_DESTINATION,
    IN_LENGTH,
    IN_NOT_IPV4,
    IN_OUTER_SOURCE,
    IN_SHORT,
    IN_TTL,
    OUT_LENGTH,
    OUT_NO_PEER,
    OUT_NOT_IPV4,
    OUT_SHORT,
    OUT_TTL,
)
from backends.udp.worker.ingress import PASSED, IngressFilter
from backends.udp.worker.peers import Peer, PeerTable

SHORTEST = 20
"""An IPv4 header without options, in bytes."""

LONGEST_HEADER = 60

# Version and header length, total length, then bytes 8 to 11 (TTL, protocol, checksum) as one word, source, destination.
_FIELDS = Struct("!BxH4xIII")
_WORD = Struct("!I")
_read_fields = _FIELDS.unpack_from
_write_word = _WORD.pack_into

_TWO_HOPS = 2 << 24
"""The word of bytes 8 to 11 is below this for a TTL of 0 or 1: nothing is left after a decrement."""


def ttl_decremented(word: int) -> int:
    """Bytes 8 to 11 of a header with the TTL one less and the checksum adjusted (RFC 1624): 0x0100 more, in one's complement.

    A sum that would be 0xffff becomes 0, as a full computation over a header gives it.
    """
    return word - 0x00FFFF00 if word & 0xFFFF < 0xFEFF else word - 0x0100FEFF


def outbound(buffer: bytearray, size: int, table: PeerTable, at: int = 0) -> Peer | int:
    """A packet of ``size`` bytes at ``at``, from the TUN: its peer, the TTL decremented in place; or why it is dropped.

    One that is dropped is as it was, so that it can be quoted.
    """
    if size < SHORTEST:
        return OUT_SHORT
    first, total, word, _, destination = _read_fields(buffer, at)
    if first >> 4 != 4:
        return OUT_NOT_IPV4  # not in flannel, which takes IPv6 noise for IPv4
    if total != size or not 5 <= first & 15 <= size >> 2:
        return OUT_LENGTH  # not in flannel
    peer = table.find(destination)
    if peer is None:
        return OUT_NO_PEER
    if word < _TWO_HOPS:
        return OUT_TTL
    _write_word(buffer, at + 8, word - 0x00FFFF00 if word & 0xFFFF < 0xFEFF else word - 0x0100FEFF)  # ttl_decremented, in place
    return peer


def inbound(buffer: bytearray, size: int, sender: str, ingress: IngressFilter, at: int = 0) -> int:
    """A datagram of ``size`` bytes at ``at``, from ``sender``: PASSED with its TTL decremented in place, or why it is dropped.

    One that is longer than the device's MTU passes (flannel cuts it): the kernel forwards it, cuts it or refuses it by ICMP, as it
    would one from any link.
    """
    if size < SHORTEST:
        return IN_SHORT
    first, total, word, source, destination = _read_fields(buffer, at)
    if first >> 4 != 4:
        return IN_NOT_IPV4
    if total != size or not 5 <= first & 15 <= size >> 2:
        return IN_LENGTH
    if ingress.inner:
        peer = ingress.peers.find(source)
        if peer is None or peer[0] != sender:
            verdict = ingress.judge(source, sender)
            if verdict != PASSED:
                return verdict
        if destination >> ingress.own_shift != ingress.own:
            return IN_INNER_DESTINATION
    elif ingress.outer and not ingress.peers.knows(sender):
        return IN_OUTER_SOURCE
    if word < _TWO_HOPS:
        return IN_TTL
    _write_word(buffer, at + 8, word - 0x00FFFF00 if word & 0xFFFF < 0xFEFF else word - 0x0100FEFF)  # ttl_decremented, in place
    return PASSED


def checksum(octets: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071); an odd last byte counts as the high half of a word."""
    total = int.from_bytes(octets if len(octets) % 2 == 0 else octets + b"\0", "big")
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))
