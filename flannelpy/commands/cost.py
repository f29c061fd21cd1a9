"""What does a change of the network config cost, and does the Network leave this host's own networks alone? Asked before a write.

A cost is a line that an operator wants to have read before: packets that are lost, subnets that become others, a Docker that has to
be restarted. What the agents follow without a lost packet is none, or, where there is something to know of it, a harmless one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.commands.netconfig import Examined
from flannelpy.core.config import NetworkConfig, Pool
from flannelpy.core.environment import bare
from flannelpy.core.moving import beside
from flannelpy.core.secret import shown
from flannelpy.core.underlay import HostNetworks

OURS = "flannel"
"""What the names of our own devices begin with."""
WITHIN_S = 3.0
"""How long ``ip`` may take."""

_WIRE = "packets between hosts that have it already and those that have not are lost meanwhile"
_ANEW = "the device is made anew on each host, packets are lost for up to a second"

_TYPE = "each host sets it up beside the old one and loses no packet; hosts with a real flanneld have to be restarted"
_TYPE_AT_ONCE = (
    "packets are lost for up to a second or so on each host while it changes over, "
    "and between hosts that have changed over and those that have not"
)

_OPTIONS: Mapping[str, str] = {
    "vni": f"{_ANEW}; {_WIRE}",
    "port": f"{_ANEW}; {_WIRE}",
    "psk": f"{_ANEW}; {_WIRE}",
    "gbp": _ANEW,
    "learning": _ANEW,
    "macprefix": _ANEW,
    "engine": "packets are lost for up to a second on each host while it changes over",
    "workers": "",
    "directrouting": "",
    "guard": "",
    "prefer": "",
    "mtu": "",  # said once, for whatever reason the MTU becomes another one
}
"""What a change of an option of a backend costs, by name in small letters; empty where it costs nothing."""
_UNKNOWN = "packets may be lost for a moment on each host"


class Cost(NamedTuple):
    """A line of it; ``harmless``: no packet is lost, and no container gets another address."""

    words: str
    harmless: bool = False

    def __str__(self) -> str:
        return self.words


def of(old: Examined | None, new: Examined | None) -> list[Cost]:
    """A line for each thing that the change costs; empty where it costs nothing. None: a config that agents cannot use."""
    if old is None:
        return []
    if new is None:
        return [Cost("agents cannot use it: each stays with the config before, and none can start anew, until it is mended")]
    return [*map(Cost, _pools(old.config, new.config)), *_backends(old, new), *_mtu(old, new)]


def _pools(old: NetworkConfig, new: NetworkConfig) -> Iterator[str]:
    for version, before, after in ((4, old.v4, new.v4), (6, old.v6, new.v6)):
        if before is not None and after is None:
            yield f"IPv{version} is turned off: containers lose their IPv{version} addresses"
        elif before is None and after is not None:
            yield f"IPv{version} is turned on: every host takes another lease, with both subnets; restart Docker on each"
        elif before is not None and after is not None and not _all_fit(before, after):
            yield _other_subnets("" if version == 4 else "IPv6", before, after)


def _all_fit(before: Pool, after: Pool) -> bool:
    """True where each subnet of the one pool is one of the other's."""
    return after.length == before.length and after.first <= before.first and before.last <= after.last


def _other_subnets(lead: str, before: Pool, after: Pool) -> str:
    if before.length != after.length:
        what, who = f"{lead}SubnetLen {before.length} -> {after.length}", "every host"
    elif after.last < before.first or before.last < after.first:
        what, who = f"{lead}Network {before.network} -> {after.network}", "every host"
    else:
        what, who = f"subnets are from {after.first} to {after.last}", "a host whose subnet is none of these"
    return f"{what}: {who} gets another subnet; restart Docker there, its containers get other addresses"


