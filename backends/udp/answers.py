"""Who is told that a packet cannot go on, and by which way? As a router tells: by ICMP, never too often."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from backends.udp.control import (
    ANSWERS_SUPPRESSED,
    FRAGMENTATIONS_NEEDED,
    IN_TTL,
    OUT_NO_PEER,
    OUT_TOO_BIG,
    OUT_TTL,
    TIMES_EXCEEDED,
    UNREACHABLES,
    Counts,
    Setting,
)
from backends.udp.icmp import TIME_EXCEEDED, TOO_BIG, UNREACHABLE, Error, Octets, answer, is_answered
from backends.udp.limit import Limit
from backends.udp.table import Table

Clock = Callable[[], float]
"""Seconds that never run backwards."""


class Answers:
    """Counts what is dropped, and answers it where that is due.

    ``inject`` hands a packet to the kernel; False where it takes none. An answer is from our own address, the base of our subnet.
    From the device, the kernel takes such a packet only with accept_local=1 (ip-sysctl.rst), else it drops it as a martian.
    """

    def __init__(
        self,
        setting: Setting,
        counts: Counts,
        table: Table,
        sock: socket.socket,
        inject: Callable[[bytes], bool],
        clock: Clock,
    ) -> None:
        self._own = setting.network
        self._broadcast = setting.network | (1 << 32 - setting.length) - 1
        self._counts = counts
        self._table = table
        self._socket = sock
        self._inject = inject
        self._clock = clock
        self._limit = Limit(clock())

    def drop_outbound(self, verdict: int, packet: Octets) -> None:
        """A packet from the device that ``packet.outbound`` has sorted out, as it came."""
        self._counts[verdict] += 1
        if verdict == OUT_NO_PEER and self._may(packet, UNREACHABLE):
            self._counts[UNREACHABLES] += self._inject(answer(packet, UNREACHABLE, self._own))
        elif verdict == OUT_TTL and self._may(packet, TIME_EXCEEDED):
            self._counts[TIMES_EXCEEDED] += self._inject(answer(packet, TIME_EXCEEDED, self._own))

    def drop_inbound(self, verdict: int, packet: Octets, count: int = 1) -> None:
        """``count`` datagrams that ``packet.inbound`` has sorted out, the first as it came.

        The answer goes straight to the peer that has the sender: our kernel would have to take it for one of its own to route it.
        """
        self._counts[verdict] += count
        if verdict == IN_TTL:
            peer = self._table.find(_sender(packet))
            if peer is not None and self._may(packet, TIME_EXCEEDED):
                with contextlib.suppress(OSError):
                    self._socket.sendto(answer(packet, TIME_EXCEEDED, self._own), peer)
                    self._counts[TIMES_EXCEEDED] += 1

    def drop_too_big(self, packet: Octets, mtu: int, told: set[bytes]) -> None:
        """A packet with DF that is longer than the ``mtu`` bytes which its path takes. ``told``: address pairs that know it by now.

        The answer is from the packet's destination: TCP would stall without it, so it must arrive whatever accept_local is.
        """
        self._counts[OUT_TOO_BIG] += 1
        pair = bytes(packet[12:20])
        if pair in told:
            return
        told.add(pair)
        if self._may(packet, TOO_BIG):
            self._counts[FRAGMENTATIONS_NEEDED] += self._inject(answer(packet, TOO_BIG, int.from_bytes(packet[16:20], "big"), mtu))

    def _may(self, packet: Octets, error: Error) -> bool:
        """Whether it is to be answered, and may be now."""
        sender = _sender(packet)
        if sender == self._broadcast or not is_answered(packet, error):
            return False
        if self._limit.allows(sender, self._clock()):
            return True
        self._counts[ANSWERS_SUPPRESSED] += 1
        return False


def _sender(packet: Octets) -> int:
    return int.from_bytes(packet[12:16], "big")
