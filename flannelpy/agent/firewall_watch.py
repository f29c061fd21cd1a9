"""Does the host's own firewall drop what the overlay needs? Looked at when a rule has changed, and told for as long as it is so.

The kernel numbers the states of its tables: that number is asked for every few seconds, and the rules only where it is another one,
or where what has to pass is. A long list is read as rarely as it takes long. Nothing is ever done to a rule.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterator
from heapq import nsmallest
from itertools import islice

from netaddr import IPAddress

from flannelpy.agent.beat import beat
from flannelpy.agent.parts import Parts
from flannelpy.agent.report import Clock, Reporter
from flannelpy.agent.steering import Steering
from flannelpy.agent.sync.fragments import HOST
from flannelpy.core.entrances import Entrance, entrances, port_by
from flannelpy.core.envelope import envelope_of
from flannelpy.core.errors import KernelError
from flannelpy.core.firewall_drops import Ground, Passage, Way, dropped, passages
from flannelpy.core.lookup import expected
from flannelpy.core.model import Lease
from flannelpy.core.objects import Ipip, Link, Object, Route, Vxlan, WireguardDevice, WireguardPeer
from flannelpy.core.packet_filter import Ruleset
from flannelpy.kernel import Kernel

LOOK_S = 3.0
"""Between two looks at the number."""

RULE_S, ELEMENT_S = 130e-6, 10e-6
"""What a rule, or an element of a set, takes of a processor in a look, in seconds: nft's part and ours. A rule of iptables-nft that
is listed twice (core/xt_matches.py) takes that much, another one 70 µs.
"""
SPARE = 50.0
"""A look that takes a second is followed by so many without one: two hundredths of a processor, however often rules change."""

LONGEST_S = 60.0
UNSEEN_S = 30.0
"""After rules that could not be read."""

PEERS = 4
"""For so many peers the rules are judged: those that do not answer come first, since a rule may be about them alone."""

CODE = "firewall-drops"
MANY = 500
"""Rules that are judged at once, in some milliseconds; more, in a thread."""

log = logging.getLogger("flannelpy")


class FirewallWatch:
    """Looks, for ever. ``clock`` is monotonic, in seconds."""

    def __init__(self, kernel: Kernel, reporter: Reporter, parts: Parts, steering: Steering, clock: Clock) -> None:
        self._kernel = kernel
        self._reporter = reporter
        self._parts = parts
        self._steering = steering
        self._clock = clock
        self._basis: tuple[Hashable, ...] = ()
        self._rests_until = clock()
        self._unseen = ""

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await beat(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look once, where anything is another than before, and set what is dropped. Raises KernelError."""
        ground, wanted = self._wanted()
        if not wanted:  # nobody's packets are carried here
            self._basis = ()
            self._reporter.set(CODE, {})
            return
        basis = (await self._kernel.firewall_state(), tuple(wanted))  # before the rules: what comes meanwhile is another look's
        if basis == self._basis or self._clock() < self._rests_until:
            return
        try:
            rules, unseen = await self._kernel.foreign_rules(), ""
            self._reporter.set(CODE, await _judged(rules, wanted, ground.uplink))
            self._basis = basis
            rests_s = min(LONGEST_S, SPARE * cost_s(rules))
        except KernelError as error:  # what was said last stays
            unseen, rests_s = str(error), UNSEEN_S
        self._rests_until = self._clock() + rests_s
        if unseen and unseen != self._unseen:
            log.warning("whether this host's firewall drops the overlay cannot be seen: %s; all else goes on", unseen)
        self._unseen = unseen

    # --------------------------------------------------------------------------------------------------- what has to pass

    def _wanted(self) -> tuple[Ground, list[Passage]]:
        fragments, carriage, lease = self._parts.reconciler.fragments, self._steering.carriage, self._steering.lease
        if not fragments.has_target or carriage is None or lease is None:
            return Ground("", (), "", 0), []
        uplink, mtu = carriage.uplink, carriage.mtu
        bridge = next((one.interface for one in self._parts.surroundings.underlay.own if one.bridge), "")
        by_any_link = uplink.name == "lo"  # the host's address is on no link (BGP to the host)
        own = tuple(each for each in (uplink.address, uplink.address6) if each is not None)
        ground = Ground("" if by_any_link else uplink.name, own, bridge, mtu, bool(self._parts.forwarding.blocked))
        known = entrances(carriage.config, carriage.backends)  # a userspace datapath's port: its device does not say
        ways = (way for peer in self._chosen() for way in self._ways(peer, lease, known))
        return ground, list(passages(ways, ground))

    def _chosen(self) -> Iterator[Lease]:
        """Those that do not answer, in their order, and then others."""
        peers = self._parts.cluster.view.peers
        silent = [key for key in self._silent() if key in peers]
        keys = dict.fromkeys([*silent[: PEERS - 1], *nsmallest(PEERS, peers)])
        return (peers[key] for key in islice(keys, PEERS))

    def _silent(self) -> list[str]:
        """Keys of peers that are told not to answer: not thousands, however many they are."""
        return [each.subject for each in self._reporter.health if each.condition.code == "peer-unreachable"]

    def _ways(self, peer: Lease, own: Lease, known: list[Entrance]) -> Iterator[Way]:
        fragment = self._parts.reconciler.fragments.desired.fragment
        host, mine = list(fragment(HOST)), list(fragment(peer.key))
        routes = [item for item in (*mine, *host) if isinstance(item, Route)]
        links = {item.name: item for item in host if isinstance(item, Link)}
        ports = {item.dev: item.listen_port for item in host if isinstance(item, WireguardDevice)}
        for ours, theirs in ((own.subnet, peer.subnet), (own.subnet6, peer.subnet6)):
            if ours is None or theirs is None or not ours.prefixlen or not theirs.prefixlen:
                continue
            route = expected(routes, IPAddress(theirs.first + 1, theirs.version))
            if route is None or not route.dev:
                continue
            link = links.get(route.dev)
            envelope = None if link is None else envelope_of(link, ports.get(link.name) or port_by(known, link.name))
            outer = None if link is None else _outer(link, peer, mine)
            yield Way(ours, theirs, route.dev, envelope, outer)


def _outer(link: Link, peer: Lease, mine: list[Object]) -> IPAddress | None:
    """The other host's address outside of the overlay; None where that is not known."""
    endpoint = next((item.endpoint for item in mine if isinstance(item, WireguardPeer) and item.dev == link.name), None)
    if link.kind == "wireguard":
        return None if endpoint is None else endpoint[0]
    version = link.detail.local.version if isinstance(link.detail, Vxlan | Ipip) else 4
    found = peer.public_ip if version == 4 else peer.attrs.public_ipv6
    return found if found is not None and int(found) else None


def cost_s(rules: Ruleset) -> float:
    """What a look at these takes of a processor, in seconds: counted, for the clock on a busy host says something else."""
    elements = sum(len(held) for sets in rules.sets.values() for held in sets.values())
    return RULE_S * sum(map(len, rules.chains.values())) + ELEMENT_S * elements


async def _judged(rules: Ruleset, wanted: list[Passage], uplink: str) -> dict[str, str]:
    if sum(map(len, rules.chains.values())) < MANY:
        return dropped(rules, wanted, uplink)
    return await asyncio.to_thread(dropped, rules, wanted, uplink)
