"""May the uplink be another one now, what is asked of the host to know, and how is it said?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from netaddr import AddrFormatError, IPAddress

from flannelpy.core.backend import Uplink
from flannelpy.core.uplink import FactsQuery, Wish


def query(wish: Wish, current: Uplink | None = None) -> FactsQuery:
    """The least that has to be asked for the choice.

    Everything where an address is advertised and there is no ``current`` uplink yet: the choice says whose that address is.
    """
    public = wish.public_ip is not None or wish.public_ipv6 is not None
    everything = _any_may_fit(wish) or wish.can_reach is not None or (current is None and public)
    return FactsQuery(None if everything else frozenset(wish.iface), wish.by_default)


def concerns(
    links: Mapping[int, str], default_route: bool, wish: Wish, current: Uplink | None, routed: frozenset[int] | None = None
) -> bool:
    """True where the choice may be another one after a change of these interfaces (index -> name), of a default route, or of routes
    of these IP versions (None: unknown).
    """
    if current is None:
        return bool(links) or default_route or bool(routed)
    if current.index in links or current.name in links.values():
        return True
    if default_route and (wish.by_default or wish.can_reach is not None):
        return True
    if wish.can_reach is not None and (bool(links) if routed is None else wish.can_reach.version in routed):
        return True
    if _any_may_fit(wish):
        return bool(links) and not _is_settled(wish, current)
    return any(name in wish.iface for name in links.values())


def _any_may_fit(wish: Wish) -> bool:
    """True where any interface may turn out to be the one: by a pattern or an address, not by its name."""
    public = wish.public_ip is not None or wish.public_ipv6 is not None
    return bool(wish.iface_regex or any(map(_is_address, wish.iface)) or (wish.by_default and public))


def _is_settled(wish: Wish, current: Uplink) -> bool:
    """True where the first thing that was wished for is an address that the uplink has: no other interface can take its place."""
    first = wish.iface[0] if wish.iface else "" if wish.iface_regex else str(wish.public_ip or wish.public_ipv6)
    return _is_address(first) and IPAddress(first) in (current.address, current.address6)


def describe_change(before: Uplink, after: Uplink) -> str:
    """What became of the uplink, in words (``eth1's address is 192.168.90.51, it was 192.168.90.1``); empty where nothing did."""
    return "; ".join(_differences(before, after))


def _differences(before: Uplink, after: Uplink) -> Iterator[str]:
    name = after.name
    if before.name != name:
        yield f"{before.name} is called {name} now" if before.index == after.index else f"it is {name} now, it was {before.name}"
    elif before.index != after.index:
        yield f"{name} was made anew"
    for what, own, was, public, advertised in (
        ("address", after.address, before.address, after.public_ip, before.public_ip),
        ("IPv6 address", after.address6, before.address6, after.public_ipv6, before.public_ipv6),
    ):
        if own != was:
            yield f"{name} has no {what} now, it was {was}" if own is None else f"{name}'s {what} is {own}, it was {was or 'none'}"
        if public != advertised and (public, advertised) != (own, was):
            yield f"{public or 'nothing'} is advertised, it was {advertised or 'nothing'}"
    if before.mtu != after.mtu:
        yield f"{name}'s MTU is {after.mtu}, it was {before.mtu}"


@lru_cache(maxsize=64)
def _is_address(text: str) -> bool:
    try:
        IPAddress(text)
    except (AddrFormatError, ValueError):
        return False
    return True
