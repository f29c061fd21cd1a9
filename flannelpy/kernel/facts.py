"""What is this host, to whoever chooses an uplink? Interfaces with addresses, and default routes: as few of them as were asked for.

An interface by its name and its addresses by its index are two questions and no dump of all, so that a host on which hundreds of
interfaces come and go is asked as cheaply as any other. Where every interface is wanted, a dump that the table moved below is good
enough: each interface in it was there.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.core.host_facts import DefaultRoute, FactsQuery, HostFacts, Interface, InterfaceAddress
from flannelpy.kernel import messages
from flannelpy.kernel.channel import GONE, Channel
from flannelpy.kernel.dump import dump, dump_of_device, dump_routes
from flannelpy.kernel.messages import AF_INET, AF_INET6, as_address

SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_PERMANENT = 0x01, 0x08, 0x20, 0x80

UNNAMED = GONE | {errno.EINVAL, errno.ERANGE}
"""What the kernel says of a name that no interface can have."""

SNAPSHOT = (0.0, 0.0)
"""Tries of a dump whose messages are true one by one: at once, twice."""

Named = tuple[messages.LinkInfo, tuple[str, ...]]


async def read_facts(query: FactsQuery) -> HostFacts:
    """See ``Kernel.facts``."""
    defaults = await _default_routes() if query.default_routes else []
    found: list[Named]
    addresses: list[messages.AddressInfo] = []
    if query.names is None:
        found = await dump(messages.dump_links, _read_named, pauses_s=SNAPSHOT)
        addresses += await dump(messages.dump_addresses, messages.read_address, pauses_s=SNAPSHOT)
    else:
        found = _links(query.names, {route.index for route in defaults if route.index})
        for link, _altnames in found:
            addresses += await _addresses(link.device)
    held: dict[int, list[InterfaceAddress]] = {}
    for info in addresses:
        held.setdefault(info.device, []).append(_interface_address(info))
    interfaces = {
        link.device: Interface(
            link.name, link.device, link.mtu, link.up, tuple(held.get(link.device, ())), link.mac or "", altnames, link.running
        )
        for link, altnames in found
    }
    return HostFacts(tuple(interfaces[index] for index in sorted(interfaces)), tuple(defaults))


def _links(names: Iterable[str], indexes: Iterable[int]) -> list[Named]:
    """Those that are there, each asked for by itself, and told once whatever it is asked for by."""
    found: dict[int, Named] = {}
    with Channel() as channel:
        requests = [messages.get_link_named(channel.reserve(1), name) for name in sorted(names)]
        requests += [messages.get_link(channel.reserve(1), index) for index in sorted(indexes)]
        for request in requests:
            try:
                data, head = channel.get(request)
            except KernelError as reason:
                if reason.code in UNNAMED:
                    continue
                raise
            named = _read_named(data, head.body, head.end)
            found[named[0].device] = named
    return list(found.values())


def _read_named(data: bytes, body: int, end: int) -> Named:
    return messages.read_link(data, body, end), messages.read_altnames(data, body, end)


async def _addresses(index: int) -> list[messages.AddressInfo]:
    found = await dump_of_device(lambda sequence: messages.dump_addresses(sequence, index), messages.read_address)
    return [info for info in found if info.device == index]  # a kernel before 5.0 sends everybody's


async def _default_routes() -> list[DefaultRoute]:
    """In the order of the kernel's dump. IPv4's goes by destination, so that they come first, and the rest need not be read."""
    found = await dump_routes(AF_INET, _read_default, _is_beyond_default)
    found += await dump_routes(AF_INET6, _read_default)
    return [DefaultRoute(route.version, route.device, as_address(route.via) if route.via else None) for route in found]


def _is_beyond_default(data: bytes, body: int, end: int) -> bool:
    info = messages.read_route(data, body, end)
    return info is not None and info.dst != 0


def _read_default(data: bytes, body: int, end: int) -> messages.RouteInfo | None:
    if data[body + 1]:  # prefix length
        return None
    info = messages.read_route(data, body, end)
    if info is None or info.kind != messages.ROUTE_KINDS["unicast"]:
        return None
    return info if info.device else info._replace(device=messages.only_device(data, body, end))


def _interface_address(info: messages.AddressInfo) -> InterfaceAddress:
    return InterfaceAddress(
        IPAddress(info.value, info.version),
        info.prefixlen,
        SCOPES.get(info.scope, str(info.scope)),
        deprecated=bool(info.flags & IFA_F_DEPRECATED),
        permanent=bool(info.flags & IFA_F_PERMANENT),
        temporary=info.version == 6 and bool(info.flags & IFA_F_TEMPORARY),  # the same bit says "secondary" in IPv4
        duplicate=info.version == 6 and bool(info.flags & IFA_F_DADFAILED),
    )
