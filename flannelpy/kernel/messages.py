"""How do routes, nexthops, neighbours and FDB entries look on the wire of rtnetlink, and what do its answers say?

Bulk objects are packed and unpacked here with ``struct``: a library that builds an object a message costs 600-900 us for each,
this 2-6. The encoders are held byte for byte against pyroute2's in tests/unit/test_messages.py. Sources: netlink(7), rtnetlink(7),
linux/{netlink,rtnetlink,neighbour,nexthop,if_link,if_addr}.h. All multi-byte fields are in host order but addresses and UDP ports.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Literal, NamedTuple

from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import FdbEntry, Neighbour, Nexthop, Route

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE = 32, 33
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400  # of requests that make something
DUMP_INTERRUPTED = 0x10  # of answers: the table changed while it was dumped
CAPPED, ACK_TLVS = 0x100, 0x200  # of NLMSG_ERROR

AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
Version = Literal[4, 6]
VERSION: dict[int, Version] = {AF_INET: 4, AF_INET6: 6}
FAMILY = {4: AF_INET, 6: AF_INET6}
WIDTH = {4: 4, 6: 16}  # bytes of an address

TABLE_MAIN = 254
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
ONLINK = 4  # RTNH_F_ONLINK
CLONED = 0x200  # RTM_F_CLONED: a cached exception, not a route
METRIC6 = 1024  # what the kernel gives an IPv6 route that is added without a metric
ROUTE_KINDS = {"unicast": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}
ROUTE_KIND_NAMES = {number: name for name, number in ROUTE_KINDS.items()}

PERMANENT, PROBE = 0x80, 0x10  # NUD_PERMANENT, NUD_PROBE
NTF_SELF, NTF_PROXY = 0x02, 0x08

IFF_UP = 1
OPERATES, NOT_TOLD = b"\x06", b"\0"  # IF_OPER_UP, RFC 2863's up; IF_OPER_UNKNOWN
IFNAMSIZ = 16
SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS: a link without its counters is a third as long

NLMSG = Struct("=IHHII")  # length, type, flags, sequence, port
IFINFO = Struct("=BxHiII")  # family, hardware type, index, flags, change
_IFADDR = Struct("=BBBBI")  # family, prefix length, flags, scope, index
RTMSG = Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
_NHMSG = Struct("=BBBxI")  # family, scope, protocol, flags
_NDMSG = Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTA = Struct("=HH")
_RTAU32 = Struct("=HHI")
U16 = Struct("=H")
U32 = Struct("=I")
_S32 = Struct("=i")
_ALIGN = (b"", b"\0\0\0", b"\0\0", b"\0")


class Head(NamedTuple):
    """A netlink message within a datagram: ``body`` to ``end`` is its payload."""

    kind: int
    flags: int
    sequence: int
    body: int
    end: int


# ------------------------------------------------------------------------------------------------------- encoding


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A whole message; ``body`` is aligned already."""
    return NLMSG.pack(16 + len(body), kind, flags, sequence, 0) + body


def with_ack(request: bytes) -> bytes:
    """The same message, asking for an acknowledgement of success, too."""
    length, kind, flags, sequence, port = NLMSG.unpack_from(request)
    return NLMSG.pack(length, kind, flags | ACK, sequence, port) + request[16:]


