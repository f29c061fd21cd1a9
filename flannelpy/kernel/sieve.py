"""Which of what the kernel says is about something of ours, and what is it as an object? ``core.desired.Scope``, by device index.

Observation and notices ask the same sieve, so that both mean the same by "ours". It is asked for every message on a busy host:
what is foreign falls out on a device index or a protocol number, before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable

from netaddr import IPNetwork

from flannelpy.core.objects import (
    BOOT_PROTOCOL,
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    Link,
    Neighbour,
    Nexthop,
    Route,
    Scope,
    Wireguard,
)
from flannelpy.kernel.drivers import read_detail
from flannelpy.kernel.messages import (
    AF_BRIDGE,
    METRIC6,
    NTF_PROXY,
    NTF_SELF,
    ONLINK,
    PERMANENT,
    ROUTE_KIND_NAMES,
    SCOPE_LINK,
    VERSION,
    AddressInfo,
    LinkInfo,
    NeighbourInfo,
    NexthopInfo,
    RouteInfo,
    as_address,
)
from flannelpy.kernel.wireguard_go import serves

KERNEL_PROTOCOLS = frozenset({2, 9})
"""RTPROT_KERNEL and RTPROT_RA: routes that the kernel makes, and takes away again with their address."""

UNICAST = 1


class Sieve:
    """A scope, and which device indices its names have at the moment."""

    def __init__(self, scope: Scope, name_of: Callable[[int], str]) -> None:
        self.scope = scope
        self._name_of = name_of
        self.links: dict[int, str] = {}
        self.uplink = 0
        self._networks = [(net.version, net.first, net.last) for net in scope.networks]

    def meet(self, name: str, index: int) -> None:
        """The device ``name`` has this index now."""
        if name in self.scope.links:
            self.links[index] = name
        if name == self.scope.uplink:
            self.uplink = index

    def covers(self, version: int, first: int, last: int) -> bool:
        return any(version == ours and low <= first and last <= high for ours, low, high in self._networks)

    def inside(self, info: RouteInfo) -> bool:
        """True where the destination lies inside one of the networks."""
        span = (1 << ((32 if info.version == 4 else 128) - info.prefixlen)) - 1
        return self.covers(info.version, info.dst, info.dst | span)

    def link(self, info: LinkInfo) -> Link | None:
        if info.name not in self.scope.links:
            return None
        if info.kind == "tun" and serves(info.name):
            return Link(info.name, Wireguard.kind, info.mtu, None, info.up, Wireguard())
        mac = None if info.kind == "tun" else info.mac
        return Link(info.name, info.kind, info.mtu, mac, info.up, read_detail(info.kind, info.data, self._name_of))

    def address(self, info: AddressInfo) -> Address | None:
        name = self.links.get(info.device)
        if name is None:
            return None
        if info.version == 4:
            if not self.covers(4, info.value, info.value):
                return None
        elif info.value >> 118 == 0x3FA:  # fe80::/10
            return None
        return Address(IPNetwork((info.value, info.prefixlen), version=info.version), name)

    def neighbour(self, info: NeighbourInfo) -> Neighbour | None:
        """A permanent entry with a MAC; whether it is the FDB's was decided by the caller."""
        name = self.links.get(info.device)
        if name is None or not info.state & PERMANENT or info.flags & NTF_PROXY or not info.mac or info.dst is None:
            return None
        if info.family not in VERSION:
            return None
        return Neighbour(as_address(info.dst), info.mac.hex(":"), name)

    def fdb(self, info: NeighbourInfo) -> FdbEntry | None:
        """A permanent entry of the device itself that says where to send."""
        name = self.links.get(info.device)
        if name is None or not info.state & PERMANENT or not info.mac or info.dst is None:
            return None
        if info.family != AF_BRIDGE or not info.flags & NTF_SELF:
            return None
        return FdbEntry(info.mac.hex(":"), as_address(info.dst), name)

    def nexthop(self, info: NexthopInfo) -> Nexthop | None:
        """One with our mark on a device of ours; others of ours may be another agent's."""
        name = self.links.get(info.device)
        if name is None or info.proto != ROUTE_PROTOCOL or info.via is None or not info.plain:
            return None
        return Nexthop(info.id, as_address(info.via), name, bool(info.flags & ONLINK))

    @staticmethod
    def keyed(info: RouteInfo) -> bool:
        """True for a route that the kernel could not hold beside one of ours (no metric), and for our own blackhole (the last)."""
        ours = info.proto == ROUTE_PROTOCOL and ROUTE_KIND_NAMES.get(info.kind) == "blackhole"
        return ours or info.metric == (0 if info.version == 4 else METRIC6)

    def route(self, info: RouteInfo) -> Route | None:
        """A route that is ours, adopted, or in the way on a device of ours.

        With a metric it is somebody else's: the kernel keeps routes of other metrics beside ours, which has none.
        """
        if not info.plain or not self.keyed(info) or info.kind not in ROUTE_KIND_NAMES:
            return None
        name = self.links.get(info.device)
        if info.proto == ROUTE_PROTOCOL:
            if name is None and not self.inside(info):
                return None
        elif name is not None:
            if info.kind != UNICAST or info.proto in KERNEL_PROTOCOLS:
                return None
        elif (
            info.proto != BOOT_PROTOCOL
            or info.device == 0
            or info.device != self.uplink
            or info.kind != UNICAST
            or not self.inside(info)
        ):
            return None
        return self._as_route(info, name)

    def _as_route(self, info: RouteInfo, name: str | None) -> Route:
        if name is None and info.device and info.kind == UNICAST:
            name = self.scope.uplink if info.device == self.uplink else self._name_of(info.device)
        return as_route(info, name)


def as_route(info: RouteInfo, name: str | None) -> Route:
    """A route of the main table, whoever's; ``name`` is its device's."""
    unicast = info.kind == UNICAST
    return Route(
        info.network,
        None if info.via is None else as_address(info.via),
        name if unicast else None,  # IPv6 says "dev lo" of unreachable
        bool(info.flags & ONLINK),
        ROUTE_KIND_NAMES.get(info.kind, f"type {info.kind}"),
        info.scope == SCOPE_LINK,
        info.proto,
        0 if info.metric == (0 if info.version == 4 else METRIC6) else info.metric,
        info.nhid,
    )
