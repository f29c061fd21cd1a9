"""Who gets an ICMP error for a packet that cannot go on, and by which way? As from a router, and never too often."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from backends.udp.counters import (
    ICMP_FRAGMENTATION_NEEDED,
    ICMP_RATELIMITED,
    ICMP_TIME_EXCEEDED,
    ICMP_UNREACHABLE,
    IN_INNER_DESTINATION,
    IN_INNER_SOURCE,
    IN_TTL,
    OUT_NO_PEER,
    OUT_TOO_BIG,
    OUT_TTL,
    Counts,
    Refused,
)
from backends.udp.protocol import Setting
from backends.udp.worker.icmp import TIME_EXCEEDED, TOO_BIG, UNREACHABLE, Error, Octets, deserves_error, error_for
from backends.udp.worker.peers import PeerTable
from backends.udp.worker.rate_limit import RateLimit

Clock = Callable[[], float]
"""Seconds that never run backwards."""


class IcmpErrors:
    """Counts what is dropped, and sends an error where one is due.

    ``inject`` hands a packet to the kernel; False where it takes none. An error is from our own address, the base of our subnet.
    From the device, the kernel takes such a packet only with accept_local=1 (ip-sysctl.rst), else it drops it as a martian.
    """

    def __init__(
        self,
        setting: Setting,
        counts: Counts,
        peers: PeerTable,
        sock: socket.socket,
        inject: Callable[[bytes], bool],
        clock: Clock,
    ) -> None:
        self._own = setting.network
        self._broadcast = setting.network | (1 << 32 - setting.length) - 1
        self._counts = counts
        self._peers = peers
        self._refused = Refused(counts)
        self._socket = sock
        self._inject = inject
        self._clock = clock
        self._limit = RateLimit(clock())

    def drop_outbound(self, verdict: int, packet: Octets) -> None:
        """A packet from the device that ``packet.outbound`` has sorted out, as it came."""
        self._counts[verdict] += 1
        if verdict == OUT_NO_PEER and self._may(packet, UNREACHABLE):
            self._counts[ICMP_UNREACHABLE] += self._inject(error_for(packet, UNREACHABLE, self._own))
        elif verdict == OUT_TTL and self._may(packet, TIME_EXCEEDED):
            self._counts[ICMP_TIME_EXCEEDED] += self._inject(error_for(packet, TIME_EXCEEDED, self._own))

    def drop_inbound(self, verdict: int, packet: Octets, sender: str, count: int = 1) -> None:
        """``count`` datagrams of ``sender`` that ``packet.inbound`` has sorted out, the first as it came.

        The error goes straight to the peer that has the sender: our kernel would have to take it for one of its own to route it.
        """
        self._counts[verdict] += count
        if verdict in (IN_INNER_SOURCE, IN_INNER_DESTINATION) and self._peers.knows(sender):
            self._refused.add(sender, count)
        elif verdict == IN_TTL:
            peer = self._peers.find(_source(packet))
            if peer is not None and self._may(packet, TIME_EXCEEDED):
                with contextlib.suppress(OSError):
                    self._socket.sendto(error_for(packet, TIME_EXCEEDED, self._own), peer)
                    self._counts[ICMP_TIME_EXCEEDED] += 1

    def drop_too_big(self, packet: Octets, mtu: int, informed: set[bytes]) -> None:
        """A packet with DF that is longer than the ``mtu`` bytes which its path takes. ``informed``: address pairs that know it.

        The error is from the packet's destination: TCP would stall without it, so it must arrive whatever accept_local is.
        """
        self._counts[OUT_TOO_BIG] += 1
        pair = bytes(packet[12:20])
        if pair in informed:
            return
        informed.add(pair)
        if self._may(packet, TOO_BIG):
            self._counts[ICMP_FRAGMENTATION_NEEDED] += self._inject(
                error_for(packet, TOO_BIG, int.from_bytes(packet[16:20], "big"), mtu)
            )

    def _may(self, packet: Octets, error: Error) -> bool:
        """Whether it gets one, and now."""
        source = _source(packet)
        if source == self._broadcast or not deserves_error(packet, error):
            return False
        if self._limit.allows(source, self._clock()):
            return True
        self._counts[ICMP_RATELIMITED] += 1
        return False


def _source(packet: Octets) -> int:
    return int.from_bytes(packet[12:16], "big")
