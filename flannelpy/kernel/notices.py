"""What did the kernel just say? Its notifications, sieved and coalesced, as an endless iterator.

Everything that is read in one wake-up becomes one Notice; nothing waits on purpose. The kernel tells of objects one by one, with
exceptions that decide the shape of this module: what goes with a device that is deleted or taken down, or with the last IPv4
address of a device, goes without a word. Such an event therefore asks for a full observation, where the device is ours or the
uplink; of any other device it says that routes may have changed, where it had any.

Both sockets stand behind an epoll descriptor of our own: uvloop closes its watch of a descriptor after one POLLERR, which is how
netlink says ENOBUFS, and the epoll descriptor never has one. It is watched while somebody waits, and only then. Sources:
rtnetlink(7), netlink(7), linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, repeat
from struct import Struct
from struct import error as StructError

from netaddr import AddrFormatError

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import ROUTE_PROTOCOL, Address, FdbEntry, Key, Neighbour, Object, Scope
from flannelpy.kernel import Notice
from flannelpy.kernel.channel import ADD_MEMBERSHIP, DATAGRAM_BYTES, SOL_NETLINK, Channel, netlink_socket
from flannelpy.kernel.messages import (
    AF_BRIDGE,
    AF_INET6,
    NLMSG,
    NTF_PROXY,
    REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    TABLE_MAIN,
    VERSION,
    LinkInfo,
    as_address,
    attributes,
    dump_links,
    link_index,
    read_address,
    read_link,
    read_neighbour,
    read_route,
    route_device,
)
from flannelpy.kernel.nft import NETLINK_NETFILTER, Nft
from flannelpy.kernel.sieve import Sieve

LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE = 1, 3, 5, 7, 9, 11  # RTNLGRP_*
NFTABLES = 7  # NFNLGRP_NFTABLES
NFPROTO_INET = 1
SUBSYSTEM_NFTABLES = 10

MALFORMED = (StructError, AddrFormatError, ValueError, IndexError, OverflowError)
"""How a message that is not what it says reads. Only the kernel can send one."""

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why there is no socket now, though there may be one later."""

PAUSES_S = (0.05, 0.2, 0.5, 1.0)
"""Between one try to hear again and the next, in seconds; the last for ever."""

LINK_LOCAL = 0x3FA  # the first ten bits of fe80::/10

BURST = 512
"""Datagrams that are read before others on the loop get a turn: some 3 ms of ours, under 1 ms of somebody else's."""

_ROUTE_HEAD = Struct("=BBBBBBBB")  # family, dst length, src length, tos, table, protocol, scope, type


