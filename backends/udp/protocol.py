"""What do the agent and a worker tell each other? The worker's command line, orders on the control stream, the exit code.

Agent to worker: records of ten bytes over a Unix stream (``Order``). Worker to agent: one byte when it has begun to move packets,
the counters in shared memory (``counters``), the exit code. The end of the stream ends the worker. Neither side imports anything
else of the other.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from struct import Struct
from typing import Literal, NamedTuple

Guard = Literal["default", "strict", "peers", "off"]

GUARDS: tuple[Guard, ...] = ("default", "strict", "peers", "off")
"""What an inbound datagram must prove.

default: its outer source is a peer; an inner source inside the Network lies in that peer's subnet, one outside is not this host's
own; the inner destination is ours. strict: as default, and an inner source outside the Network is the peer's PublicIP. peers: its
outer source is a peer. off: nothing (flannel).
"""

OVERHEAD = 28
"""Outer IPv4 header and UDP header, in bytes."""

DEVICE_GONE = 3
"""The worker's exit code when the TUN device was deleted: a new worker on the same descriptor would be of no use."""

NO_BULK = 4
"""The worker's exit code when it cannot load what it needs for offloads; ``Offload.NONE`` needs nothing."""

READY = b"r"
"""What the worker sends once it moves packets."""

Block = tuple[int, int]
"""Network, as an integer, and prefix length."""

# ------------------------------------------------------------------------------------------------------------- offloads


class Offload(enum.Flag):
    """What the kernel does in bulk here; travels to the worker as a number. Without HEADER there is nothing else."""

    NONE = 0
    HEADER = 1
    """A virtio header before each packet, both ways."""
    CHECKSUM = 2
    """The device hands over packets whose checksum is still to be made."""
    TCP = 4
    """TCP over IPv4 comes and goes unsegmented."""
    TCP_ECN = 8
    """Also where its first segment carries CWR."""
    UDP = 16
    """UDP of equal pieces comes and goes unsegmented."""
    GSO = 32
    """The socket cuts one buffer into datagrams of one size (UDP_SEGMENT)."""
    GRO = 64
    """The socket hands over datagrams of one size and sender in one buffer (UDP_GRO)."""

    def __str__(self) -> str:
        return ", ".join(map(name_of, self)) or "none"


def name_of(feature: Offload) -> str:
    """For people: ``tcp ecn``."""
    return str(feature.name).lower().replace("_", " ")


HEADER_BYTES = 10
"""Of the virtio header."""

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
"""udp(7); the socket module has no names for them."""

# --------------------------------------------------------------------------------------------------------------- orders

SET, DELETE, START, OVERLAY, GUARD, PATHS = range(1, 7)


class Order(NamedTuple):
    """One order; addresses as integers.

    SET and DELETE change the peer table. START has no operands and ends the first whole table. OVERLAY: ``network``/``length`` is
    the whole Network now. GUARD: ``host`` is an index of GUARDS. PATHS: the underlay's MTU has changed, and what was learned of
    the ways to the peers is void.
    """

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


# --------------------------------------------------------------------------------------------------------- command line


class Setting(NamedTuple):
    """What a worker needs from its start; descriptors are inherited.

    ``network``/``length`` is our own subnet, ``overlay``/``overlay_length`` the whole Network. ``offloads`` is an ``Offload`` as a
    number; 0: packets one by one.
    """

    tun: int
    socket: int
    control: int
    counters: int
    parent: int
    port: int
    network: int
    length: int
    overlay: int
    overlay_length: int
    guard: Guard
    offloads: int = 0

    def words(self) -> list[str]:
        """As arguments of a command line: ``tun=7 socket=8 ...``."""
        return [f"{name}={value}" for name, value in self._asdict().items()]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Setting:
        """The inverse of ``words``. Raises ValueError, KeyError or TypeError on anything else; only our own agent writes them."""
        given = dict(word.split("=", 1) for word in words)
        wanted = given.pop("guard")
        guard = next(known for known in GUARDS if known == wanted)
        return cls(guard=guard, **{name: int(value) for name, value in given.items()})