def _backends(old: Examined, new: Examined) -> Iterator[Cost]:
    before, after = old.backend.name, new.backend.name
    if before != after:
        together = _side_by_side(old, new)
        yield Cost(f"Type {before} -> {after}: {_TYPE if together else _TYPE_AT_ONCE}", harmless=together)
        return
    ours, theirs = _folded(old.config.backend_options), _folded(new.config.backend_options)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name) and (words := _OPTIONS.get(name, _UNKNOWN)):
            yield Cost(f"Backend.{_spelt(name, old, new)} {_said(ours, name)} -> {_said(theirs, name)}: {words}")


def _side_by_side(old: Examined, new: Examined) -> bool:
    return (old.config.v4, old.config.v6) == (new.config.v4, new.config.v6) and beside(old.backend, new.backend)


def meanwhile(old: Examined | None, new: Examined | None) -> list[str]:
    """What lies between now and the end of a change, where steps that lead to the end do not tell it."""
    if old is None or new is None or old.backend.name == new.backend.name or not _side_by_side(old, new):
        return []
    before, after = old.backend.name, new.backend.name
    return [f"these steps lead to the end: {before} stays beside {after}, with all it has, until no host sends by it any more"]


def _folded(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in options.items()}


def _spelt(name: str, *examined: Examined) -> str:
    return next(key for each in examined for key in each.config.backend_options if key.lower() == name)


def _said(options: Mapping[str, Any], name: str) -> str:
    if name not in options:
        return "default"
    return json.dumps(shown(options)[name])


def _mtu(old: Examined, new: Examined) -> Iterator[Cost]:
    before, after = _size(old), _size(new)
    if before != after:
        way = "they may send packets that are too large, and are told so by ICMP" if after < before else "they do not use the gain"
        kept = "containers keep the old one until they are made anew"
        yield Cost(f"MTU {before} -> {after} where the link has 1500: {kept}; {way}", harmless=True)


def _size(examined: Examined) -> int:
    """The overlay's MTU on a link with the usual 1500."""
    asked = _folded(examined.config.backend_options).get("mtu")
    room = 1500 - max(examined.backend.overhead(version) for version in examined.config.families)
    return min(asked, room) if isinstance(asked, int) and asked > 0 else room


# ------------------------------------------------------------------------------------------------------- this host's networks


def overlaps(config: NetworkConfig, own: HostNetworks) -> list[str]:
    """A line for each network of this host that the overlay's would take."""
    return [
        f"Network {network} overlaps {held} on this host's {interface}: hosts may lease what is in use there; "
        "expected a Network that no host is in"
        for network in config.networks
        for held, interface in own
        if held.version == network.version and held.first <= network.last and network.first <= held.last
    ]


def own_networks(bridge: IPNetwork | None = None) -> HostNetworks:
    """The networks of this host's interfaces but lo's, our own devices' and the ``bridge`` of our own subnet.

    As ``ip`` says; empty where that cannot be asked, because the command may run anywhere.
    """
    found: dict[tuple[IPNetwork, str], None] = {}
    for interface, text in _addresses(_ip("addr")) + _connected(_ip("route", "show", "scope", "link")):
        with suppress(AddrFormatError, ValueError, TypeError):
            net = IPNetwork(text).cidr
            link_local = net.version == 6 and IPAddress(net.first, 6).is_link_local()
            if interface != "lo" and not interface.startswith(OURS) and net != bridge and not link_local:
                found[net, interface] = None
    return tuple(found)


def _addresses(links: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [
        (str(link.get("ifname")), f"{each.get('local')}/{each.get('prefixlen')}")
        for link in links
        for each in link.get("addr_info", ())
    ]


def _connected(routes: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(str(route.get("dev")), str(route.get("dst"))) for route in routes if route.get("dst") != "default"]


def _ip(*words: str) -> list[Mapping[str, Any]]:
    try:
        answer = subprocess.run(
            ["ip", "-j", *words], capture_output=True, text=True, check=True, timeout=WITHIN_S, env=bare(os.environ)
        ).stdout
        found = json.loads(answer or "[]")
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
