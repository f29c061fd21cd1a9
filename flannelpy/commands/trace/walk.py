"""Which hops does a packet pass on this host, out and back? The kernel is asked for each as it asks itself; ``core.trace`` judges.

What cannot be asked, for want of root or of an agent, is a hop that says so; the others are looked at all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from netaddr import IPAddress

from flannelpy.commands.doctor.about import About
from flannelpy.commands.trace import asking
from flannelpy.commands.trace.target import Destination, networks, whole_name
from flannelpy.core import trace
from flannelpy.core.entrances import port_by
from flannelpy.core.envelope import SEALED, Envelope, envelope_of
from flannelpy.core.errors import KernelError
from flannelpy.core.filter_match import ICMP, UDP, Packet
from flannelpy.core.forwarding import OURS
from flannelpy.core.host_diagnosis import FORWARDING, Overlay
from flannelpy.core.host_facts import Interface
from flannelpy.core.lookup import FILTERED, Found, Lookup, expected, goes, ruled
from flannelpy.core.objects import FdbEntry, HostState, Key, Link, Neighbour, Route, Scope, WireguardPeer, XfrmPolicy
from flannelpy.core.packet_filter import Hook, Ruleset, Ruling, judge
from flannelpy.core.sightings import Way
from flannelpy.core.trace import Hop, Journey
from flannelpy.core.wireguard import WireguardDevice
from flannelpy.core.xfrm import UsesXfrm

LOOKED_AT = ("link", "neigh", "fdb", "route", "wg", "wgpeer", "xfrm")
"""Kinds of kernel objects that may carry a packet."""

_EITHER = frozenset({"new", "established"})


@dataclass(slots=True)
class Ground:
    """What is known of this host before the first hop. ``version``: of IP, inside."""

    about: About
    source: IPAddress
    target: Destination
    interfaces: dict[str, Interface]
    overlay: Overlay
    observed: HostState
    hops: list[Hop] = field(default_factory=list)
    muted: trace.Muted = trace.NOT_MUTED
    way: Way = field(default_factory=Way)

    @property
    def version(self) -> int:
        return int(self.target.address.version)

    @property
    def nobodys(self) -> bool:
        """True where the agent knows of no host with such an address."""
        return self.target.peer is None and not self.target.local and self.about.status is not None

    @property
    def whose(self) -> str:
        peer = self.target.peer
        if peer is None:
            return str(self.target.address)
        return f"{peer.subnet if self.version == 4 else peer.subnet6} of {peer.public_ip}"


async def walk(about: About, source: IPAddress, target: Destination) -> tuple[Journey, Way]:
    """The journey of a packet, and of what answers it. Raises KernelError where the kernel tells nothing at all."""
    kernel = about.kernel
    facts = await kernel.facts()
    interfaces = {one.name: one for one in facts.interfaces}
    devices = about.devices if about.config is not None else frozenset(name for name in interfaces if name.startswith(OURS))
    subnets = tuple(net for net in about.subnets if net.version == source.version)
    overlay = Overlay(networks(about), subnets, about.mtu, devices)
    scope = Scope(devices, networks(about), policies=_uses_xfrm(about.backend))
    observed = await kernel.observe(scope, [Key(kind, "") for kind in LOOKED_AT])
    ground = Ground(about, source, target, interfaces, overlay, observed)
    size = about.mtu or 1400
    async with asyncio.TaskGroup() as together:
        asked = together.create_task(asking.answers(kernel, target.address, target.host, target.public, size))
        port = await _hops(ground)
    answers = asked.result()
    hops = list(trace.settled(ground.hops, bool(answers.small)))
    probe = None if target.peer is None else target.peer.probe
    why = probe.why if probe is not None and probe.state == "unreachable" else ""
    host = "" if target.local else str(target.public or "the other host")
    if answers.small or not ground.nobodys:
        hops.append(trace.answer_hop(answers, target.address, host, port, why, ground.muted))
    return Journey(source, target.address, "" if target.peer is None else target.peer.public_ip, tuple(hops)), ground.way


async def _hops(ground: Ground) -> str:
    """All but the answer; what packets are carried by, in words."""
    kernel, target = ground.about.kernel, ground.target
    hop, bridge = trace.bridge_hop(list(ground.interfaces.values()), ground.overlay, ground.source)
    ground.hops.append(hop)
    ground.way = way = Way() if bridge is None or not bridge.up else Way(bridge.name, bridge.mtu)
    if target.local:
        return "the bridge"
    routes = [item for item in ground.observed if isinstance(item, Route)]
    wanted = expected(routes, target.address)
    device = wanted.dev if wanted is not None and wanted.dev else ""
    arriving = [one for one in ("" if bridge is None else bridge.name, device) if one]
    settings = await kernel.settings(trace.forwarding_names(ground.version, arriving))
    ground.hops.append(trace.forwarding_hop(settings, ground.version, arriving))
    forwards = settings.get(FORWARDING[ground.version]) != "0"
    found, plain, rule = await _way(ground, bridge if forwards else None, wanted)
    link = ground.observed.get(Key("link", device))
    mtu = link.mtu if isinstance(link, Link) else ground.interfaces[device].mtu if device in ground.interfaces else 0
    if ground.nobodys:
        said, remedy = f"no host has leased a subnet with {target.address}", f"flannelpy lease list {target.address}"
        ground.hops.append(Hop("peer", "stops", said, remedy))
    if wanted is not None or not ground.nobodys:
        ground.hops.append(trace.route_hop(wanted, found, plain, ground.whose, mtu, rule, target.left_out))
    if wanted is None or not device:
        return "the overlay's traffic"
    rules = await _rules(ground)
    _forward(ground, rules, bridge, device)
    envelope, outer = _carrier(ground, wanted, link)
    outside = rules
    if envelope is not None and envelope.protocol == UDP and not envelope.port:
        ground.hops.append(
            Hop("port", "note", f"the port of {device} is not known: no rule about its packets is judged", shared=True)
        )
        outside = None
    uplink = await _outside(ground, outside, envelope, outer, device)
    leaves = uplink.name if uplink is not None else "" if isinstance(link, Link) else device
    ground.way = replace(way, overlay=device if isinstance(link, Link) else "", envelope=envelope, outer=outer, uplink=leaves)
    _peer(ground)
    if envelope is not None and outer is not None and uplink is not None:
        await _inside(ground, outside, envelope, outer, uplink)
    await _back(ground, rules, bridge if forwards else None, device)
    ground.muted = _muted(ground, rules, device)
    return "the overlay's traffic" if envelope is None else str(envelope)


# ------------------------------------------------------------------------------------------------------------------ out


async def _way(ground: Ground, bridge: Interface | None, wanted: Route | None) -> tuple[Found, Found, str]:
    """The look-up as a container sends, and as this host does; the second for both where the first was odd, or cannot be asked. And
    the policy rule by which it goes elsewhere than wanted, where there is one.
    """
    plain = Lookup(ground.target.address)
    asked = plain if bridge is None else Lookup(ground.target.address, ground.source, bridge.index)
    found, simply = await ground.about.kernel.look_up([asked, plain])
    if found.code in FILTERED and wanted is not None and not goes(wanted, simply):
        return simply, simply, "" if goes(wanted, simply) else await _rule(ground, plain, simply)
    return found, simply, "" if wanted is None or goes(wanted, found) else await _rule(ground, asked, found)


async def _rule(ground: Ground, lookup: Lookup, found: Found) -> str:
    rule = await ground.about.kernel.policy_rule(lookup) if ruled(found) else None
    perhaps_filtered = found.code in FILTERED and lookup.arrives and lookup.dst.version == 4  # on the way back, whatever rules say
    return "" if rule is None or (perhaps_filtered and not rule.refuses) else str(rule)


def _carrier(ground: Ground, wanted: Route, link: object) -> tuple[Envelope | None, IPAddress | None]:
    """What carries it, and where to: None where it goes without anything around it, or where that is not known."""
    device, target = wanted.dev or "", ground.target
    if not isinstance(link, Link):
        if device in ground.overlay.devices:
            ground.hops.append(Hop("device", "stops", f"{device} is not there", "flannelpy plan; systemctl restart flannelpy"))
        if _uses_xfrm(ground.about.backend) and (outer := _policy(ground)) is not None:
            return SEALED, outer
        return None, None
    if not link.up:
        ground.hops.append(Hop("device", "stops", f"{device} is down", f"ip link set {device} up", shared=True))
    else:
        said = f"{device}, {link.kind}{'' if link.detail is None else f' {link.detail}'}"
        ground.hops.append(Hop("device", "passes", said, mtu=link.mtu, shared=True))
    envelope = envelope_of(link, _port(ground, device))
    if link.kind == "vxlan":
        return envelope, _vtep(ground, wanted)
    if link.kind == "wireguard":
        return envelope, _endpoint(ground, device)
    return envelope, wanted.via or target.public


def _port(ground: Ground, device: str) -> int:
    """At which other hosts' packets come to a device that does not say so itself; 0 where it is not known."""
    held = ground.observed.get(Key("wg", device))
    return held.listen_port if isinstance(held, WireguardDevice) else port_by(ground.about.entrances, device)


