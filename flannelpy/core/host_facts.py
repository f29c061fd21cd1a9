"""What is this host, as far as the overlay depends on it? Interfaces with addresses, default routes, an answer about a route.

Values that the kernel fills in (``Kernel.facts``, ``Kernel.route_to``); ``FactsQuery`` says how much of them is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from netaddr import IPAddress


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface, as the kernel tells: scope is rtnetlink's (``global``, ``link``, ``host``).

    ``duplicate``: another host of the link has it, so that the kernel does not use it (RFC 4862 section 5.4).
    """

    address: IPAddress
    prefixlen: int
    scope: str = "global"
    deprecated: bool = False
    permanent: bool = True
    temporary: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface; ``mtu`` in bytes, ``mac`` empty where it has none, ``altnames`` other names for it (ip-link(8)).

    ``running``: up, and with a carrier, or of a kind that has none; a bridge, with a port that has one.
    """

    name: str
    index: int
    mtu: int
    up: bool = True
    addresses: tuple[InterfaceAddress, ...] = ()
    mac: str = ""
    altnames: tuple[str, ...] = ()
    running: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.altnames)

    @property
    def loopback(self) -> bool:
        """Is it the one by which nothing leaves the host? Its other addresses are reached by whatever link a route says."""
        return any(held.address.is_loopback() for held in self.addresses)

    def has(self, address: IPAddress) -> bool:
        return any(held.address == address and not held.duplicate for held in self.addresses)


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table, in the order of the kernel's dump; ``index`` 0 where it leaves by several links."""

    version: int
    index: int
    via: IPAddress | None = None


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
