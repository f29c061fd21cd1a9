"""What do the agent and the worker tell each other? The worker's command line, table records and the shared counters.

Agent to worker: records of ten bytes over a Unix stream (``Order``). Worker to agent: one byte when it has begun to move
packets, the counters in shared memory, the exit code. The end of the stream ends the worker.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Literal, NamedTuple, Protocol

Guard = Literal["strict", "peers", "off"]

GUARDS: tuple[Guard, ...] = ("strict", "peers", "off")
"""What an inbound datagram must prove. strict: outer source is a peer, inner source its subnet, inner destination ours. peers:
outer source is a peer. off: nothing (flannel)."""

DEVICE_GONE = 3
"""The worker's exit code when the TUN device was deleted: a new worker on the same descriptor would be of no use."""

READY = b"r"
"""What the worker sends once it moves packets."""

SET, DELETE, START = 1, 2, 3


class Order(NamedTuple):
    """One change of the peer table; addresses as integers. START has no operands and ends the first whole table."""

    what: int
    network: int = 0
    length: int = 0
    host: int = 0


_ORDER = Struct("!BIBI")


def pack(orders: Sequence[Order]) -> bytes:
    """The orders as they stand on the stream."""
    return b"".join([_ORDER.pack(*order) for order in orders])


def unpack(stream: bytes) -> tuple[list[Order], bytes]:
    """Whole orders from the head of ``stream``, and the rest that waits for more."""
    whole = len(stream) - len(stream) % _ORDER.size
    return [Order(*fields) for fields in _ORDER.iter_unpack(stream[:whole])], stream[whole:]


class Setting(NamedTuple):
    """What a worker needs from its start; descriptors are inherited. ``network``/``length`` is our own subnet.

    ``offloads`` is an ``Offload`` as a number; 0: packets one by one.
    """

    tun: int
    socket: int
    control: int
    counters: int
    parent: int
    port: int
    mtu: int
    network: int
    length: int
    guard: Guard
    offloads: int = 0

    def words(self) -> list[str]:
        """As arguments of a command line: ``tun=7 socket=8 ...``."""
        return [f"{name}={value}" for name, value in self._asdict().items()]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Setting:
        """The inverse of ``words``. Raises ValueError, KeyError or TypeError on anything else; only our own pump writes them."""
        given = dict(word.split("=", 1) for word in words)
        wanted = given.pop("guard")
        guard = next(known for known in GUARDS if known == wanted)
        return cls(guard=guard, **{name: int(value) for name, value in given.items()})


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
    "unreachables",
    "receive_errors",
    "outbound_split",
    "inbound_joined",
    "outbound_dropped_too_big",
    "outbound_fragmented",
    "times_exceeded",
    "fragmentations_needed",
    "answers_suppressed",
)
"""Names by index. Bytes are of inner packets. ``outbound_dropped_too_big``: with DF, and longer than their path takes.
ICMP errors that were sent: ``unreachables`` for ``outbound_dropped_no_peer``, ``times_exceeded`` for either ``dropped_ttl``,
``fragmentations_needed`` for ``outbound_dropped_too_big``; ``answers_suppressed``: those that were one too many.
What was cut for its path, ``outbound_fragmented``, and super-packets, ``outbound_split``, ``inbound_joined``, are counted as on the
wire, too."""

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
    UNREACHABLES,
    RECEIVE_ERRORS,
    OUTBOUND_SPLIT,
    INBOUND_JOINED,
    OUT_TOO_BIG,
    OUT_FRAGMENTED,
    TIMES_EXCEEDED,
    FRAGMENTATIONS_NEEDED,
    ANSWERS_SUPPRESSED,
) = range(len(COUNTERS))


class Counts(Protocol):
    """Values by index."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...
    def __iter__(self) -> Iterator[int]: ...


class Counters:
    """The counters behind a descriptor. They outlive a worker, so that its successor counts on."""

    __slots__ = ("_memory", "fd", "live")

    SIZE = 8 * len(COUNTERS)
    """Bytes behind the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, self.SIZE)
        self.live: memoryview = memoryview(self._memory).cast("Q")
        """The shared values themselves: what is stored here is counted, with no further call."""

    def read(self) -> list[int]:
        """The values in the order of COUNTERS."""
        return list(self.live)

    def close(self) -> None:
        """Give back memory and descriptor."""
        self.live.release()
        self._memory.close()
        os.close(self.fd)


def make_counters() -> Counters:
    """Zeroed counters in anonymous shared memory."""
    fd = os.memfd_create("flannelpy-udp-counters")
    os.truncate(fd, Counters.SIZE)
    return Counters(fd)
