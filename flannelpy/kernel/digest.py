"""What does a notification say? Datagrams of the kernel, sieved, added to a draft of what is told.

The kernel tells of objects one by one, with exceptions: what goes with a device that is deleted or taken down, or with the last
IPv4 address of a device, goes without a word. Such an event therefore asks for a full observation, where the device is ours or the
uplink; of any other device it says that routes may have changed, where it had any. Nothing here raises: a message that cannot be
read is one that is lost. Sources: rtnetlink(7), linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from struct import Struct

from netaddr import AddrFormatError

from flannelpy.core.objects import ROUTE_PROTOCOL, Address, FdbEntry, Key, Neighbour, Object, Scope
from flannelpy.kernel import Notice
from flannelpy.kernel.elements import NFPROTO_INET, decode
from flannelpy.kernel.messages import (
    AF_BRIDGE,
    AF_INET6,
    NLMSG,
    NTF_PROXY,
    REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    TABLE_MAIN,
    VERSION,
    LinkInfo,
    as_address,
    attributes,
    link_index,
    read_address,
    read_link,
    read_neighbour,
    read_nexthop,
    read_route,
    route_device,
)
from flannelpy.kernel.sieve import Sieve
from flannelpy.kernel.xfrm import hear

SUBSYSTEM_NFTABLES = 10
DELETE_SET, NEW_ELEMENT, DELETE_ELEMENT = 11, 12, 14  # NFT_MSG_*

MALFORMED = (struct.error, AddrFormatError, ValueError, IndexError, OverflowError)
"""How a message that is not what it says reads. Only the kernel can send one."""

LINK_LOCAL = 0x3FA  # the first ten bits of fe80::/10
LINK_LOCAL4 = 0xA9FE  # the first sixteen of 169.254.0.0/16

_ROUTE_HEAD = Struct("=BBBBBBBB")  # family, dst length, src length, tos, table, protocol, scope, type


class Draft:
    """A Notice that is being written."""

    __slots__ = ("addressed", "default_route", "flushed", "links", "lost", "nft_touched", "objects", "resync", "routed")

    def __init__(self) -> None:
        self.objects: dict[Key, Object | None] = {}
        self.resync = False
        self.lost = False
        self.links: dict[int, str] = {}
        self.default_route = False
        self.routed: set[int] = set()
        self.nft_touched = False
        self.addressed = False
        self.flushed: set[int] = set()  # nexthop objects that went, with which their routes did; none has come by them since

    @property
    def news(self) -> bool:
        return bool(self.objects or self.resync or self.lost or self.links or self.default_route or self.routed)

    @property
    def notice(self) -> Notice:
        resync = self.resync or self.lost or any(self.objects.get(Key("nexthop", str(each))) for each in self.flushed)
        return Notice(self.objects, resync, self.lost, self.links, self.default_route, frozenset(self.routed), self.addressed)


class Digest:
    """What is known of the host's devices, without which no message can be understood. ``links`` are those that there are now."""

    def __init__(self, scope: Scope, name_of: Callable[[int], str], links: Iterable[LinkInfo] = ()) -> None:
        self.malformed = 0
        """Messages that could not be read."""
        self._scope = scope
        self._name_of = name_of
        self.survey(links)

    def survey(self, links: Iterable[LinkInfo]) -> None:
        """Begin anew with these devices; ours are asked for by name, because ``links`` may lack some."""
        self._sieve = Sieve(self._scope, self._name_of)
        self._seen: dict[int, tuple[str, int, bool, str | None, bool]] = {}
        for info in links:
            self._meet(info)
        for name in (*self._scope.links, *([self._scope.uplink] if self._scope.uplink else [])):
            with suppress(OSError):
                self._sieve.meet(name, socket.if_nametoindex(name))
        self._routing = set(self._seen)  # devices that may have routes

    def _meet(self, info: LinkInfo) -> None:
        self._sieve.meet(info.name, info.device)
        carries = info.running or info.device != self._sieve.uplink  # the carriers of containers' links come and go all the time
        self._seen[info.device] = (info.name, info.mtu, info.up, info.mac, carries)

    def route(self, data: bytes, draft: Draft) -> None:
        """A datagram of rtnetlink."""
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

    def _lose(self, draft: Draft) -> None:
        """A message that cannot be read is one that is lost."""
        self.malformed += 1
        draft.lost = True

    def _message(self, data: bytes, body: int, end: int, kind: int, flags: int, draft: Draft) -> None:
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            if link_index(data, body) in self._sieve.links:
                self._neighbour(data, body, end, kind == RTM_NEWNEIGH, draft)
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            self._route_message(data, body, end, kind == RTM_NEWROUTE, flags, draft)
        elif kind in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP):
            self._nexthop(data, body, end, kind == RTM_NEWNEXTHOP, flags, draft)
        elif kind in (RTM_NEWRULE, RTM_DELRULE) and data[body] in VERSION:  # which table is asked, and before which other
            draft.routed.add(VERSION[data[body]])
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            self._address(data, body, end, kind == RTM_NEWADDR, draft)
        elif kind in (RTM_NEWLINK, RTM_DELLINK) and data[body] != AF_BRIDGE:  # AF_BRIDGE: a port came to or left a bridge
            self._link(read_link(data, body, end), kind == RTM_NEWLINK, draft)

    def _neighbour(self, data: bytes, body: int, end: int, new: bool, draft: Draft) -> None:
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

    def _nexthop(self, data: bytes, body: int, end: int, new: bool, flags: int, draft: Draft) -> None:
        """Where one went its routes did, without a word: ``Draft.flushed`` has it, in case that another comes under its number."""
        info = read_nexthop(data, body, end)
        item = self._sieve.nexthop(info)
        if item is not None:
            draft.objects[item.key] = item if new else None
            if not new:
                draft.flushed.add(item.id)
        elif new and flags & REPLACE:
            draft.objects[Key("nexthop", str(info.id))] = None  # somebody has made theirs of it

    def _route_message(self, data: bytes, body: int, end: int, new: bool, flags: int, draft: Draft) -> None:
        family, prefixlen, _source, _tos, table, proto, _scope, _kind = _ROUTE_HEAD.unpack_from(data, body)
        if table != TABLE_MAIN:
            return
        if proto != ROUTE_PROTOCOL:
            self._foreign_route(data, body, end, family, draft)
            if new and prefixlen and not flags & REPLACE:
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
            if new and draft.flushed:
                draft.flushed.discard(item.nhid)
        elif (flags & REPLACE or not new) and self._sieve.inside(info) and self._sieve.keyed(info):
            # Somebody put theirs in the place of ours; or it was in our way, and is gone.
            draft.objects[Key("route", str(info.network))] = None

    def _foreign_route(self, data: bytes, body: int, end: int, family: int, draft: Draft) -> None:
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

    def _address(self, data: bytes, body: int, end: int, new: bool, draft: Draft) -> None:
        index = link_index(data, body)
        ours = index in self._sieve.links
        if not ours:
            draft.links[index] = self._seen[index][0] if index in self._seen else self._name_of(index)
        info = read_address(data, body, end)
        if info is None:
            return
        if not ours and info.value >> (118 if info.version == 6 else 16) != (LINK_LOCAL if info.version == 6 else LINK_LOCAL4):
            draft.addressed = True
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
        elif not new and info.value >> 118 == LINK_LOCAL and (ours or index == self._sieve.uplink):
            draft.resync = True  # IPv6 went off there, and its routes; with skip_notify_on_dev_down (ip-sysctl) without a word

    def _link(self, info: LinkInfo, new: bool, draft: Draft) -> None:
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

    def _forget(self, index: int, name: str, draft: Draft) -> None:
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

    def _unroute(self, index: int, draft: Draft) -> None:
        """The routes of a device may be gone without a word; one that came after us had none that we had not heard of."""
        if index in self._routing:
            self._routing.discard(index)
            draft.routed |= {4, 6}

    def policies(self, data: bytes, draft: Draft) -> None:
        """A datagram of XFRM's."""
        try:
            hear(self._scope, data, draft)
        except MALFORMED:
            self._lose(draft)

    def netfilter(self, data: bytes, draft: Draft) -> None:
        """A datagram of nftables, each of whose messages but the generation's names its table in its first attribute."""
        at, size = 0, len(data)
        wanted = self._scope.table.encode() + b"\0"
        while at + 20 <= size:
            length, kind, _flags, _sequence, _port = NLMSG.unpack_from(data, at)
            if length < 20 or at + length > size:
                self._lose(draft)
                return
            if kind >> 8 == SUBSYSTEM_NFTABLES and data[at + 16] == NFPROTO_INET:
                try:
                    self._of_table(data, kind & 255, at, length, wanted, draft)
                except MALFORMED:
                    self._lose(draft)
            at += (length + 3) & ~3

    def _of_table(self, data: bytes, kind: int, at: int, length: int, wanted: bytes, draft: Draft) -> None:
        """A message about a table, ours or not. The elements of a set that is deleted go without a word."""
        if kind not in (NEW_ELEMENT, DELETE_ELEMENT) and draft.nft_touched and kind != DELETE_SET:
            return
        if attributes(data, at + 20, at + length).get(1) != wanted:
            return
        if kind in (NEW_ELEMENT, DELETE_ELEMENT):
            draft.objects |= {item.key: item if kind == NEW_ELEMENT else None for item in decode(data, at + 16, at + length)}
            return
        draft.nft_touched = True
        draft.resync = draft.resync or kind == DELETE_SET
