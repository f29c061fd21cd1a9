"""What did the kernel just say? Its notifications, sieved and coalesced, as an endless iterator.

Everything that is read in one wake-up becomes one Notice; nothing waits on purpose. The kernel tells of objects one by one, with
exceptions that decide the shape of this module: what goes with a device that is deleted or taken down, or with the last IPv4
address of a device, goes without a word. Such an event therefore asks for a full observation.

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
from struct import Struct
from struct import error as StructError  # noqa: N812 - an error by the name of its like

from netaddr import AddrFormatError

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import ROUTE_PROTOCOL, Address, FdbEntry, Key, Neighbour, Object, Scope
from flannelpy.kernel import Notice
from flannelpy.kernel.channel import ADD_MEMBERSHIP, DATAGRAM_BYTES, SOL_NETLINK, Channel, netlink_socket
from flannelpy.kernel.messages import (
    AF_BRIDGE,
    AF_INET,
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
RTPROT_KERNEL = 2
NFTABLES = 7  # NFNLGRP_NFTABLES
NFPROTO_INET = 1
SUBSYSTEM_NFTABLES = 10

BURST = 512
"""Datagrams that are read before others on the loop get a turn: some 3 ms of ours, under 1 ms of somebody else's."""

_ROUTE_HEAD = Struct("=BBBBBBBB")  # family, dst length, src length, tos, table, protocol, scope, type


