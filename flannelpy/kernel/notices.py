"""What did the kernel just say? Its notifications, sieved and coalesced, as an endless iterator.

Everything that is read in one wake-up becomes one Notice; nothing waits on purpose. What the messages say is digest.py's.

Both sockets stand behind an epoll descriptor of our own: uvloop closes its watch of a descriptor after one POLLERR, which is how
netlink says ENOBUFS, and the epoll descriptor never has one. It is watched while somebody waits, and only then. Sources:
rtnetlink(7), netlink(7), linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from itertools import chain, repeat

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Key, Scope
from flannelpy.kernel import Notice
from flannelpy.kernel.channel import ADD_MEMBERSHIP, DATAGRAM_BYTES, SOL_NETLINK, Channel, netlink_socket
from flannelpy.kernel.digest import Digest, Draft
from flannelpy.kernel.messages import LinkInfo, dump_links, read_link
from flannelpy.kernel.nft import NETLINK_NETFILTER, Nft
from flannelpy.kernel.xfrm import NETLINK_XFRM, POLICY

LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE = 1, 3, 5, 7, 9, 11  # RTNLGRP_*
IPV4_RULE, IPV6_RULE = 8, 19
NEXTHOP = 32
NFTABLES = 7  # NFNLGRP_NFTABLES

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why there is no socket now, though there may be one later."""

PAUSES_S = (0.05, 0.2, 0.5, 1.0)
"""Between one try to hear again and the next, in seconds; the last for ever."""

BURST = 512
"""Datagrams that are read before others on the loop get a turn: some 3 ms of ours, under 1 ms of somebody else's."""

LULL_S, LONGEST_LULL_S = 0.005, 0.04
"""After news of none of our objects the next are left to gather for so long; where they come one upon the other, twice as long each
time, up to the second: a veth pair that comes makes a dozen messages, one by one, and to be woken for each costs more than to read
them. The kernel holds them meanwhile.
"""


class Notices:
    """Notifications of one namespace for one scope; subscribed from its construction on. One consumer."""

    def __init__(self, scope: Scope, nft: Nft, receive_bytes: int, name_of: Callable[[int], str]) -> None:
        self.closed = False
        self._scope = scope
        self._nft = nft
        self._digest = Digest(scope, name_of)
        self._receive_bytes = receive_bytes
        self._sockets: list[tuple[socket.socket, Callable[[bytes, Draft], None]]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._lull_s = 0.0  # for how long the next are left to gather: the last news was of none of our objects
        self._ended = asyncio.Event()
        self._deaf: Callable[[], None] | None = None  # what must be done before anything can be heard again
        try:
            self._epoll = select.epoll()
        except OSError as error:
            raise KernelError(f"netlink notifications: {error.strerror}", error.errno or 0) from None
        try:
            self._subscribe()
        except BaseException:
            self.close()
            raise

    def _subscribe(self) -> None:
        """Listen, and learn which devices there are. Raises KernelError."""
        self._unsubscribe()
        try:
            groups = (LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, IPV4_RULE, IPV6_RULE, NEXTHOP)
            self._join(socket.NETLINK_ROUTE, groups, self._digest.route)
            self._join(NETLINK_NETFILTER, (NFTABLES,), self._digest.netfilter)
            if self._scope.policies:  # to ask makes the kernel load XFRM, which most hosts have no use for
                self._join(NETLINK_XFRM, (POLICY,), self._digest.policies)
        except OSError as error:
            raise KernelError(f"netlink notifications: {error.strerror}", error.errno or 0) from None
        self._survey()

    def _unsubscribe(self) -> None:
        for sock, _digest in self._sockets:
            sock.close()  # which takes it out of the epoll set, too
        self._sockets.clear()

    def _join(self, protocol: int, groups: tuple[int, ...], digest: Callable[[bytes, Draft], None]) -> None:
        try:
            sock = netlink_socket(protocol, self._receive_bytes)
        except OSError as error:
            if protocol != socket.NETLINK_ROUTE and error.errno not in NO_ROOM:
                return  # a kernel without nf_tables or XFRM has nothing to tell of it
            raise
        self._sockets.append((sock, digest))
        for group in groups:
            with suppress(OSError) if group == NEXTHOP else nullcontext():  # a kernel before 5.3 has none
                sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _survey(self) -> None:
        """Learn which devices there are: messages name them by index only. Raises KernelError."""
        found: list[LinkInfo] = []
        with Channel() as channel, suppress(InterruptedError):  # a dump that the table moved below is true, too
            for data, heads in channel.dump(dump_links(channel.reserve(1))):
                found += [read_link(data, head.body, head.end) for head in heads]
        self._digest.survey(found)

    @property
    def malformed(self) -> int:
        """Messages that could not be read; each was treated as lost."""
        return self._digest.malformed

    # ------------------------------------------------------------------------------------------------- iteration

    def __aiter__(self) -> Notices:
        return self

    async def __anext__(self) -> Notice:
        while not self.closed:
            draft, exhausted = await self._hear()
            if draft.nft_touched:
                await self._look_at_table(draft)
            if not exhausted:
                await asyncio.sleep(0)
            if draft.news:
                ours = draft.objects or draft.resync or draft.lost
                self._lull_s = 0.0 if ours else min(max(LULL_S, 2 * self._lull_s), LONGEST_LULL_S)
                return draft.notice
            if exhausted and not self.closed:
                began = time.monotonic()
                await self._readable()
                if self._lull_s:
                    if time.monotonic() - began > LONGEST_LULL_S:  # it was quiet meanwhile
                        self._lull_s = LULL_S
                    await asyncio.sleep(self._lull_s)
        raise StopAsyncIteration

    async def _hear(self) -> tuple[Draft, bool]:
        """What there is to read; where nothing can be heard, that is mended first, with pauses, and told as lost."""
        pauses_s = chain(PAUSES_S, repeat(PAUSES_S[-1]))
        while True:
            if self._deaf is None:
                draft, exhausted = self._read()
                if self._deaf is None:
                    return draft, exhausted
            try:
                self._deaf()
            except KernelError:
                await self._pause(next(pauses_s))
                if self.closed:
                    return Draft(), True
                continue
            self._deaf = None
            draft = Draft()
            draft.lost = True
            return draft, False

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._ended.wait()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribe; whoever waits gets the end of the iteration. May be called twice."""
        self.closed = True
        self._ended.set()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._unsubscribe()
        if self._waiter is None:
            self._epoll.close()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        loop.add_reader(self._epoll.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_reader(self._epoll.fileno())
            self._waiter = None
            if self.closed:
                self._epoll.close()

    # --------------------------------------------------------------------------------------------------- reading

    def _read(self) -> tuple[Draft, bool]:
        """What there is to read, up to a burst; and whether that was all. Sets ``_deaf`` where something was lost."""
        draft = Draft()
        count = 0
        for sock, digest in self._sockets:
            while count < BURST:
                try:
                    data = sock.recv(DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        self._deaf = self._subscribe  # this socket will not do any more
                        return draft, False
                    self._deaf = self._survey
                    continue
                count += 1
                if self._deaf is None:
                    digest(data, draft)
        return draft, count < BURST

    async def _look_at_table(self, draft: Draft) -> None:
        try:
            listed = await self._nft.list(self._scope.table)
        except KernelError:
            draft.resync = True  # an observation will say what is wrong
            return
        if listed is None:
            draft.objects[Key("nft", self._scope.table)] = None
            draft.resync = True  # its sets went with it
            return
        table, sets = listed
        draft.objects[table.key] = table
        draft.objects |= {item.key: item for item in sets}


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