class Notices:
    """Notifications of one namespace for one scope; subscribed from its construction on. One consumer."""

    def __init__(self, scope: Scope, nft: Nft, receive_bytes: int, name_of: Callable[[int], str]) -> None:
        self.malformed = 0
        """Messages that could not be read; each was treated as lost."""
        self.closed = False
        self._scope = scope
        self._nft = nft
        self._name_of = name_of
        self._receive_bytes = receive_bytes
        self._sockets: list[socket.socket] = []
        self._waiter: asyncio.Future[None] | None = None
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
            groups = (LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE)
            self._join(socket.NETLINK_ROUTE, groups)
            self._join(NETLINK_NETFILTER, (NFTABLES,))
        except OSError as error:
            raise KernelError(f"netlink notifications: {error.strerror}", error.errno or 0) from None
        self._survey()

    def _unsubscribe(self) -> None:
        for sock in self._sockets:
            sock.close()  # which takes it out of the epoll set, too
        self._sockets.clear()

    def _join(self, protocol: int, groups: tuple[int, ...]) -> None:
        try:
            sock = netlink_socket(protocol, self._receive_bytes)
        except OSError as error:
            if protocol == NETLINK_NETFILTER and error.errno not in NO_ROOM:
                return  # a kernel without nf_tables has nothing to tell of it
            raise
        self._sockets.append(sock)
        for group in groups:
            sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _survey(self) -> None:
        """Learn which devices there are: later messages name them by index only. Raises KernelError.

        A dump that the table moved below will do: ours are asked for by name, and of the others what comes is told.
        """
        self._sieve = Sieve(self._scope, self._name_of)
        self._seen: dict[int, tuple[str, int, bool, str | None]] = {}
        with Channel() as channel, suppress(InterruptedError):
            for data, found in channel.dump(dump_links(channel.reserve(1))):
                for head in found:
                    self._meet(read_link(data, head.body, head.end))
        for name in (*self._scope.links, *([self._scope.uplink] if self._scope.uplink else [])):
            with suppress(OSError):
                self._sieve.meet(name, socket.if_nametoindex(name))
        self._routing = set(self._seen)

    def _meet(self, info: LinkInfo) -> None:
        self._seen[info.device] = (info.name, info.mtu, info.up, info.mac)
        self._sieve.meet(info.name, info.device)

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
                return draft.notice
            if exhausted and not self.closed:
                await self._readable()
        raise StopAsyncIteration

    async def _hear(self) -> tuple[_Draft, bool]:
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
                    return _Draft(), True
                continue
            self._deaf = None
            draft = _Draft()
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

    def _read(self) -> tuple[_Draft, bool]:
        """What there is to read, up to a burst; and whether that was all. Sets ``_deaf`` where something was lost."""
        draft = _Draft()
        count = 0
        for sock, digest in zip(self._sockets, (self._digest_route, self._digest_netfilter), strict=False):
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

    def _digest_route(self, data: bytes, draft: _Draft) -> None:
        at, size = 0, len(data)
        while at + 16 <= size:
            length, kind, flags, _sequence, _port = NLMSG.unpack_from(data, at)
            if length < 16 or at + length > size:
                self._lose(draft)
                return
            try:
                self._message(data, at + 16, at + length, kind, flags, draft)
            except MALFORMED:
                self._lose(draft)
            at += (length + 3) & ~3

    def _lose(self, draft: _Draft) -> None:
        """A message that cannot be read is one that is lost."""
        self.malformed += 1
        draft.lost = True

    def _message(self, data: bytes, body: int, end: int, kind: int, flags: int, draft: _Draft) -> None:
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            if link_index(data, body) in self._sieve.links:
                self._neighbour(data, body, end, kind == RTM_NEWNEIGH, draft)
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            self._route(data, body, end, kind == RTM_NEWROUTE, flags, draft)
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            self._address(data, body, end, kind == RTM_NEWADDR, draft)
        elif kind in (RTM_NEWLINK, RTM_DELLINK) and data[body] != AF_BRIDGE:  # AF_BRIDGE: a port came to or left a bridge
            self._link(read_link(data, body, end), kind == RTM_NEWLINK, draft)

    def _neighbour(self, data: bytes, body: int, end: int, new: bool, draft: _Draft) -> None:
        info = read_neighbour(data, body, end)
        name = self._sieve.links[info.device]
        item: Neighbour | FdbEntry | None
        if info.family == AF_BRIDGE:
            if not info.mac:
                return
            item, key = self._sieve.fdb(info), Key("fdb", f"{info.mac.hex(':')} dev {name}")
        else:
            if info.dst is None or info.flags & NTF_PROXY:
                return
            item, key = self._sieve.neighbour(info), Key("neigh", f"{as_address(info.dst)} dev {name}")
        draft.objects[key] = item if new else None  # one that is no longer permanent is gone, too

    def _route(self, data: bytes, body: int, end: int, new: bool, flags: int, draft: _Draft) -> None:
        family, prefixlen, _source, _tos, table, proto, _scope, _kind = _ROUTE_HEAD.unpack_from(data, body)
        if table != TABLE_MAIN:
            return
        if proto != ROUTE_PROTOCOL:
            self._foreign_route(data, body, end, family, draft)
            if prefixlen and not flags & REPLACE:
                device = route_device(data, body, end)
                if device not in self._sieve.links and (not device or device != self._sieve.uplink):
                    return
        info = read_route(data, body, end)
        if info is None:
            return
        if not prefixlen:
            draft.default_route = True
        item = self._sieve.route(info)
        if item is not None:
            draft.objects[item.key] = item if new else None
        elif new and flags & REPLACE and self._sieve.inside(info) and self._sieve.keyed(info):
            draft.objects[Key("route", str(info.network))] = None  # somebody put theirs in the place of ours

    def _foreign_route(self, data: bytes, body: int, end: int, family: int, draft: _Draft) -> None:
        """IPv6 has one to fe80::/64 on every device, by which nobody is reached who is not named with the device."""
        device = route_device(data, body, end)
        if device in self._sieve.links or family not in VERSION:
            return
        if family == AF_INET6:
            info = read_route(data, body, end)
            if info is None or info.dst >> 118 == LINK_LOCAL:
                return
        draft.routed.add(VERSION[family])
        self._routing.add(device)

    def _address(self, data: bytes, body: int, end: int, new: bool, draft: _Draft) -> None:
        index = link_index(data, body)
        ours = index in self._sieve.links
        if not ours:
            draft.links[index] = self._seen[index][0] if index in self._seen else self._name_of(index)
        info = read_address(data, body, end)
        if info is None:
            return
        item: Address | None = self._sieve.address(info)
        if item is not None:
            draft.objects[item.key] = item if new else None
        if info.version == 4:
            self._routing.add(index)
            if not new:  # the last one takes every route of its device along, unannounced
                if ours or index == self._sieve.uplink:
                    draft.resync = True
                if not ours:
                    draft.routed.add(4)

    def _link(self, info: LinkInfo, new: bool, draft: _Draft) -> None:
        index, name = info.device, info.name
        before = self._seen.get(index)
        if not new or (before is not None and before[0] != name):
            self._forget(index, before[0] if before else name, draft)
        if not new:
            return
        self._meet(info)
        item = self._sieve.link(info)
        if item is not None:
            draft.objects[item.key] = item
        elif before != self._seen[index]:
            draft.links[index] = name
        if before is not None and before[2] and not info.up:  # routes of a device that goes down vanish unannounced
            if item is not None or index == self._sieve.uplink:
                draft.resync = True
            if item is None:
                self._unroute(index, draft)

    def _forget(self, index: int, name: str, draft: _Draft) -> None:
        """A device is gone, or has another name now."""
        self._seen.pop(index, None)
        if self._sieve.links.pop(index, None) is not None:
            draft.objects[Key("link", name)] = None
            draft.resync = True
        else:
            draft.links[index] = name
            self._unroute(index, draft)
        if index == self._sieve.uplink:
            self._sieve.uplink = 0
            draft.resync = True

    def _unroute(self, index: int, draft: _Draft) -> None:
        """The routes of a device may be gone without a word; one that came after us had none that we had not heard of."""
        if index in self._routing:
            self._routing.discard(index)
            draft.routed |= {4, 6}

    def _digest_netfilter(self, data: bytes, draft: _Draft) -> None:
        """Every nftables message but the generation's names its table in its first attribute."""
        at, size = 0, len(data)
        wanted = self._scope.table.encode() + b"\0"
        while at + 20 <= size:
            length, kind, _flags, _sequence, _port = NLMSG.unpack_from(data, at)
            if length < 20 or at + length > size:
                self._lose(draft)
                return
            if kind >> 8 == SUBSYSTEM_NFTABLES and data[at + 16] == NFPROTO_INET and not draft.nft_touched:
                draft.nft_touched = attributes(data, at + 20, at + length).get(1) == wanted
            at += (length + 3) & ~3

    async def _look_at_table(self, draft: _Draft) -> None:
        key = Key("nft", self._scope.table)
        try:
            draft.objects[key] = await self._nft.list(self._scope.table)
        except KernelError:
            draft.resync = True  # an observation will say what is wrong


class _Draft:
    """A Notice that is being written."""

    __slots__ = ("default_route", "links", "lost", "nft_touched", "objects", "resync", "routed")

    def __init__(self) -> None:
        self.objects: dict[Key, Object | None] = {}
        self.resync = False
        self.lost = False
        self.links: dict[int, str] = {}
        self.default_route = False
        self.routed: set[int] = set()
        self.nft_touched = False

    @property
    def news(self) -> bool:
        return bool(self.objects or self.resync or self.lost or self.links or self.default_route or self.routed)

    @property
    def notice(self) -> Notice:
        resync = self.resync or self.lost
        return Notice(self.objects, resync, self.lost, self.links, self.default_route, frozenset(self.routed))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
