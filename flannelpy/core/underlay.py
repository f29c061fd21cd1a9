"""What of the host and the networks around it must never go into the overlay, and what can be a peer's address?

Judged by facts that are handed in, for both families alike. A packet to a peer's PublicIP can never go into our own overlay: it
lies outside Network, where no route of ours leads, or on a link of the uplink, that is kept out of it as a whole.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from netaddr import IPAddress, IPNetwork

from flannelpy.core.host_diagnosis import BRIDGES
from flannelpy.core.host_facts import HostFacts
from flannelpy.core.objects import HostState, Object, Route
from flannelpy.core.ownership import Block

HostNetworks = tuple[tuple[IPNetwork, str], ...]
"""Networks that a host is in, each with the interface."""


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """An address of this host, with the length of its network. ``bridge``: it was made in a subnet that is or was leased to us."""

    net: IPNetwork
    interface: str
    bridge: bool = False

    @property
    def address(self) -> IPAddress:
        return self.net.ip


@dataclass(frozen=True, slots=True)
class Underlay:
    """What is around the overlay here: the host's own addresses, and others that it cannot do without, each with what it is
    (``etcd``). Empty where nothing is known.
    """

    own: tuple[OwnAddress, ...] = ()
    others: tuple[tuple[IPAddress, str], ...] = ()
    uplink: str = ""

    @classmethod
    def of(
        cls,
        facts: HostFacts,
        ours: Container[str],
        bridges: Iterable[IPNetwork] = (),
        uplink: str = "",
        others: Iterable[tuple[IPAddress, str]] = (),
    ) -> Underlay:
        """Without what is on our own devices, loopback, another host's, and what is link-local elsewhere than on the ``uplink``.

        The uplink is none of the ``bridges``, whatever subnet it lies in.
        """
        bridges, own = tuple(bridges), []
        for interface in facts.interfaces:
            for held in interface.addresses if interface.name not in ours else ():
                net = IPNetwork((int(held.address), held.prefixlen), version=held.address.version)
                if held.duplicate or held.address.is_loopback():
                    continue
                if interface.name == uplink or not held.address.is_link_local():
                    inside = net.ip if interface.name in BRIDGES else net.cidr  # one that was made too wide is told elsewhere
                    bridge = interface.name != uplink and any(inside in each for each in bridges)
                    own.append(OwnAddress(net, interface.name, bridge))
        gateways = [(route.via, "the gateway") for route in facts.default_routes if route.via is not None]
        return cls(tuple(own), tuple(dict.fromkeys((*gateways, *others))), uplink)

    @property
    def networks(self) -> HostNetworks:
        """The networks that this host is in, with the interface of each: whoever were leased one would cut the host off.

        Without link-local ones, and those that a bridge has from us.
        """
        return tuple((one.net.cidr, one.interface) for one in self.own if not one.bridge and not one.address.is_link_local())

    @property
    def avoided(self) -> tuple[IPNetwork, ...]:
        """What is not to be leased to this host."""
        alone = (_alone(address) for address, _what in self.others)
        return tuple(dict.fromkeys(chain((net for net, _interface in self.networks), alone)))


@dataclass(frozen=True, slots=True)
class Shield:
    """What of an underlay lies inside the overlay's ``networks``, and is kept out of it all the same."""

    networks: tuple[tuple[IPNetwork, Block], ...] = ()
    kept: tuple[tuple[Block, str], ...] = ()
    """Blocks that no route of ours may cover, with what they are."""
    links: tuple[Block, ...] = ()
    """Those of them that are a network of the uplink, on which peers may be."""
    strange: Mapping[IPAddress, str] = field(default_factory=dict)
    """Addresses that are no peer's, and why."""
    known: bool = False
    link_local: frozenset[int] = frozenset()
    """IP versions of which the uplink has nothing but a link-local address: so may peers."""

    @classmethod
    def of(cls, underlay: Underlay, networks: Iterable[IPNetwork]) -> Shield:
        networks = tuple(networks)
        on_uplink = [one for one in underlay.own if one.interface == underlay.uplink]
        links = {one.net.cidr: one.interface for one in on_uplink if any(_strictly_inside(one.net, net) for net in networks)}
        kept = {_block(net): f"{net} on {interface}" for net, interface in links.items()}
        for one in underlay.own:
            if not one.bridge:
                kept.setdefault(_block(_alone(one.address)), f"this host's own {one.address} on {one.interface}")
        for address, what in underlay.others:
            kept.setdefault(_block(_alone(address)), f"{address}, {what}")
        whole = tuple((net, _block(net)) for net in networks)
        return cls(
            whole,
            tuple((block, words) for block, words in kept.items() if any(_meet(block, other) for _net, other in whole)),
            tuple(map(_block, links)),
            {address: words for one in underlay.own for address, words in _strange(one)},
            bool(underlay.own),
            frozenset(
                version
                for version in (4, 6)
                if (held := [one.address for one in on_uplink if one.address.version == version])
                and all(address.is_link_local() for address in held)
            ),
        )

    def unfit(self, address: IPAddress) -> str:
        """Why no packets to a host can be sent there, as words that follow the name of a field; empty where they can."""
        if not _is_unicast(address):
            return "is not the address of a host"
        if (words := self.strange.get(address)) is not None:
            return words
        if not self.known:
            return ""
        if address.is_link_local() and address.version not in self.link_local:
            return f"{address} is link-local, and this host's uplink is not"
        at = address.version, int(address), int(address)
        inside = next((net for net, block in self.networks if _meet(at, block)), None)
        if inside is not None and not any(_meet(at, link) for link in self.links):
            return f"{address} lies inside the network {inside}"
        return ""

    def covered(self, net: IPNetwork) -> str:
        """What is kept out of the overlay, and a route to ``net`` would take into it; empty where that is nothing."""
        if not self.kept:
            return ""
        block = _block(net)
        return next((words for held, words in self.kept if _meet(block, held)), "")

    def carve(self, net: IPNetwork) -> Iterator[IPNetwork]:
        """The blocks that make up ``net`` without anything that is kept out of the overlay, in order."""
        block = _block(net)
        held = [other for other, _words in self.kept if _meet(block, other)]
        if not held:
            yield net
        elif not any(_holds(other, block) for other in held):
            for half in net.subnet(net.prefixlen + 1):
                yield from self.carve(half)

    def carved(self, state: HostState) -> HostState:
        """The same state, its routes without what they must not cover."""
        if not self.kept:
            return state
        objects: list[Object] = []
        for item in state:
            objects += _parts(item, self) if isinstance(item, Route) else (item,)
        return HostState.from_iterable(objects)

    def crossing(self, state: HostState) -> Iterator[tuple[Route, str]]:
        """The routes that cover what they must not, and what that is."""
        if self.kept:
            for item in state:
                if isinstance(item, Route) and (words := self.covered(item.dst)):
                    yield item, words


