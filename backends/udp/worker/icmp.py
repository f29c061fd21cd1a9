"""Which packets that cannot go on deserve an ICMP error, and which bytes is it? Pure; no descriptor, no clock.

RFC 792; RFC 1122 3.2.2 for what never gets one; RFC 1191 for the MTU; RFC 1812 4.3.2 for the rest.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from backends.udp.worker.packet import LONGEST_HEADER, SHORTEST, checksum

Octets = bytes | bytearray | memoryview

ICMP = 1

_QUERIES = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18})
"""Types of ICMP that is no error. Those that are not known may be one."""

_NO_HOST = frozenset({0, 127, *range(224, 256)})
"""First bytes of addresses that are not one host's: unspecified, loopback, multicast, broadcast."""

_MULTICAST = 224


class Error(NamedTuple):
    """A kind of ICMP error: type and code, TOS and TTL of its own header, how many bytes of the packet's payload it quotes.

    ``to_ping``: it answers also ICMP that is no error.
    """

    type: int
    code: int
    tos: int
    ttl: int
    quoted: int
    to_ping: bool


_CONTROL = 0xC0
"""Precedence "internetwork control": RFC 1812 4.3.2.5."""
_ALL_QUOTED = 576
"""An ICMP error has at most 576 bytes: RFC 1812 4.3.2.3."""

UNREACHABLE = Error(3, 0, 0, 8, quoted=8, to_ping=False)
"""Net unreachable, to the letter as flannel sends it: flannel-compat 9.4."""
TOO_BIG = Error(3, 4, _CONTROL, 64, quoted=_ALL_QUOTED, to_ping=True)
TIME_EXCEEDED = Error(11, 0, _CONTROL, 64, quoted=_ALL_QUOTED, to_ping=True)


def deserves_error(packet: Octets, error: Error) -> bool:
    """May ``packet``, whose header is in order, be answered with ``error``?"""
    header = (packet[0] & 15) * 4
    if (packet[6] << 8 | packet[7]) & 0x1FFF or packet[12] in _NO_HOST or packet[16] >= _MULTICAST:
        return False
    if error is UNREACHABLE and header >= LONGEST_HEADER:
        return False  # flannel has no room for it
    if packet[9] != ICMP:
        return True
    return error.to_ping and len(packet) > header and packet[header] in _QUERIES


_MESSAGE = Struct("!BBHHH")
_HEADER = Struct("!BBHHHBBHII")


def error_for(packet: Octets, error: Error, source: int, mtu: int = 0) -> bytes:
    """The whole packet, from ``source`` to the sender of ``packet``. ``mtu`` in bytes: what would have fitted, for TOO_BIG."""
    most = _ALL_QUOTED - SHORTEST - _MESSAGE.size
    quoted = packet[: min((packet[0] & 15) * 4 + error.quoted, most)]
    message = bytearray(_MESSAGE.pack(error.type, error.code, 0, 0, mtu) + quoted)
    message[2:4] = checksum(message).to_bytes(2, "big")
    sender = int.from_bytes(packet[12:16], "big")
    header = bytearray(_HEADER.pack(0x45, error.tos, SHORTEST + len(message), 0, 0, error.ttl, ICMP, 0, source, sender))
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header + message)