class Notices:
    """Notifications of one namespace for one scope; subscribed from its construction on. One consumer."""

    def __init__(self, scope: Scope, nft: Nft, receive_bytes: int, name_of: Callable[[int], str]) -> None:
        self._scope = scope
        self._nft = nft
        self._name_of = name_of
        self._sockets: list[socket.socket] = []
        self._epoll = select.epoll()
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False
        try:
            groups = (LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE)
            self._subscribe(socket.NETLINK_ROUTE, groups, receive_bytes)
            self._subscribe(NETLINK_NETFILTER, (NFTABLES,), receive_bytes)
            self._survey()
        except OSError as error:
            self.close()
            raise KernelError(f"netlink notifications: {error.strerror}", error.errno or 0) from None
        except BaseException:
            self.close()
            raise

    def _subscribe(self, protocol: int, groups: tuple[int, ...], receive_bytes: int) -> None:
        try:
            sock = netlink_socket(protocol, receive_bytes)
        except OSError:
            if protocol == NETLINK_NETFILTER:
                return  # a kernel without nf_tables has nothing to tell of it
            raise
        self._sockets.append(sock)
        for group in groups:
            sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _survey(self) -> None:
        """Learn which devices there are: later messages name them by index only."""
        self._sieve = Sieve(self._scope, self._name_of)
        self._seen: dict[int, tuple[str, int, bool]] = {}
        for _ in range(10):
            try:
                with Channel() as channel:
                    for data, found in channel.dump(dump_links(channel.reserve(1))):
                        for head in found:
                            self._meet(read_link(data, head.body, head.end))
                return
            except InterruptedError:
                continue

    def _meet(self, info: LinkInfo) -> None:
        self._seen[info.device] = (info.name, info.mtu, info.up)
        self._sieve.meet(info.name, info.device)

    # ------------------------------------------------------------------------------------------------- iteration

    def __aiter__(self) -> Notices:
        return self

    async def __anext__(self) -> Notice:
        while not self.closed:
            draft, exhausted = self._read()
            if draft.nft_touched:
                await self._look_at_table(draft)
            if not exhausted:
                await asyncio.sleep(0)
            if draft.news:
                return draft.notice()
            if exhausted:
                await self._readable()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribe; whoever waits gets the end of the iteration. May be called twice."""
        self.closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
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
        """What there is to read, up to a burst; and whether that was all."""
        draft = _Draft()
        count = 0
        lost = False
        for sock, digest in zip(self._sockets, (self._digest_route, self._digest_netfilter), strict=False):
            while count < BURST:
                try:
                    data = sock.recv(DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise KernelError(f"netlink notifications: {error.strerror}", error.errno or 0) from None
                    lost = True
                    continue
                count += 1
                if not lost:
                    try:
                        digest(data, draft)
                    except (ValueError, AddrFormatError, StructError):
                        lost = True  # nothing that the kernel says is like that; whatever it was, look at everything
        if lost:
            draft = _Draft(lost=True)
            self._survey()
        return draft, count < BURST

    def _digest_route(self, data: bytes, draft: _Draft) -> None:
        at, size = 0, len(data)
        while at + 16 <= size:
            length, kind, flags, _sequence, _port = NLMSG.unpack_from(data, at)
            if length < 16:
                return
            body, end = at + 16, at + length
            if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                if link_index(data, body) in self._sieve.links:
                    self._neighbour(data, body, end, kind == RTM_NEWNEIGH, draft)
            elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
                self._route(data, body, end, kind == RTM_NEWROUTE, flags, draft)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                self._address(data, body, end, kind == RTM_NEWADDR, draft)
            elif kind in (RTM_NEWLINK, RTM_DELLINK) and data[body] != AF_BRIDGE:  # AF_BRIDGE: a port came to or left a bridge
                self._link(read_link(data, body, end), kind == RTM_NEWLINK, draft)
            at += (length + 3) & ~3

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
        if proto != ROUTE_PROTOCOL and (proto != RTPROT_KERNEL or family == AF_INET):
            # Of IPv6 the kernel adds a link-local route with every interface that comes up; they lead to no peer.
            draft.routed.add(4 if family == AF_INET else 6)
        if new and proto != ROUTE_PROTOCOL and prefixlen and not flags & REPLACE:
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
        elif (flags & REPLACE or not new) and self._sieve.inside(info) and self._sieve.keyed(info):
            # Somebody put theirs in the place of ours; or it was in our way, and is gone.
            draft.objects[Key("route", str(info.network))] = None

    def _address(self, data: bytes, body: int, end: int, new: bool, draft: _Draft) -> None:
        index = link_index(data, body)
        ours = index in self._sieve.links
        if not ours:
            draft.links[index] = self._seen[index][0] if index in self._seen else ""
        info = read_address(data, body, end)
        if info is None:
            return
        item: Address | None = self._sieve.address(info)
        if item is not None:
            draft.objects[item.key] = item if new else None
        if not new and info.version == 4 and (ours or index == self._sieve.uplink):
            draft.resync = True  # the last one takes every route of its device along, unannounced

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
        if before is not None and before[2] and not info.up and (item is not None or index == self._sieve.uplink):
            draft.resync = True  # routes of a device that goes down vanish unannounced

    def _forget(self, index: int, name: str, draft: _Draft) -> None:
        """A device is gone, or has another name now."""
        self._seen.pop(index, None)
        if self._sieve.links.pop(index, None) is not None:
            draft.objects[Key("link", name)] = None
            draft.resync = True
        else:
            draft.links[index] = name
        if index == self._sieve.uplink:
            self._sieve.uplink = 0
            draft.resync = True

    def _digest_netfilter(self, data: bytes, draft: _Draft) -> None:
        """Every nftables message but the generation's names its table in its first attribute."""
        at, size = 0, len(data)
        wanted = self._scope.table.encode() + b"\0"
        while at + 20 <= size:
            length, kind, _flags, _sequence, _port = NLMSG.unpack_from(data, at)
            if length < 16:
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

    def __init__(self, lost: bool = False) -> None:
        self.objects: dict[Key, Object | None] = {}
        self.lost = self.resync = lost
        self.links: dict[int, str] = {}
        self.default_route = False
        self.routed: set[int] = set()
        self.nft_touched = False

    @property
    def news(self) -> bool:
        return bool(self.objects or self.resync or self.links or self.default_route or self.routed)

    def notice(self) -> Notice:
        return Notice(self.objects, self.resync, self.lost, self.links, self.default_route, frozenset(self.routed))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
