"""When is a route carried by a nexthop object, and by which number? Where there are thousands of peers; by its own destination.

The kernel compares a route that comes with each other by way of a gateway on the same device: 10,000 of them take it some 2.4 s,
by nexthop objects 0.3. Fewer need none. Only on devices of ours: on the uplink a nexthop object would go, and its routes with it,
as soon as the cable is pulled, and nothing would say of which agent of this host it is. IPv6 does not compare, and has none.

The number is the destination's first address, as a number: no other route has it, in whichever agent of this host, and each start
comes to the same. Other programs count theirs from 1, or from some multiple of 2**28.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from netaddr import IPAddress

from flannelpy.core.desired import Desired
from flannelpy.core.objects import ROUTE_PROTOCOL, HostState, Key, Nexthop, Object, Route

MANY, FEW = 2_000, 1_500
"""So many peers have nexthop objects; and when they become fewer than the second, they have none."""


def pays(peers: int, *, used: bool) -> bool:
    """Whether so many peers are to have nexthop objects; ``used``: they have."""
    return peers >= (FEW if used else MANY)


def by_nexthops(state: HostState, devices: Container[str | None], taken: Container[int]) -> HostState:
    """The same, but routes by way of a gateway on one of ``devices`` are by nexthop objects; not by numbers that are ``taken``."""
    objects: dict[Key, Object] = {}
    for item in state:
        if isinstance(item, Route) and item.via is not None and item.dev is not None and _fits(item, item.via, devices):
            nexthop = Nexthop(item.dst.first, item.via, item.dev, item.onlink)
            if nexthop.id and nexthop.id not in taken and nexthop.key not in objects:
                objects[nexthop.key] = nexthop
                objects[item.key] = item.carried_by(nexthop.id)
                continue
        objects[item.key] = item
    return HostState(objects)


def without(state: HostState, taken: Container[int]) -> HostState:
    """The same, but no route is by a nexthop object of these numbers."""
    found = list[Object]()
    for item in state:
        if isinstance(item, Route) and item.nhid in taken:
            found.append(item.carried_by(0))
        elif not (isinstance(item, Nexthop) and item.id in taken):
            found.append(item)
    return HostState.from_iterable(found)


def _fits(route: Route, via: IPAddress, devices: Container[str | None]) -> bool:
    if route.dev not in devices or route.dst.version != 4 or via.version != 4:
        return False
    return (route.kind, route.link_scope, route.proto, route.metric) == ("unicast", False, ROUTE_PROTOCOL, 0)


def routes_by(objects: Mapping[Key, Object | None], desired: Desired) -> Iterator[Key]:
    """The routes by those of these that were nexthop objects of ours and are gone, or somebody else's: of them nobody tells."""
    for key, item in objects.items():
        if item is None and key.kind == "nexthop":
            for owner in desired.claimants(key):
                yield from (each.key for each in desired.fragment(owner) if isinstance(each, Route) and str(each.nhid) == key.id)
