"""May the uplink be another one now, what must be asked to know, and how is it said? Pure questions about what was wished for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netaddr import AddrFormatError, IPAddress

from flannelpy.core.backend import Uplink
from flannelpy.core.host_facts import FactsQuery


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

    @property
    def _public(self) -> frozenset[IPAddress]:
        return frozenset(one for one in (self.public_ip, self.public_ipv6) if one is not None)

    @property
    def any_may_fit(self) -> bool:
        """True where any interface may turn out to be the one: by a pattern or an address, not by its name."""
        return bool(self.iface_regex or any(map(_is_address, self.iface)) or (self.by_default and self._public))


def query(wish: Wish, current: Uplink | None) -> FactsQuery:
    """The narrowest facts that the choice needs. The first time, everything where that lets the choice say whose an advertised
    address is.
    """
    everything = wish.any_may_fit or wish.can_reach is not None or (current is None and bool(wish.public_ip or wish.public_ipv6))
    return FactsQuery(None if everything else frozenset(wish.iface), wish.by_default)


def concerns(
    links: Mapping[int, str], default_route: bool, wish: Wish, current: Uplink | None, routed: frozenset[int] | None = None
) -> bool:
    """True where what the kernel has said (``Notice.links``, ``default_route``, ``routed``) can change the choice.

    ``routed`` None: unknown, so that with ``can_reach`` each interface may have taken a route along.
    """
    if current is None:
        return bool(links) or default_route or bool(routed)
    if current.index in links or current.name in links.values():
        return True
    if wish.by_default and default_route:
        return True
    if wish.can_reach is not None and (default_route or (bool(links) if routed is None else wish.can_reach.version in routed)):
        return True
    if wish.any_may_fit and links:
        return not _is_settled(wish, current)
    return any(name in wish.iface for name in links.values())


def _is_settled(wish: Wish, current: Uplink) -> bool:
    """True where the first thing that was wished for is an address that the uplink has: no other interface can take its place."""
    own = {str(one) for one in (current.address, current.address6) if one is not None}
    if wish.iface:
        return _is_address(wish.iface[0]) and str(IPAddress(wish.iface[0])) in own
    if wish.iface_regex:
        return False
    return str(wish.public_ip or wish.public_ipv6) in own


def _is_address(text: str) -> bool:
    try:
        IPAddress(text)
    except (AddrFormatError, ValueError):
        return False
    return True


def describe_change(before: Uplink, after: Uplink) -> str:
    """What is different, in one line: ``eth1's address is 192.168.90.51, it was 192.168.90.1``."""
    return "; ".join(_differences(before, after)) or f"{after.name} was made anew"


def _differences(before: Uplink, after: Uplink) -> Iterator[str]:
    name = after.name
    if before.name != name and before.index == after.index:
        yield f"{before.name} is called {name} now"
    elif before.name != name:
        yield f"it is {name} now, it was {before.name}"
    for version, own, was, public, was_public in (
        (4, after.address, before.address, after.public_ip, before.public_ip),
        (6, after.address6, before.address6, after.public_ipv6, before.public_ipv6),
    ):
        what = "address" if version == 4 or not (after.address or before.address) else "IPv6 address"
        if own != was:
            yield f"{name}'s {what} is {own or 'none'}, it was {was or 'none'}"
        if public != was_public and (public, was_public) != (own, was):
            yield f"peers are told {public or 'none'}, it was {was_public or 'none'}"
    if before.mtu != after.mtu:
        yield f"{name}'s MTU is {after.mtu}, it was {before.mtu}"