def attribute(number: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    return _RTA.pack(4 + len(value), number) + value + _ALIGN[len(value) & 3]


def route(kind: int, flags: int, sequence: int, item: Route, index: int) -> bytes:
    """RTM_NEWROUTE or RTM_DELROUTE of ``item``; ``index`` of its device, 0 for none.

    A removal names everything that was observed (type, protocol, scope, gateway, device, IPv6 metric): the kernel takes fields that
    are left out for "any", and would remove somebody else's route to the same destination. Of a route by a nexthop object it takes
    that one's number only, and refuses a gateway or device beside it.
    """
    dst, via, onlink = item.dst, item.via, item.onlink
    if item.nhid:
        via, onlink, index = None, False, 0
    version = dst.version
    scope = SCOPE_LINK if item.link_scope else SCOPE_UNIVERSE
    body = RTMSG.pack(
        FAMILY[version],
        dst.prefixlen,
        0,
        0,
        TABLE_MAIN,
        item.proto,
        scope,
        ROUTE_KINDS[item.kind],
        ONLINK if onlink else 0,
    ) + attribute(1, packed(dst))
    if via is not None:
        if via.version == version:
            body += attribute(5, packed(via))
        else:  # an IPv4 route by way of an IPv6 gateway (RTA_VIA, RFC 5549)
            body += attribute(18, U16.pack(FAMILY[via.version]) + packed(via))
    if index:
        body += _RTAU32.pack(8, 4, index)
    if item.metric:
        body += _RTAU32.pack(8, 6, item.metric)
    elif version == 6 and kind == RTM_DELROUTE:
        body += _RTAU32.pack(8, 6, METRIC6)
    if item.nhid:
        body += _RTAU32.pack(8, 30, item.nhid)
    return message(kind, flags, sequence, body)


def nexthop(kind: int, flags: int, sequence: int, item: Nexthop, index: int) -> bytes:
    """RTM_NEWNEXTHOP or RTM_DELNEXTHOP: a gateway on the device with this index. A removal names the number and nothing else."""
    number = _RTAU32.pack(8, 1, item.id)
    if kind == RTM_DELNEXTHOP:
        return message(kind, flags, sequence, _NHMSG.pack(0, 0, 0, 0) + number)
    head = _NHMSG.pack(FAMILY[item.via.version], 0, item.proto, ONLINK if item.onlink else 0)
    return message(kind, flags, sequence, head + number + _RTAU32.pack(8, 5, index) + attribute(6, packed(item.via)))


def neighbour(kind: int, flags: int, sequence: int, item: Neighbour, index: int) -> bytes:
    """RTM_NEWNEIGH or RTM_DELNEIGH: where an overlay gateway's frames go (inner MAC)."""
    version = item.dst.version
    body = _NDMSG.pack(FAMILY[version], index, PERMANENT, 0, 1) + attribute(1, packed(item.dst)) + attribute(2, mac_bytes(item.mac))
    return message(kind, flags, sequence, body)


def probe_neighbour(sequence: int, known: NeighbourInfo) -> bytes:
    """RTM_NEWNEIGH that has the kernel ask a neighbour, whose address it knows, whether that is still so."""
    assert known.dst is not None
    assert known.mac is not None
    body = _NDMSG.pack(known.family, known.device, PROBE, 0, 1) + attribute(1, known.dst) + attribute(2, known.mac)
    return message(RTM_NEWNEIGH, REQUEST | ACK | REPLACE, sequence, body)


def fdb(kind: int, flags: int, sequence: int, item: FdbEntry, index: int) -> bytes:
    """RTM_NEWNEIGH or RTM_DELNEIGH of family AF_BRIDGE: where a vxlan device sends frames for an inner MAC (outer address)."""
    body = (
        _NDMSG.pack(AF_BRIDGE, index, PERMANENT if kind == RTM_NEWNEIGH else 0, NTF_SELF, 0)
        + attribute(1, packed(item.dst))
        + attribute(2, mac_bytes(item.mac))
    )
    return message(kind, flags, sequence, body)


def dump_links(sequence: int) -> bytes:
    return message(RTM_GETLINK, REQUEST | DUMP, sequence, IFINFO.pack(0, 0, 0, 0, 0) + _RTAU32.pack(8, 29, SKIP_STATS))


def get_link(sequence: int, index: int) -> bytes:
    return message(RTM_GETLINK, REQUEST, sequence, IFINFO.pack(0, 0, index, 0, 0) + _RTAU32.pack(8, 29, SKIP_STATS))


def get_link_named(sequence: int, name: str) -> bytes:
    """By name or altname: IFLA_IFNAME finds both, and holds 15 letters; IFLA_ALT_IFNAME holds 127 (kernels from 5.5)."""
    text = name.encode("utf-8", "surrogateescape")
    number = 3 if len(text) < IFNAMSIZ else 53
    body = IFINFO.pack(0, 0, 0, 0, 0) + attribute(number, text + b"\0") + _RTAU32.pack(8, 29, SKIP_STATS)
    return message(RTM_GETLINK, REQUEST, sequence, body)


def delete_link(sequence: int, index: int) -> bytes:
    return message(RTM_DELLINK, REQUEST | ACK, sequence, IFINFO.pack(0, 0, index, 0, 0))


def dump_addresses(sequence: int, index: int = 0) -> bytes:
    """``index`` is a filter that kernels from 5.0 apply; older ones send everything."""
    return message(RTM_GETADDR, REQUEST | DUMP, sequence, _IFADDR.pack(0, 0, 0, 0, index))


def dump_routes(sequence: int, family: int) -> bytes:
    """The main table only, where the kernel can filter (5.0, strict checking); else all tables."""
    return message(
        RTM_GETROUTE,
        REQUEST | DUMP,
        sequence,
        RTMSG.pack(family, 0, 0, 0, TABLE_MAIN, 0, 0, 0, 0) + _RTAU32.pack(8, 15, TABLE_MAIN),
    )


def get_route(sequence: int, address: IPAddress) -> bytes:
    """``ip route get ADDRESS``."""
    body = RTMSG.pack(FAMILY[address.version], WIDTH[address.version] * 8, 0, 0, 0, 0, 0, 0, 0)
    return message(RTM_GETROUTE, REQUEST, sequence, body + attribute(1, packed(address)))


def dump_neighbours(sequence: int, family: int, index: int) -> bytes:
    """Neighbours of one device (family 0: both), or the FDB of one device (AF_BRIDGE)."""
    return message(RTM_GETNEIGH, REQUEST | DUMP, sequence, _NDMSG.pack(family, 0, 0, 0, 0) + _RTAU32.pack(8, 8, index))


def dump_nexthops(sequence: int, index: int) -> bytes:
    """Nexthop objects of one device."""
    return message(RTM_GETNEXTHOP, REQUEST | DUMP, sequence, _NHMSG.pack(0, 0, 0, 0) + _RTAU32.pack(8, 5, index))


def get_nexthop(sequence: int, number: int) -> bytes:
    return message(RTM_GETNEXTHOP, REQUEST, sequence, _NHMSG.pack(0, 0, 0, 0) + _RTAU32.pack(8, 1, number))


def packed(address: IPAddress | IPNetwork) -> bytes:
    """An address, or a network with its host bits, in network order."""
    return (address.value or 0).to_bytes(WIDTH[address.version], "big")


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# ------------------------------------------------------------------------------------------------------- decoding


def heads(data: bytes) -> Iterator[Head]:
    """The messages of a datagram, in order."""
    at, size = 0, len(data)
    while at + 16 <= size:
        length, kind, flags, sequence, _port = NLMSG.unpack_from(data, at)
        if length < 16:
            return
        yield Head(kind, flags, sequence, at + 16, min(at + length, size))
        at += (length + 3) & ~3


def attributes(data: bytes, at: int, end: int) -> dict[int, bytes]:
    """Attributes between two offsets, by number without the flag bits; the last of several wins."""
    found = {}
    while at + 4 <= end:
        length, number = _RTA.unpack_from(data, at)
        if length < 4:
            break
        found[number & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def each_attribute(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    """As ``attributes``, each of several."""
    while at + 4 <= end:
        length, number = _RTA.unpack_from(data, at)
        if length < 4:
            break
        yield number & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def failure(data: bytes, head: Head) -> tuple[int, str]:
    """What an NLMSG_ERROR says: the positive errno (0 is success) and the kernel's own words, if it has any."""
    code = -_S32.unpack_from(data, head.body)[0]
    if not code or not head.flags & ACK_TLVS:
        return code, ""
    start = head.body + 20  # errno and the header of our message; the rest of it is cut off (NETLINK_CAP_ACK)
    if not head.flags & CAPPED:
        start = head.body + 4 + ((U32.unpack_from(data, head.body + 4)[0] + 3) & ~3)
    words = attributes(data, start, head.end).get(1, b"")
    return code, words.rstrip(b"\0").decode("utf-8", "replace")


def dump_failure(data: bytes, head: Head) -> int:
    """The positive errno that an NLMSG_DONE carries, 0 for a dump that went well."""
    return -_S32.unpack_from(data, head.body)[0] if head.end - head.body >= 4 else 0


class LinkInfo(NamedTuple):
    """A device as the kernel tells it. ``data``: what is its kind's own (IFLA_INFO_DATA), by number."""

    family: int
    device: int
    name: str
    flags: int
    mtu: int
    mac: str | None
    kind: str
    data: dict[int, bytes]
    running: bool = True
    """Up, and with a carrier; a bridge, with a port that has one."""

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)


def link_index(data: bytes, body: int) -> int:
    """The device that a link, address or neighbour message is about, without decoding it: all three carry it at one place."""
    index: int = U32.unpack_from(data, body + 4)[0]
    return index


def read_link(data: bytes, body: int, end: int) -> LinkInfo:
    family, _hardware, index, flags, _change = IFINFO.unpack_from(data, body)
    found = attributes(data, body + 16, end)
    kind, own = "", b""
    if 18 in found:
        info = attributes(found[18], 0, len(found[18]))
        kind, own = _text(info.get(1, b"")), info.get(2, b"")
    mac = found.get(1)
    return LinkInfo(
        family,
        index,
        _text(found.get(3, b"")),
        flags,
        u32(found.get(4)),
        mac.hex(":") if mac is not None and len(mac) == 6 else None,
        kind,
        attributes(own, 0, len(own)),
        _runs(flags, kind, found.get(16, NOT_TOLD)),
    )


def _runs(flags: int, kind: str, state: bytes) -> bool:
    """As the kernel's own IFF_RUNNING: drivers that know of no carrier (lo, tun, dummy, WireGuard) stay unknown for ever. So does a
    bridge that never had a port, and that one carries nothing.
    """
    return bool(flags & 1) and (state == OPERATES or (state == NOT_TOLD and kind != "bridge"))


def read_altnames(data: bytes, body: int, end: int) -> tuple[str, ...]:
    """The other names of a link (IFLA_PROP_LIST, each an IFLA_ALT_IFNAME)."""
    properties = attributes(data, body + 16, end).get(52, b"")
    return tuple(_text(value) for number, value in each_attribute(properties, 0, len(properties)) if number == 53)


class AddressInfo(NamedTuple):
    """An address of a device; ``flags`` are IFA_F_*."""

    device: int
    version: Version
    value: int
    prefixlen: int
    scope: int
    flags: int


def read_address(data: bytes, body: int, end: int) -> AddressInfo | None:
    family, prefixlen, flags, scope, index = _IFADDR.unpack_from(data, body)
    found = attributes(data, body + 8, end)
    value = found.get(2) or found.get(1)  # IFA_LOCAL is ours; IFA_ADDRESS is the other end's on a point-to-point device
    if value is None or family not in VERSION:
        return None
    if 8 in found:
        flags = u32(found[8])
    return AddressInfo(index, VERSION[family], int.from_bytes(value, "big"), prefixlen, scope, flags)


class RouteInfo(NamedTuple):
    """A route of the main table; ``device`` is an index (0: none, or several hops), ``via`` as the kernel's bytes."""

    version: Version
    dst: int
    prefixlen: int
    proto: int
    scope: int
    kind: int
    flags: int
    device: int
    via: bytes | None
    metric: int
    plain: bool
    """False for several next hops, a type of service, a source prefix: what a ``Route`` cannot say."""
    nhid: int = 0
    """The nexthop object that carries it; the kernel tells that one's gateway and device all the same (nexthop_compat_mode)."""

    @property
    def network(self) -> IPNetwork:
        return IPNetwork((self.dst, self.prefixlen), version=self.version)


def read_route(data: bytes, body: int, end: int) -> RouteInfo | None:
    """A route, or None where it is not one of the main table."""
    family, dst_len, src_len, tos, table, proto, scope, kind, flags = RTMSG.unpack_from(data, body)
    if table != TABLE_MAIN or flags & CLONED or family not in VERSION:
        return None
    found = attributes(data, body + 12, end)
    if 15 in found and u32(found[15]) != TABLE_MAIN:
        return None
    version = VERSION[family]
    via = found.get(5)
    if via is None and 18 in found:
        via = found[18][2:]  # RTA_VIA: the gateway is of the other family
    return RouteInfo(
        version,
        int.from_bytes(found.get(1, b""), "big"),
        dst_len,
        proto,
        scope,
        kind,
        flags,
        U32.unpack(found[4])[0] if 4 in found else 0,
        via,
        U32.unpack(found[6])[0] if 6 in found else 0,
        9 not in found and not tos and not src_len,
        U32.unpack(found[30])[0] if 30 in found else 0,
    )


def route_device(data: bytes, body: int, end: int) -> int:
    """The index of a route's device without decoding the rest, 0 where it names none."""
    at = body + 12
    while at + 4 <= end:
        length, number = _RTA.unpack_from(data, at)
        if number == 4:
            index: int = U32.unpack_from(data, at + 4)[0]
            return index
        if length < 4:
            break
        at += (length + 3) & ~3
    return 0


def only_device(data: bytes, body: int, end: int) -> int:
    """The index of the device by which all next hops of a route leave (two routers on one link), 0 where they leave by several."""
    hops = attributes(data, body + 12, end).get(9, b"")  # RTA_MULTIPATH, of struct rtnexthop each with its attributes
    at, found = 0, set[int]()
    while at + 8 <= len(hops) and (length := U16.unpack_from(hops, at)[0]) >= 8:
        found.add(U32.unpack_from(hops, at + 4)[0])
        at += (length + 3) & ~3
    return found.pop() if len(found) == 1 else 0


def read_answer(data: bytes, body: int, end: int) -> tuple[int, int, IPAddress | None, IPAddress | None]:
    """The answer to ``get_route``: route type, device index, preferred source, gateway."""
    kind: int = RTMSG.unpack_from(data, body)[7]
    found = attributes(data, body + 12, end)
    source, via = found.get(7), found.get(5)
    if via is None and 18 in found:
        via = found[18][2:]
    return kind, u32(found.get(4)), as_address(source) if source else None, as_address(via) if via else None


class NexthopInfo(NamedTuple):
    """A nexthop object; ``via`` as the kernel's bytes. ``plain`` False: a group, a blackhole, an encapsulation, one of an FDB."""

    id: int
    proto: int
    flags: int
    device: int
    via: bytes | None
    plain: bool


def read_nexthop(data: bytes, body: int, end: int) -> NexthopInfo:
    _family, _scope, proto, flags = _NHMSG.unpack_from(data, body)
    found = attributes(data, body + 8, end)
    plain = found.keys().isdisjoint((2, 4, 8, 11))
    return NexthopInfo(u32(found.get(1)), proto, flags, u32(found.get(5)), found.get(6), plain)


class NeighbourInfo(NamedTuple):
    """A neighbour (``family`` AF_INET or AF_INET6) or an FDB entry (AF_BRIDGE)."""

    family: int
    device: int
    state: int
    flags: int
    dst: bytes | None
    mac: bytes | None


def read_neighbour(data: bytes, body: int, end: int) -> NeighbourInfo:
    family, index, state, flags, _kind = _NDMSG.unpack_from(data, body)
    found = attributes(data, body + 12, end)
    return NeighbourInfo(family, index, state, flags, found.get(1), found.get(2))


def as_address(value: bytes) -> IPAddress:
    """An address from the kernel's bytes."""
    return IPAddress(int.from_bytes(value, "big"), 4 if len(value) == 4 else 6)


def u32(value: bytes | None) -> int:
    """A number of an attribute, 0 where there is none."""
    return 0 if value is None or len(value) != 4 else U32.unpack(value)[0]


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")
