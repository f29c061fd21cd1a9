"""Which routes and nexthop objects would the kernel take? The kernel's own checks, for the one in memory."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import ROUTE_PROTOCOL, Key, Link, Nexthop, Object, Route
from flannelpy.core.uplink import Interface
from flannelpy.kernel.channel import error
from flannelpy.kernel.fake_lookup import net_of


class Ground:
    """What a route rests on: the devices of the host, the routes and the other objects that there are."""

    def __init__(
        self,
        links: Mapping[str, Link],
        interfaces: Mapping[str, Interface],
        routes: Mapping[Key, Route],
        objects: Mapping[Key, Object],
    ) -> None:
        self._links = links
        self._interfaces = interfaces
        self._routes = routes
        self._objects = objects

    def demand_route(self, route: Route) -> None:
        """Raises KernelError where the kernel would not have it."""
        if route.link_scope and route.dst.version == 6:
            raise KernelError("IPv6 routes have no scope", errno.EINVAL)
        if route.dst.ip != route.dst.network:
            raise error((errno.EINVAL, "Invalid prefix for given prefix length"))
        if route.kind != "unicast":
            return
        if route.nhid:
            if Key("nexthop", str(route.nhid)) not in self._objects:
                raise error((errno.EINVAL, "Nexthop id does not exist"))
            return
        self._demand_way(route.dev, route.via, onlink=route.onlink)

    def demand_nexthop(self, item: Nexthop, *, exclusive: bool) -> None:
        """Raises KernelError where the kernel would not have it; of ours any may be made anew."""
        there = self._objects.get(item.key)
        if exclusive and isinstance(there, Nexthop) and (there.proto, there.dev) != (ROUTE_PROTOCOL, item.dev):
            raise error((errno.EEXIST, ""))
        self._demand_way(item.dev, item.via, onlink=item.onlink)

    def _demand_way(self, dev: str | None, via: IPAddress | None, *, onlink: bool) -> None:
        if dev is not None:
            found = self._links.get(dev) or self._interfaces.get(dev)
            if found is None:
                raise error((errno.ENODEV, ""))
            if not found.up:
                raise error((errno.ENETDOWN, ""))
        if via is not None and not onlink and not self._on_link(via, dev):
            code = errno.ENETUNREACH if via.version == 4 else errno.EHOSTUNREACH
            raise error((code, "Nexthop has invalid gateway" if via.version == 4 else ""))

    def _on_link(self, gateway: IPAddress, dev: str | None) -> bool:
        for interface in self._interfaces.values():
            if dev in (None, interface.name) and any(gateway in net_of(own) for own in interface.addresses):
                return True
        return any(gateway in route.dst for route in self._routes.values() if route.via is None and route.dev == dev)


def carried(routes: Mapping[Key, Route], item: Nexthop) -> dict[Key, Route]:
    """The routes with what those by ``item`` say of gateway and device."""
    return {
        key: Route(route.dst, item.via, item.dev, item.onlink, proto=route.proto, nhid=item.id) if route.nhid == item.id else route
        for key, route in routes.items()
    }


def without(routes: Mapping[Key, Route], numbers: Iterable[int]) -> dict[Key, Route]:
    """The routes without those by nexthop objects of these numbers, which go with them and without a word."""
    gone = set(numbers)
    return {key: route for key, route in routes.items() if route.nhid not in gone}
