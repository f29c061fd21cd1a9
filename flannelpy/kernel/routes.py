"""Which routes of the main table lie inside some networks, whoever's they are? A dump, for a person who asks once."""

from __future__ import annotations

from collections.abc import Iterable

from netaddr import IPNetwork

from flannelpy.core.objects import Route
from flannelpy.kernel.devices import name_of
from flannelpy.kernel.dump import dump_routes
from flannelpy.kernel.messages import AF_INET, AF_INET6, read_route
from flannelpy.kernel.sieve import as_route


async def routes_inside(networks: Iterable[IPNetwork]) -> list[Route]:
    """In the kernel's order. Raises KernelError."""
    wanted = [(net.version, int(net.first), int(net.last)) for net in networks]

    def read(data: bytes, body: int, end: int) -> Route | None:
        info = read_route(data, body, end)
        if info is None or not any(info.version == version and first <= info.dst <= last for version, first, last in wanted):
            return None
        return as_route(info, name_of(info.device) if info.device else None)

    return [route for family in (AF_INET, AF_INET6) for route in await dump_routes(family, read)]