def _vtep(ground: Ground, wanted: Route) -> IPAddress | None:
    """The peer's outer address, by neighbour and FDB entry."""
    plan = "flannelpy plan; flannelpy status --peers"
    neighbour = ground.observed.get(Key("neigh", f"{wanted.via} dev {wanted.dev}"))
    if not isinstance(neighbour, Neighbour):
        said = f"{wanted.via} has no permanent entry on {wanted.dev}: its MAC would be asked for in vain"
        ground.hops.append(Hop("neighbour", "stops", said, plan, shared=True))
        return ground.target.public
    ground.hops.append(Hop("neighbour", "passes", f"{wanted.via} is {neighbour.mac}", shared=True))
    entry = ground.observed.get(Key("fdb", f"{neighbour.mac} dev {wanted.dev}"))
    if not isinstance(entry, FdbEntry):
        said = f"{neighbour.mac} has no entry on {wanted.dev}: nobody knows which host that is"
        ground.hops.append(Hop("fdb", "stops", said, plan, shared=True))
        return ground.target.public
    public = ground.target.public
    if public is not None and entry.dst != public:
        said = f"{neighbour.mac} is sent to {entry.dst}; the lease says {public}"
        ground.hops.append(Hop("fdb", "stops", said, plan, shared=True))
    else:
        ground.hops.append(Hop("fdb", "passes", f"{neighbour.mac} is at {entry.dst}", shared=True))
    return entry.dst