def _parts(route: Route, shield: Shield) -> Iterator[Route]:
    for net in shield.carve(route.dst):
        yield (
            route
            if net == route.dst
            else Route(net, route.via, route.dev, route.onlink, route.kind, route.link_scope, route.proto, route.metric)
        )


def _strange(one: OwnAddress) -> Iterator[tuple[IPAddress, str]]:
    """The addresses of an own address's network that no other host has (RFC 919, RFC 4291 2.6.1)."""
    net, version = one.net, one.net.version
    on = f"{net.cidr} on {one.interface}"
    if net.prefixlen <= (30 if version == 4 else 126):
        yield IPAddress(net.first, version), f"{net.network} is the network's own address in {on}"
        if version == 4:
            yield IPAddress(net.last, 4), f"{IPAddress(net.last, 4)} is the broadcast address of {on}"
    yield one.address, f"{one.address} is this host's own, on {one.interface}"


def _is_unicast(address: IPAddress) -> bool:
    """False for what no packet to another host carries as destination (RFC 6890): 0/8, loopback, multicast, 240/4 with broadcast;
    in IPv6 what embeds IPv4, too.
    """
    value = int(address)
    if address.version == 4:
        return 0 < value >> 24 < 224 and value >> 24 != 127
    return value >> 32 not in (0, 0xFFFF) and value >> 120 != 0xFF


def _alone(address: IPAddress) -> IPNetwork:
    return IPNetwork((int(address), 32 if address.version == 4 else 128), version=address.version)


def _strictly_inside(net: IPNetwork, whole: IPNetwork) -> bool:
    return net.version == whole.version and net.prefixlen > whole.prefixlen and _holds(_block(whole), _block(net))


def _block(net: IPNetwork) -> Block:
    return net.version, int(net.first), int(net.last)


def _meet(one: Block, other: Block) -> bool:
    return one[0] == other[0] and one[1] <= other[2] and other[1] <= one[2]


def _holds(one: Block, other: Block) -> bool:
    return one[0] == other[0] and one[1] <= other[1] and other[2] <= one[2]
