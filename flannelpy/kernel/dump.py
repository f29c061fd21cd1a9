"""How is a whole table of the kernel read while others change it? Datagram by datagram, the loop having its turn in between.

The kernel flags a dump below which its table moved (NLM_F_DUMP_INTR). Each message of such a dump is true all the same; what it may
lack is what stood where the table moved. So it is tried again after a pause, and then used as it is, which the answer says.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import TypeVar

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Address, FdbEntry, Neighbour, Route
from flannelpy.kernel import messages
from flannelpy.kernel.channel import GONE, Channel
from flannelpy.kernel.messages import AF_BRIDGE, AF_INET6
from flannelpy.kernel.sieve import Sieve

T = TypeVar("T")

Read = Callable[[bytes, int, int], T | None]
"""What to make of a message: the datagram, and where its payload begins and ends. None: nothing."""

PAUSES_S = (0.0, 0.005, 0.02, 0.05)
"""Between one try and the next, in seconds."""

IN_A_TURN = 2000
"""Objects that are put into books before the loop has a turn."""

NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPFNOSUPPORT})


class Dumped(list[T]):
    """What a dump gave; ``complete`` False where it may lack something."""

    complete = True


async def dump(
    request: Callable[[int], bytes],
    read: Read[T],
    enough: Callable[[bytes, int, int], bool] | None = None,
    pauses_s: tuple[float, ...] = PAUSES_S,
    protocol: int = socket.NETLINK_ROUTE,
) -> Dumped[T]:
    """What ``read`` makes of each message, until one of which ``enough`` is true. Raises KernelError where the kernel refuses.

    On a socket of its own: the loop gets turns in between, in which others ask the kernel, too.
    """
    for pause_s in (*pauses_s, None):
        found: Dumped[T] = Dumped()
        try:
            with Channel(protocol) as channel:
                for data, heads in channel.dump(request(channel.reserve(1))):
                    for head in heads:
                        if enough is not None and enough(data, head.body, head.end):
                            return found
                        item = read(data, head.body, head.end)
                        if item is not None:
                            found.append(item)
                    await asyncio.sleep(0)
            return found
        except InterruptedError:
            found.complete = False
            if pause_s is not None:
                await asyncio.sleep(pause_s)
    return found


async def dump_of_device(request: Callable[[int], bytes], read: Read[T]) -> Dumped[T]:
    """A dump of one device, empty where the device went meanwhile."""
    try:
        return await dump(request, read)
    except KernelError as reason:
        if reason.code in GONE:
            return Dumped()
        raise


async def dump_routes(family: int, read: Read[T], enough: Callable[[bytes, int, int], bool] | None = None) -> Dumped[T]:
    """Routes of the main table of one family, in the kernel's order; a routing table is made with its first route."""
    try:
        return await dump(lambda sequence: messages.dump_routes(sequence, family), read, enough)
    except KernelError as reason:
        if reason.code == errno.ENOENT or (family == AF_INET6 and reason.code in NO_FAMILY):
            return Dumped()
        raise


async def observe_addresses(sieve: Sieve, index: int) -> Dumped[Address]:
    """Those of ours on a device. Raises KernelError."""

    def read(data: bytes, body: int, end: int) -> Address | None:
        if messages.link_index(data, body) != index:
            return None
        info = messages.read_address(data, body, end)
        return None if info is None else sieve.address(info)

    return await dump_of_device(lambda sequence: messages.dump_addresses(sequence, index), read)


async def observe_neighbours(sieve: Sieve, index: int) -> Dumped[Neighbour]:
    """Those of a device. Raises KernelError."""

    def read(data: bytes, body: int, end: int) -> Neighbour | None:
        return sieve.neighbour(messages.read_neighbour(data, body, end)) if messages.link_index(data, body) == index else None

    return await dump_of_device(lambda sequence: messages.dump_neighbours(sequence, 0, index), read)


async def observe_fdb(sieve: Sieve, index: int) -> Dumped[FdbEntry]:
    """The forwarding entries of a device. Raises KernelError."""

    def read(data: bytes, body: int, end: int) -> FdbEntry | None:
        return sieve.fdb(messages.read_neighbour(data, body, end)) if messages.link_index(data, body) == index else None

    return await dump_of_device(lambda sequence: messages.dump_neighbours(sequence, AF_BRIDGE, index), read)


async def observe_routes(sieve: Sieve, family: int) -> Dumped[Route]:
    """Those of ours, of one family. Raises KernelError."""

    def read(data: bytes, body: int, end: int) -> Route | None:
        info = messages.read_route(data, body, end)
        return None if info is None else sieve.route(info)

    return await dump_routes(family, read)