def _endpoint(ground: Ground, device: str) -> IPAddress | None:
    """Where WireGuard's peer for the destination is."""
    address = ground.target.address
    peers = [item for item in ground.observed if isinstance(item, WireguardPeer) and item.dev == device]
    mine = [peer for peer in peers if any(net.version == address.version and address in net for net in peer.allowed_ips)]
    if not mine:
        said = f"no peer of {device} may have {address}"
        ground.hops.append(Hop("wireguard", "stops", said, f"wg show {device}; flannelpy plan", shared=True))
        return None
    endpoint = mine[0].endpoint
    if endpoint is None:
        said = f"{address} is of a peer that has not been heard of: it has to speak first"
        ground.hops.append(Hop("wireguard", "stops", said, f"wg show {device}", shared=True))
        return None
    ground.hops.append(Hop("wireguard", "passes", f"{address} is behind {endpoint[0]}, port {endpoint[1]}", shared=True))
    return endpoint[0]


def _uses_xfrm(backend: object) -> bool:
    return isinstance(backend, UsesXfrm)


def _policy(ground: Ground) -> IPAddress | None:
    """The other end of the tunnel that a policy of IPsec says."""
    source, address = ground.source, ground.target.address
    policies = [item for item in ground.observed if isinstance(item, XfrmPolicy) and item.direction == "out"]
    mine = [item for item in policies if source.version == 4 and source in item.src and address in item.dst]
    if not mine:
        said = f"no policy says that packets from {source} to {address} are encrypted"
        ground.hops.append(Hop("policy", "stops", said, "ip xfrm policy; flannelpy plan"))
        return None
    outer = mine[0].outer_dst
    ground.hops.append(Hop("policy", "passes", f"in ESP from {mine[0].outer_src} to {outer}; ip xfrm state shows its keys"))
    return outer


