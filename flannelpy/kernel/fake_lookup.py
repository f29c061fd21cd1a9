"""Where does the kernel in memory send a packet? By the longest route that covers it: another's, ours, a link's."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from netaddr import IPAddress, IPNetwork

from flannelpy.core.host_facts import Interface, InterfaceAddress
from flannelpy.core.lookup import MAIN, Found, Lookup
from flannelpy.core.objects import Route
from flannelpy.core.policy_rule import PolicyRule


def net_of(own: InterfaceAddress) -> IPNetwork:
    """The network that an address of an interface lies in."""
    return IPNetwork(f"{own.address}/{own.prefixlen}")


_REFUSED = {"blackhole": errno.EINVAL, "unreachable": errno.ENETUNREACH, "prohibit": errno.EACCES}


def ruled_by(rules: Iterable[PolicyRule], lookup: Lookup, interfaces: Iterable[Interface]) -> PolicyRule | None:
    """The first that takes it; a rule about where packets arrive decides by itself, of others ``detours`` says what follows."""
    arrives = next((one.name for one in interfaces if one.index == lookup.arrives), "")
    return next((rule for rule in rules if rule.takes(lookup.dst, lookup.source, arrives)), None)


def refused_by(rule: PolicyRule | None) -> Found | None:
    """The answer where a rule about where packets arrive refuses them."""
    return Found(code=_REFUSED[rule.action]) if rule is not None and rule.refuses and rule.arrives else None


def looked_up(
    lookups: Iterable[Lookup],
    others: Mapping[IPNetwork, Found],
    routes: Iterable[Route],
    interfaces: Iterable[Interface],
    settings: Mapping[str, str],
) -> list[Found]:
    """An answer each. ``others``: routes that are not ours; ``settings``: a reverse path filter of an interface may be strict."""
    interfaces = list(interfaces)
    found: dict[IPNetwork, Found] = {}
    for interface in interfaces:
        if interface.up:
            found |= {net_of(own).cidr: Found(interface.name, None, net_of(own).cidr) for own in interface.addresses}
    found |= {route.dst: Found(route.dev or "", route.via, route.dst) for route in routes if route.kind == "unicast"}
    found |= others
    names = {interface.index: interface.name for interface in interfaces}
    return [_answer(each, found, names, settings) for each in lookups]


def _answer(lookup: Lookup, found: Mapping[IPNetwork, Found], names: Mapping[int, str], settings: Mapping[str, str]) -> Found:
    name = names.get(lookup.arrives, "")
    strict = settings.get(f"net/ipv4/conf/{name}/rp_filter") == "1"
    if strict and lookup.source is not None and _longest(lookup.source, found).dev != name:
        return Found(code=errno.EXDEV)
    return _longest(lookup.dst, found)


def _longest(address: IPAddress, found: Mapping[IPNetwork, Found]) -> Found:
    covering = [net for net in found if net.version == address.version and address in net]
    best = max(covering, key=lambda net: (found[net].table != MAIN, net.prefixlen), default=None)  # a rule asks other tables first
    return Found(code=errno.ENETUNREACH) if best is None else found[best]
