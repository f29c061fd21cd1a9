"""Which interface carries the overlay, and with which address? Chosen from facts handed in; the reasons are kept.

Source: flannel-compat 8. ``--public-ip`` alone takes the interface that has this address, as flannel does; where none has it
(behind NAT), and beside other options, it is only advertised. An address stays the uplink's for as long as it is there,
whichever comes first by then. Our own devices and addresses inside the overlay are never taken. An interface that is down is, as
flannel takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.backend import Uplink
from flannelpy.core.errors import NoUplinkError
from flannelpy.core.model import Family
from flannelpy.core.re2 import compile_re2


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
    """A network interface; ``mtu`` in bytes."""

    name: str
    index: int
    mtu: int
    up: bool = True
    addresses: tuple[InterfaceAddress, ...] = ()
    mac: str = ""
    altnames: tuple[str, ...] = ()


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
    """What of a host is asked for: the interfaces with these names (None: all), and those that default routes leave by."""

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


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for: interfaces by name or address, by pattern, by whom they reach; addresses to advertise."""

    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    can_reach: IPAddress | None = None
    public_ip: IPAddress | None = None
    public_ipv6: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The uplink, and how it came to be: one line for each candidate that fell out, the last for the one that won."""

    uplink: Uplink
    reasons: tuple[str, ...]


def choose(
    facts: HostFacts,
    wish: Wish,
    families: Sequence[Family],
    route_answers: Mapping[IPAddress, RouteAnswer],
    prefer: Uplink | None = None,
    networks: Sequence[IPNetwork] = (),
    ours: Container[str] = frozenset(),
) -> Choice:
    """The first candidate that fits, in the order: ``iface``, ``iface_regex``, ``can_reach``; with none of them the default route.

    ``prefer``: the uplink so far; its addresses are kept while its interface has them. ``networks`` are the overlay's, ``ours`` the
    names of our own devices: neither is ever an uplink's. Raises NoUplinkError: one line that lists the candidates and why each
    fell out.
    """
    host = _Host(_without_overlay(facts, networks, ours), tuple(families), route_answers, prefer)
    fell_out: list[str] = []
    for name, look_up in _candidates(host, wish):
        try:
            found = look_up()
            uplink = host.complete(found, wish)
        except _UnfitError as error:
            fell_out.append(f"{name}: {error}")
            continue
        return Choice(uplink, (*fell_out, f"{name}: {_describe(uplink, found.interface)}"))
    raise NoUplinkError(f"no interface fits; {'; '.join(fell_out)}; there is {_inventory(host.interfaces)}")


# ------------------------------------------------------------------------------------------------------------- candidates


class _UnfitError(Exception):
    """Why a candidate fell out."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An interface, and the addresses of it that the look-up itself settled."""

    interface: Interface
    addresses: Mapping[int, IPAddress] = field(default_factory=dict)


def _candidates(host: _Host, wish: Wish) -> Iterator[tuple[str, Callable[[], _Found]]]:
    for text in wish.iface:
        yield f"--iface {text}", partial(host.by_name_or_address, text)
    for pattern in wish.iface_regex:
        yield f"--iface-regex {pattern}", partial(host.by_pattern, pattern)
    if wish.can_reach is not None:
        yield f"--iface-can-reach {wish.can_reach}", partial(host.by_reach, wish.can_reach)
    if not (wish.iface or wish.iface_regex or wish.can_reach):
        for option, address in (("--public-ip", wish.public_ip), ("--public-ipv6", wish.public_ipv6)):
            if address is not None and host.has(address):
                yield f"{option} {address}", partial(host.by_name_or_address, str(address))
        yield "default route", host.by_default_route