async def _outside(
    ground: Ground, rules: Ruleset | None, envelope: Envelope | None, outer: IPAddress | None, device: str
) -> Interface | None:
    """The way of the encapsulated packet; the interface that it leaves by."""
    mtu = ground.about.mtu
    if envelope is None:
        ground.hops.append(trace.uplink_hop(ground.interfaces.get(device), device, 0))
        return None
    if outer is None:
        return None
    (found,) = await ground.about.kernel.look_up([Lookup(outer)])
    there = ground.interfaces.get(envelope.bound)
    bound = "" if there is not None and there.loopback else envelope.bound
    rule = await _rule(ground, Lookup(outer), found)
    route = trace.outer_hop(found, outer, bound, ground.overlay.devices, bound=bool(bound), rule=rule)
    name = bound or found.dev
    if not name:
        ground.hops.append(route)
        return None
    needed = mtu + envelope.overhead(outer.version) if mtu else 0
    uplink = ground.interfaces.get(name)
    hop = trace.uplink_hop(uplink, name, needed)
    ground.hops += [hop, route] if hop.state == "stops" else [route, hop]  # where it is down, the route is only what follows
    own = None if uplink is None else ground.about.address_of(uplink, outer.version)
    if rules is not None and own is not None:
        sent = _enveloped(ground, envelope, own, outer, leaves=name)
        _judged(ground, rules, "output", [("output", sent), ("postrouting", sent)], shared=True)
    return uplink


# ----------------------------------------------------------------------------------------------------------------- back


async def _inside(ground: Ground, rules: Ruleset | None, envelope: Envelope, outer: IPAddress, uplink: Interface) -> None:
    """What the peer sends, where it arrives."""
    own = ground.about.address_of(uplink, outer.version)
    if own is None:
        return
    (back,) = await ground.about.kernel.look_up([Lookup(own, outer, uplink.index)])
    if back.code in FILTERED:
        ground.hops.append(trace.filtered_hop(uplink.name, outer))
    if rules is not None:
        comes = _enveloped(ground, envelope, outer, own, arrives=uplink.name)
        _judged(ground, rules, "input", [("prerouting", comes), ("input", comes)], shared=True)


async def _back(ground: Ground, rules: Ruleset | None, bridge: Interface | None, device: str) -> None:
    """The answer, from our device to the container."""
    if bridge is None or device not in ground.interfaces:
        return
    asked = Lookup(ground.source, ground.target.address, ground.interfaces[device].index)
    (found,) = await ground.about.kernel.look_up([asked])
    rule = await _rule(ground, asked, found) if found.code or found.dev not in ("", bridge.name) else ""
    behind = [held.prefixlen for held in bridge.addresses if held.address.version == ground.version]
    ground.hops.append(trace.back_hop(found, bridge.name, device, ground.source, max(behind, default=128), rule))
    if rules is not None:
        packet = _packet(ground, ground.target.address, ground.source, device, bridge.name, frozenset({"established"}))
        _judged(ground, rules, "forward back", _forwarded(packet))


# ------------------------------------------------------------------------------------------------------------- firewalls


async def _rules(ground: Ground) -> Ruleset | None:
    """All rules; a hop that says why where they cannot be had."""
    kernel = ground.about.kernel
    try:
        return await kernel.filter_rules()
    except KernelError as error:
        said = f"its rules cannot be read: {error}"
    try:
        net = next(net for net in ground.overlay.networks if net.version == ground.version)
        if dropped := trace.hindered(await kernel.hindrances(), net):
            ground.hops.append(Hop("firewall", "unknown", f"may be dropped by {dropped}; {said}", "sudo flannelpy trace"))
            return None
    except (KernelError, StopIteration):
        pass
    ground.hops.append(Hop("firewall", "unknown", said, "sudo flannelpy trace"))
    return None


