"""Is the uplink another one now? What to ask of the host, when to ask it, and how to say what became of it."""

from __future__ import annotations

from collections.abc import Container, Mapping

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.backend import Uplink
from flannelpy.core.uplink import EVERYTHING, FactsQuery, HostFacts, Wish


def query(wish: Wish) -> FactsQuery:
    """The least that has to be asked for the choice."""
    if wish.iface_regex or wish.can_reach is not None or any(_is_address(text) for text in wish.iface):
        return FactsQuery(default_routes=False)
    if wish.iface:
        return FactsQuery(frozenset(wish.iface), default_routes=False)
    if wish.public_ip is not None or wish.public_ipv6 is not None:
        return EVERYTHING
    return FactsQuery(frozenset())


def concerns(links: Mapping[int, str], default_route: bool, wish: Wish, current: Uplink | None) -> bool:
    """True where the choice may be another one after a change of these interfaces (index -> name) or of a default route."""
    if current is not None and (current.index in links or current.name in links.values()):
        return True
    if wish.can_reach is not None and default_route:
        return True
    needed = query(wish)
    if needed.names is None:
        return bool(links) or (needed.default_routes and default_route)
    return (needed.default_routes and (default_route or (bool(links) and current is None))) or any(
        name in needed.names for name in links.values()
    )


def describe_change(before: Uplink, after: Uplink) -> str:
    """What became of the uplink, in words; empty where nothing did."""
    said = []
    if before.name != after.name:
        same = before.index == after.index
        said.append(f"{before.name} is called {after.name} now" if same else f"it is {after.name} now, it was {before.name}")
    elif before.index != after.index:
        said.append(f"{after.name} was made anew")
    for what, old, new in (
        ("address", before.address, after.address),
        ("IPv6 address", before.address6, after.address6),
        ("MTU", before.mtu, after.mtu),
    ):
        if old != new:
            said.append(f"{after.name}'s {what} is {new}, it was {old}")
    for old, new, own in (
        (before.public_ip, after.public_ip, after.address),
        (before.public_ipv6, after.public_ipv6, after.address6),
    ):
        if old != new and new != own:
            said.append(f"{new} is advertised, it was {old}")
    return "; ".join(said)


def host_networks(facts: HostFacts, ours: Container[str], bridge: IPNetwork | None) -> tuple[tuple[IPNetwork, str], ...]:
    """The networks that the host's interfaces are in, and which; without our own devices, and the bridge of our own subnet."""
    found = []
    for interface in facts.interfaces:
        for held in interface.addresses if interface.name not in ours else ():
            net = IPNetwork((int(held.address), held.prefixlen), version=held.address.version).cidr
            plain = not held.address.is_loopback() and not held.address.is_link_local()
            if plain and not (bridge is not None and bridge.version == net.version and held.address in bridge):
                found.append((net, interface.name))
    return tuple(found)


def _is_address(text: str) -> bool:
    try:
        IPAddress(text)
    except (AddrFormatError, ValueError):
        return False
    return True
