"""What is this host, as far as the overlay depends on it? Interfaces with addresses, default routes, an answer about a route.

Values that the kernel fills in (``Kernel.facts``, ``Kernel.route_to``); ``FactsQuery`` says how much of them is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface, as the kernel tells: scope is rtnetlink's (``global``, ``link``, ``host``)."""

    address: IPAddress
    prefixlen: int
    scope: str = "global"
    deprecated: bool = False
    permanent: bool = True
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface; ``mtu`` in bytes, ``mac`` empty where it has none, ``altnames`` other names for it (ip-link(8))."""

    name: str
    index: int
    mtu: int
    up: bool = True
    addresses: tuple[InterfaceAddress, ...] = ()
    mac: str = ""
    altnames: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.altnames)

    def has(self, address: IPAddress) -> bool:
        return any(held.address == address for held in self.addresses)


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table, in the order of the kernel's dump; ``index`` 0 for a multipath route."""

    version: int
    index: int


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Interfaces in the kernel's index order, and the default routes."""

    interfaces: tuple[Interface, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class FactsQuery:
    """How much is asked for. ``names``: only these interfaces, by name or altname, and one that is not there is left out; None is
    every interface. ``default_routes``: those, and the interfaces that they leave by.
    """

    names: frozenset[str] | None = None
    default_routes: bool = True


EVERYTHING = FactsQuery()


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """How the kernel would send to an address: the device, its index, the source it would use, the gateway if any."""

    dev: str
    index: int
    source: IPAddress | None = None
    via: IPAddress | None = None


def host_networks(
    facts: HostFacts, ours: frozenset[str], exclude_bridge_with: IPNetwork | None
) -> tuple[tuple[IPNetwork, str], ...]:
    """The networks that this host's addresses lie in, each with its interface: whoever were leased one would cut the host off.

    Without those of our own devices, loopback, IPv6 link-local, and the bridge that was made for our own subnet.
    """
    found = []
    for interface in facts.interfaces:
        for held in interface.addresses:
            network = IPNetwork((int(held.address), held.prefixlen), version=held.address.version).cidr
            local = held.address.is_loopback() or (network.version == 6 and held.address.is_link_local())
            bridge = exclude_bridge_with is not None and network in exclude_bridge_with
            if interface.name not in ours and not local and not bridge:
                found.append((network, interface.name))
    return tuple(found)