def _forward(ground: Ground, rules: Ruleset | None, bridge: Interface | None, device: str) -> None:
    if rules is not None and bridge is not None:
        packet = _packet(ground, ground.source, ground.target.address, bridge.name, device, frozenset({"new"}))
        _judged(ground, rules, "forward", _forwarded(packet))


def _packet(ground: Ground, source: IPAddress, to: IPAddress, arrives: str, leaves: str, states: frozenset[str]) -> Packet:
    behind = next((net for net in ground.overlay.leased if net.version == ground.version), None)
    return Packet(source, to, arrives, leaves, ICMP[ground.version], states=states, behind=behind)


def _enveloped(
    ground: Ground, envelope: Envelope, source: IPAddress, to: IPAddress, *, arrives: str = "", leaves: str = ""
) -> Packet:
    ends = (ground.target.address, ground.source) if arrives else (ground.source, ground.target.address)
    size = asking.SMALL + envelope.overhead(source.version)
    transport = envelope.transport(*ends)
    return Packet(source, to, arrives, leaves, envelope.protocol, envelope.port, size, _EITHER, transport)


def _forwarded(packet: Packet) -> list[tuple[Hook, Packet]]:
    arriving = replace(packet, leaves="")
    return [("prerouting", arriving), ("forward", packet), ("postrouting", packet)]  # the last knows both interfaces (Linux 5.7)


def _judged(ground: Ground, rules: Ruleset, name: str, passed: Sequence[tuple[Hook, Packet]], *, shared: bool = False) -> None:
    """A hop for what the rules say at these hooks."""
    more = max(0, ground.about.mtu - asking.SMALL)
    small, full = list[Ruling](), list[Ruling]()
    for hook, packet in passed:
        small.append(judge(rules, hook, packet))
        full.append(judge(rules, hook, packet.larger(more)))
    ground.hops.append(trace.firewall_hop(name, small, full, shared=shared))


def _muted(ground: Ground, rules: Ruleset | None, device: str) -> trace.Muted:
    """What the rules do to echo requests of this host itself: they pass other hooks than what containers send."""
    leaves = ground.interfaces.get(device)
    own = None if leaves is None else ground.about.address_of(leaves, ground.version)
    if rules is None or own is None:
        return trace.NOT_MUTED
    there, icmp = ground.target.address, ICMP[ground.version]
    out = Packet(own, there, "", device, icmp)
    back = Packet(there, own, device, "", icmp, states=frozenset({"established"}))
    passed: list[tuple[Hook, Packet]] = [("output", out), ("postrouting", out), ("prerouting", back), ("input", back)]
    found = []
    for more in (0, max(0, ground.about.mtu - asking.SMALL)):
        rulings = [judge(rules, hook, packet.larger(more)) for hook, packet in passed]
        found.append(next((ruling for ruling in rulings if ruling.dropped), Ruling()))
    return trace.Muted(*found)


# ----------------------------------------------------------------------------------------------------------------- agent


def _peer(ground: Ground) -> None:
    """What the agent says of the peer."""
    about, peer = ground.about, ground.target.peer
    if about.status is None:
        ground.hops.append(Hop("peer", "note", f"what the agent knows of it is not known: {about.silent}"))
    elif peer is not None and peer.state != "in-sync":
        said = f"{whole_name(peer)} is {peer.state}: {peer.why or ''}"
        ground.hops.append(Hop("peer", "note", said, "flannelpy status --peers"))
    elif peer is not None:
        probe = peer.probe
        said = whole_name(peer) + (", in sync" if probe is None else f", {probe.state}{probe.why and f': {probe.why}'}")
        ground.hops.append(Hop("peer", "passes", said))
