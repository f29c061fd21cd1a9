"""What has a worker counted, and is it alive? Numbers in memory that agent and worker share: no message, no wait."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from socket import inet_aton, inet_ntoa
from typing import Protocol

COUNTERS = (
    "outbound_packets",
    "outbound_bytes",
    "outbound_dropped_short",
    "outbound_dropped_not_ipv4",
    "outbound_dropped_length",
    "outbound_dropped_no_peer",
    "outbound_dropped_ttl",
    "outbound_dropped_send_failed",
    "inbound_packets",
    "inbound_bytes",
    "inbound_dropped_short",
    "inbound_dropped_not_ipv4",
    "inbound_dropped_length",
    "inbound_dropped_outer_source",
    "inbound_dropped_inner_source",
    "inbound_dropped_inner_destination",
    "inbound_dropped_ttl",
    "inbound_dropped_write_failed",
    "icmp_unreachable",
    "receive_errors",
    "outbound_segmented",
    "inbound_coalesced",
    "outbound_dropped_too_big",
    "outbound_fragmented",
    "icmp_time_exceeded",
    "icmp_fragmentation_needed",
    "icmp_ratelimited",
)
"""Names by index. Bytes are of inner packets. ``outbound_dropped_too_big``: with DF, and longer than their path takes.
ICMP errors that were sent: ``icmp_unreachable`` for ``outbound_dropped_no_peer``, ``icmp_time_exceeded`` for either
``dropped_ttl``, ``icmp_fragmentation_needed`` for ``outbound_dropped_too_big``; ``icmp_ratelimited``: those that were one too many.
What was cut for its path, ``outbound_fragmented``, and GSO packets, ``outbound_segmented``, ``inbound_coalesced``, are counted as
on the wire, too."""

(
    OUT_PACKETS,
    OUT_BYTES,
    OUT_SHORT,
    OUT_NOT_IPV4,
    OUT_LENGTH,
    OUT_NO_PEER,
    OUT_TTL,
    OUT_SEND_FAILED,
    IN_PACKETS,
    IN_BYTES,
    IN_SHORT,
    IN_NOT_IPV4,
    IN_LENGTH,
    IN_OUTER_SOURCE,
    IN_INNER_SOURCE,
    IN_INNER_DESTINATION,
    IN_TTL,
    IN_WRITE_FAILED,
    ICMP_UNREACHABLE,
    RECEIVE_ERRORS,
    OUT_SEGMENTED,
    IN_COALESCED,
    OUT_TOO_BIG,
    OUT_FRAGMENTED,
    ICMP_TIME_EXCEEDED,
    ICMP_FRAGMENTATION_NEEDED,
    ICMP_RATELIMITED,
) = range(len(COUNTERS))

HEARTBEAT = len(COUNTERS)
"""Where the worker adds one a second, for as long as it gets round to it."""

_SLOTS = HEARTBEAT + 1
MOST_REFUSED = 64
"""Peers that are counted apart; what later ones send is in the sums only."""

CELLS = _SLOTS + 2 * MOST_REFUSED
"""Numbers of eight bytes in all: the counters, the heartbeat, and an address and a count for each peer that was refused."""


class Counts(Protocol):
    """Values by index."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...
    def __iter__(self) -> Iterator[int]: ...


class Counters:
    """The counters behind a descriptor. They outlive a worker, so that its successor counts on."""

    __slots__ = ("_memory", "fd", "live")

    SIZE = 8 * CELLS
    """Bytes behind the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, self.SIZE)
        self.live: memoryview = memoryview(self._memory).cast("Q")
        """The shared values themselves: what is stored here is counted, with no further call."""

    def read(self) -> list[int]:
        """The values in the order of COUNTERS."""
        return self.live[:HEARTBEAT].tolist()

    def beat(self) -> int:
        """A number that changes about once a second while a worker works on this."""
        beat: int = self.live[HEARTBEAT]
        return beat

    def refused(self) -> dict[str, int]:
        """Packets that the ingress filter dropped although a peer sent them, by its PublicIP."""
        cells = self.live[_SLOTS:].tolist()
        pairs = zip(cells[::2], cells[1::2], strict=True)
        return {inet_ntoa((host & 0xFFFFFFFF).to_bytes(4, "big")): count for host, count in pairs if count}

    def close(self) -> None:
        """Give back memory and descriptor."""
        self.live.release()
        self._memory.close()
        os.close(self.fd)


class Refused:
    """The worker's side of ``Counters.refused``."""

    __slots__ = ("_counts", "_places")

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        cells = range(_SLOTS, CELLS, 2)
        self._places = {counts[at]: at for at in cells if counts[at + 1]}  # an earlier worker's

    def add(self, sender: str, count: int) -> None:
        """Count what ``sender``, a peer, should not have sent."""
        host = int.from_bytes(inet_aton(sender), "big")
        place = self._places.get(host)
        if place is None:
            if len(self._places) == MOST_REFUSED:
                return
            place = self._places[host] = _SLOTS + 2 * len(self._places)
            self._counts[place] = host
        self._counts[place + 1] += count


_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_counters() -> Counters:
    """Zeroed counters in anonymous shared memory, which stays as long as it is: who reads beyond the end of a file that a worker
    has cut off gets SIGBUS (mmap(2)).
    """
    fd = os.memfd_create("flannelpy-udp-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, Counters.SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return Counters(fd)


def are_counters(fd: int) -> bool:
    """Whether these are as ``make_counters`` makes them in this version; with vm.memfd_noexec the kernel adds F_SEAL_EXEC."""
    try:
        return os.fstat(fd).st_size == Counters.SIZE and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # no such file at all
        return False
