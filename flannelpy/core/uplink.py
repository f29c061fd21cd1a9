"""Which interface carries the overlay, and with which address? Chosen from facts handed in; the reasons are kept.

Source: flannel-compat 8. What is different: ``--public-ip`` and ``--public-ipv6`` that no interface has (behind NAT) are advertised
beside the default route's interface, where flannel gives up; an address that is in use is kept while it is there; addresses inside
the overlay's own networks, and those of a single host (a virtual one that moves between hosts), come last. An interface that is
down is taken, as flannel takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.backend import Uplink
from flannelpy.core.errors import NoUplinkError
from flannelpy.core.host_facts import (
    EVERYTHING,
    DefaultRoute,
    FactsQuery,
    HostFacts,
    Interface,
    InterfaceAddress,
    RouteAnswer,
)
from flannelpy.core.model import Family
from flannelpy.core.re2 import compile_re2

__all__ = [
    "EVERYTHING",
    "Choice",
    "DefaultRoute",
    "FactsQuery",
    "HostFacts",
    "Interface",
    "InterfaceAddress",
    "RouteAnswer",
    "Wish",
    "choose",
]


LARGEST_MTU = 65_535
"""In bytes: an IP packet's length field says no more. Loopback's MTU is one more, and nothing that is made of it can be used."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for: interfaces by name or address, by pattern, by whom they reach; addresses to advertise."""

    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    can_reach: IPAddress | None = None
    public_ip: IPAddress | None = None
    public_ipv6: IPAddress | None = None

    @property
    def by_default(self) -> bool:
        """True where no interface was asked for."""
        return not (self.iface or self.iface_regex or self.can_reach is not None)


@dataclass(frozen=True, slots=True)
class Choice:
    """The uplink, and how it came to be: one line for each candidate that fell out, the last for the one that won.

    ``lacks``: what one of its two IP versions wants, of which it still has what was in use; empty where nothing.
    """

    uplink: Uplink
    reasons: tuple[str, ...]
    lacks: str = ""


def choose(
    facts: HostFacts,
    wish: Wish,
    families: Sequence[Family],
    route_answers: Mapping[IPAddress, RouteAnswer],
    prefer: Uplink | None = None,
    networks: Sequence[IPNetwork] = (),
    ours: Container[str] = frozenset(),
) -> Choice:
    """The first candidate that fits, in the order: ``iface``, ``iface_regex``, ``can_reach``; with none of them the interface that
    has ``public_ip`` (or ``public_ipv6``), then the default route.

    The address that ``prefer`` has is kept while its interface has it, but for a makeshift (link-local, deprecated); a link-local
    one never takes its place, and where one of two families has none by now, it is held for that, if no other candidate has both.
    Devices in ``ours`` are never taken; an address inside ``networks`` (the overlay's) only where an interface was not found by a
    pattern, and has no other.
    Raises NoUplinkError: one line that lists the candidates and why each fell out.
    """
    host = _Host(facts, tuple(families), route_answers, prefer, tuple(networks), ours)
    fell_out, halves = list[str](), list[Choice]()
    for name, look_up in _candidates(host, wish):
        try:
            found = look_up()
            uplink, lacking = host.complete(found, wish)
        except _UnfitError as error:
            fell_out.append(f"{name}: {error}")
            continue
        reasons, lacks = (*fell_out, f"{name}: {host.describe(uplink, found.interface)}"), f"{name}: {'; '.join(lacking)}"
        if not lacking:
            return Choice(uplink, reasons)
        fell_out.append(lacks)
        halves.append(Choice(uplink, reasons, lacks))
    if halves:  # what is held is an address of the interface in use, and of no other as long as that is there
        return next((one for one in halves if prefer and one.uplink.name == prefer.name), halves[0])
    raise NoUplinkError(f"no interface fits; {'; '.join(fell_out)}; there is {_inventory(host.interfaces)}")


# ------------------------------------------------------------------------------------------------------------- candidates


class _UnfitError(Exception):
    """Why a candidate fell out."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An interface, and the addresses of it that the look-up itself settled. ``strict``: none inside the overlay will do;
    ``lacking``: what one IP version wants, and does without as long as it had it.
    """

    interface: Interface
    addresses: Mapping[int, IPAddress] = field(default_factory=dict)
    strict: bool = False
    lacking: tuple[str, ...] = ()


def _candidates(host: _Host, wish: Wish) -> Iterator[tuple[str, Callable[[], _Found]]]:
    for text in wish.iface:
        yield f"--iface {text}", partial(host.by_name_or_address, text)
    for pattern in wish.iface_regex:
        yield f"--iface-regex {pattern}", partial(host.by_pattern, pattern)
    if wish.can_reach is not None:
        yield f"--iface-can-reach {wish.can_reach}", partial(host.by_reach, wish.can_reach)
    if wish.by_default:
        for address, flag in ((wish.public_ip, "--public-ip"), (wish.public_ipv6, "--public-ipv6")):
            if address is not None and address.version in host.families:
                yield f"{flag} {address}", partial(host.by_public_address, address, wish)
        yield "default route", host.by_default_route