@dataclass(frozen=True, slots=True)
class _Host:
    """The facts, and the ways to look a candidate up in them."""

    facts: HostFacts
    families: tuple[Family, ...]
    route_answers: Mapping[IPAddress, RouteAnswer]
    prefer: Uplink | None = None

    @property
    def interfaces(self) -> list[Interface]:
        return sorted(self.facts.interfaces, key=lambda interface: interface.index)

    def has(self, address: IPAddress) -> bool:
        """True where an interface has this address."""
        return any(held.address == address for interface in self.interfaces for held in interface.addresses)

    def by_name_or_address(self, text: str) -> _Found:
        try:
            address = IPAddress(text)
        except (AddrFormatError, ValueError):
            return _Found(self._where(lambda interface: text in (interface.name, *interface.altnames), _no_such(text)))
        if address.version not in self.families:
            raise _UnfitError(f"the network has no IPv{address.version}")
        owner = self._where(
            lambda interface: any(held.address == address for held in interface.addresses), "no interface has this address"
        )
        return _Found(owner, {address.version: address})

    def by_pattern(self, pattern: str) -> _Found:
        """Addresses first, then names: an address that matches on a later interface wins over a name on an earlier one."""
        matches = compile_re2(pattern).search
        for interface in self.interfaces:
            matched: dict[int, IPAddress] = {}
            for family in self.families:
                matched.update((family, held.address) for held in _usable(interface, family)[::-1] if matches(str(held.address)))
            if len(matched) == len(self.families):
                return _Found(interface, matched)

        def named(interface: Interface) -> bool:
            return any(map(matches, (interface.name, *interface.altnames)))

        return _Found(self._where(named, "matches no address and no name"))

    def by_reach(self, target: IPAddress) -> _Found:
        answer = self.route_answers.get(target)
        if answer is None:
            raise _UnfitError("the kernel has no route to it")
        interface = self._where(lambda interface: interface.index == answer.index, f"interface {answer.dev} is not there")
        source = answer.source
        return _Found(interface, {source.version: source} if source is not None and source.version in self.families else {})

    def by_default_route(self) -> _Found:
        """The first default route of each family; two families must leave by one interface."""
        indexes = {}
        for family in self.families:
            route = next((route for route in self.facts.default_routes if route.version == family), None)
            if route is None:
                raise _UnfitError(f"there is none for IPv{family}; --iface names an interface")
            if not route.index:
                raise _UnfitError(f"the one for IPv{family} has several next hops; --iface names an interface")
            indexes[family] = route.index
        if len(set(indexes.values())) > 1:
            raise _UnfitError("those for IPv4 and IPv6 leave by different interfaces; --iface names one")
        index = indexes[self.families[0]]
        return _Found(self._where(lambda interface: interface.index == index, f"its interface (index {index}) is not there"))

    def complete(self, found: _Found, wish: Wish) -> Uplink:
        """Fill in what the look-up left open: the best address of each family that is missing."""
        interface, addresses = found.interface, dict(found.addresses)
        for family in self.families:
            if family not in addresses:
                usable = _usable(interface, family)
                if not usable:
                    raise _UnfitError(f"{interface.name} has no usable IPv{family} address")
                before = None if self.prefer is None else self.prefer.address if family == 4 else self.prefer.address6
                kept = [held.address for held in usable if held.address == before]
                addresses[family] = (kept or [usable[0].address])[0]
        if not interface.mtu:
            raise _UnfitError(f"{interface.name} has MTU 0")
        return Uplink(
            name=interface.name,
            index=interface.index,
            mtu=interface.mtu,
            address=addresses.get(4),
            address6=addresses.get(6),
            public_ip=(wish.public_ip or addresses.get(4)) if 4 in self.families else None,
            public_ipv6=(wish.public_ipv6 or addresses.get(6)) if 6 in self.families else None,
        )

    def _where(self, fits: Callable[[Interface], bool], otherwise: str) -> Interface:
        for interface in self.interfaces:
            if fits(interface):
                return interface
        raise _UnfitError(otherwise)


def _usable(interface: Interface, family: Family) -> list[InterfaceAddress]:
    """Addresses that packets can leave with, the best first: global, permanent, not temporary (a stable sort)."""
    fitting = [
        held for held in interface.addresses if held.address.version == family and not held.deprecated and _is_unicast(held.address)
    ]

    def rank(held: InterfaceAddress) -> tuple[bool, bool, bool, bool]:
        # A whole-length prefix beside others is a virtual address that comes and goes (keepalived, kube-vip).
        virtual = held.prefixlen == (32 if family == 4 else 128)
        return held.address.is_link_local(), not held.permanent, held.temporary, virtual

    return sorted(fitting, key=rank)


def _is_unicast(address: IPAddress) -> bool:
    """Global or link-local unicast; private ranges are global in this sense."""
    broadcast = address.version == 4 and int(address) == 2**32 - 1
    return bool(int(address) and not address.is_loopback() and not address.is_multicast() and not broadcast)


def _inventory(interfaces: Sequence[Interface]) -> str:
    shown = (f"{one.name} ({', '.join(str(held.address) for held in one.addresses) or 'no address'})" for one in interfaces)
    return ", ".join(shown) or "no interface at all"


def _describe(uplink: Uplink, interface: Interface) -> str:
    addresses = " and ".join(str(address) for address in (uplink.address, uplink.address6) if address is not None)
    told = [
        str(public) for public, own in ((uplink.public_ip, uplink.address), (uplink.public_ipv6, uplink.address6)) if public != own
    ]
    return (
        f"{uplink.name}, {addresses}, MTU {uplink.mtu}"
        + (f", peers are told {' and '.join(told)}" if told else "")
        + ("" if interface.up else "; it is down")
    )


def _no_such(name: str) -> str:
    """Why an interface is not found by this name."""
    base, at, _peer = name.partition("@")
    return f"no such interface; ip(8) shows {name} for the interface {base}" if at else "no such interface"


def _without_overlay(facts: HostFacts, networks: Sequence[IPNetwork], ours: Container[str]) -> HostFacts:
    """The facts without our own devices, and without addresses inside the overlay (a bridge has one)."""

    def outside(held: InterfaceAddress) -> bool:
        value = int(held.address)
        return not any(net.version == held.address.version and net.first <= value <= net.last for net in networks)

    kept = (
        replace(interface, addresses=tuple(held for held in interface.addresses if outside(held)))
        for interface in facts.interfaces
        if interface.name not in ours
    )
    return HostFacts(tuple(kept), facts.default_routes)