@dataclass(frozen=True, slots=True)
class _Host:
    """The facts, and the ways to look a candidate up in them."""

    facts: HostFacts
    families: tuple[Family, ...]
    route_answers: Mapping[IPAddress, RouteAnswer]
    prefer: Uplink | None
    networks: tuple[IPNetwork, ...]
    ours: Container[str]

    @property
    def interfaces(self) -> list[Interface]:
        """Those that may be taken, in the kernel's order."""
        theirs = (interface for interface in self.facts.interfaces if interface.name not in self.ours)
        return sorted(theirs, key=lambda interface: interface.index)

    def by_name_or_address(self, text: str) -> _Found:
        try:
            address = IPAddress(text)
        except (AddrFormatError, ValueError):
            return _Found(self._where(lambda interface: text in interface.names, self._no_such(text)))
        if address.version not in self.families:
            raise _UnfitError(f"the network has no IPv{address.version}")
        return _Found(
            self._where(lambda interface: interface.has(address), "no interface has this address"), {address.version: address}
        )

    def _no_such(self, text: str) -> str:
        if text in self.ours:
            return "it is one of our own devices"
        name, at, _peer = text.partition("@")
        if at and any(name in interface.names for interface in self.facts.interfaces):
            return f"no such interface; its name is {name}, what follows is how ip(8) shows what it is connected to"
        return "no such interface"

    def by_pattern(self, pattern: str) -> _Found:
        """Addresses first, then names: an address that matches on a later interface wins over a name on an earlier one.

        Where several interfaces match, the one that has the address in use stays.
        """
        matches = compile_re2(pattern).search
        found = []
        for interface in self.interfaces:
            matched: dict[int, IPAddress] = {}
            for family in self.families:
                held = [one for one in self._usable(interface, family, strict=True) if matches(str(one.address))]
                if held:
                    matched[family] = self._best(held)
            if len(matched) == len(self.families):
                found.append(_Found(interface, matched, strict=True))
        if not found:
            named = [one for one in self.interfaces if any(matches(name) for name in one.names)]
            found = [_Found(interface, strict=True) for interface in named]
        if not found:
            raise _UnfitError("matches no address and no name")
        return next((one for one in found if self._in_use(one.interface)), found[0])

    def by_reach(self, target: IPAddress) -> _Found:
        answer = self.route_answers.get(target)
        if answer is None:
            raise _UnfitError("the kernel has no route to it")
        interface = self._where(lambda interface: interface.index == answer.index, f"interface {answer.dev} is not there")
        source = answer.source
        if source is None or source.version not in self.families:
            return _Found(interface)
        if any(held.address == source and held.temporary for held in interface.addresses):
            return _Found(interface)  # what a program sends from for a day (RFC 8981) is none to be found by
        return _Found(interface, {source.version: source})

    def by_public_address(self, address: IPAddress, wish: Wish) -> _Found:
        """The interface that has the address that peers are told, with that address as source, as flannel takes it."""
        owner = self._where(lambda interface: interface.has(address), "no interface has it; it is only told to the peers")
        if owner.loopback:
            raise _UnfitError(f"it is {owner.name}'s, by which nothing leaves; it is only told to the peers")
        told = (one for one in (wish.public_ip, wish.public_ipv6) if one is not None and one.version in self.families)
        return _Found(owner, {one.version: one for one in told if owner.has(one)})

    def by_default_route(self) -> _Found:
        """The first default route of each family; two families must leave by one interface."""
        indexes, lacking = set(), list[str]()
        for family in self.families:
            route = next((route for route in self.facts.default_routes if route.version == family), None)
            if route is not None and route.index:
                indexes.add(route.index)
                continue
            what = f"there is none for IPv{family}" if route is None else f"the one for IPv{family} has several next hops"
            lacking.append(f"{what}; --iface names an interface")
            if self._before(family) is None:
                raise _UnfitError(lacking[-1])
        if not indexes:
            raise _UnfitError(lacking[0])
        if len(indexes) > 1:
            raise _UnfitError("those for IPv4 and IPv6 leave by different interfaces; --iface names one")
        (index,) = indexes
        interface = self._where(lambda interface: interface.index == index, f"its interface (index {index}) is not there")
        return _Found(interface, lacking=tuple(lacking))

    def _where(self, fits: Callable[[Interface], bool], otherwise: str) -> Interface:
        for interface in self.interfaces:
            if fits(interface):
                return interface
        raise _UnfitError(otherwise)

    # ----------------------------------------------------------------------------------------------------- addresses

    def complete(self, found: _Found, wish: Wish) -> tuple[Uplink, list[str]]:
        """Fill in what the look-up left open: the best address of each family that is missing. Of two families one may keep what it
        had, so that the other is followed: what it lacks.
        """
        interface, addresses, lacking = found.interface, dict(found.addresses), list(found.lacking)
        held = 0
        for family in self.families:
            if family not in addresses:
                try:
                    addresses[family] = self._address(interface, family, found.strict)
                except _UnfitError as error:
                    before, held = self._before(family), held + 1
                    if before is None or held == len(self.families):
                        raise
                    addresses[family] = before
                    lacking.append(str(error))
        if not interface.mtu:
            raise _UnfitError(f"{interface.name} has MTU 0")
        uplink = Uplink(
            name=interface.name,
            index=interface.index,
            mtu=min(interface.mtu, LARGEST_MTU),
            address=addresses.get(4),
            address6=addresses.get(6),
            public_ip=(wish.public_ip or addresses.get(4)) if 4 in self.families else None,
            public_ipv6=(wish.public_ipv6 or addresses.get(6)) if 6 in self.families else None,
        )
        return uplink, lacking

    def _address(self, interface: Interface, family: Family, strict: bool) -> IPAddress:
        usable = self._usable(interface, family, strict)
        if not usable:
            outside = " outside the overlay's networks" if self._usable(interface, family, strict=False) else ""
            raise _UnfitError(f"{interface.name} has no usable IPv{family} address{outside}{_taken(interface, family)}")
        best, before = self._best(usable), self._before(family)
        if best.is_link_local() and before is not None and not before.is_link_local():  # the other comes back
            raise _UnfitError(f"{interface.name} has only {best}, link-local, where {before} is in use{_taken(interface, family)}")
        return best

    def _before(self, family: Family) -> IPAddress | None:
        """The address of this family that is in use."""
        return next((one for one in self._preferred if one is not None and one.version == family), None)

    def _usable(self, interface: Interface, family: Family, strict: bool) -> list[InterfaceAddress]:
        """Addresses that packets can leave with, the best first: global, outside the overlay, not deprecated, with neighbours,
        permanent, not temporary (a stable sort)."""
        fitting = [
            held
            for held in interface.addresses
            if held.address.version == family
            and not held.duplicate
            and _is_unicast(held.address)
            and not (strict and self._is_inside(held.address))
        ]
        return sorted(
            fitting,
            key=lambda held: (
                self._makeshift(held),
                held.prefixlen == (32 if family == 4 else 128),
                not held.permanent,
                held.temporary,
            ),
        )

    def _best(self, usable: Sequence[InterfaceAddress]) -> IPAddress:
        """The one in use, else the first; but that one, too, where the one in use is a makeshift beside it."""
        in_use = next((held for held in usable if held.address in self._preferred), None)
        if in_use is None or self._makeshift(in_use) > self._makeshift(usable[0]):
            return usable[0].address
        return in_use.address

    def _makeshift(self, held: InterfaceAddress) -> tuple[bool, bool, bool]:
        """What an address is only taken for want of a better one for; the worst first."""
        return held.address.is_link_local(), self._is_inside(held.address), held.deprecated

    @property
    def _preferred(self) -> tuple[IPAddress | None, ...]:
        return () if self.prefer is None else (self.prefer.address, self.prefer.address6)

    def _in_use(self, interface: Interface) -> bool:
        return any(held.address in self._preferred for held in interface.addresses)

    def _is_inside(self, address: IPAddress) -> bool:
        return any(address in network for network in self.networks)

    # --------------------------------------------------------------------------------------------------------- words

    def describe(self, uplink: Uplink, interface: Interface) -> str:
        """What was chosen, with whatever is odd about it."""
        own = [address for address in (uplink.address, uplink.address6) if address is not None]
        told = [
            self._told(public)
            for public, address in ((uplink.public_ip, uplink.address), (uplink.public_ipv6, uplink.address6))
            if public is not None and public != address
        ]
        inside = [f"{address} lies inside the overlay's own network" for address in own if self._is_inside(address)]
        odd = [*inside, *([] if interface.up else ["it is down"])]
        return (
            f"{uplink.name}, {' and '.join(map(str, own))}, MTU {uplink.mtu}"
            + (f", peers are told {' and '.join(told)}" if told else "")
            + "".join(f"; {words}" for words in odd)
        )

    def _told(self, public: IPAddress) -> str:
        owner = next((interface.name for interface in self.facts.interfaces if interface.has(public)), None)
        return str(public) if owner is None else f"{public} (an address of {owner} on this host)"


def _is_unicast(address: IPAddress) -> bool:
    """Global or link-local unicast; private ranges are global in this sense."""
    broadcast = address.version == 4 and int(address) == 2**32 - 1
    return bool(int(address) and not address.is_loopback() and not address.is_multicast() and not broadcast)


def _taken(interface: Interface, family: Family) -> str:
    """Which of its addresses another host has, as words behind what there is not."""
    taken = [str(held.address) for held in interface.addresses if held.duplicate and held.address.version == family]
    return f"; another host on its link has {' and '.join(taken)}" if taken else ""


def _inventory(interfaces: Sequence[Interface]) -> str:
    shown = (f"{one.name} ({', '.join(str(held.address) for held in one.addresses) or 'no address'})" for one in interfaces)
    return ", ".join(shown) or "no interface at all"
