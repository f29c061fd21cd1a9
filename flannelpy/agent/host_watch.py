"""Does this host itself stand between its containers and the others? Looked at now and then, and told for as long as it is so.

Of settings, bridges and policy rules of others no plan of ours knows, and each of them can cut the overlay off while all that is
ours is in its place. What is asked for is small, and never a dump of a table: some settings and links by name, and a few look-ups a
peer, spread over time (1,000 peers take eight minutes), sooner only where routes or rules have changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from netaddr import IPAddress, IPNetwork

from flannelpy.agent.beat import beat
from flannelpy.agent.parts import Parts
from flannelpy.agent.report import Reporter
from flannelpy.agent.steering import Steering
from flannelpy.agent.sync.fragments import HOST, Target
from flannelpy.core.host_diagnosis import (
    BRIDGES,
    Overlay,
    bridges_astray,
    bridges_down,
    filtered,
    mtus_too_large,
    not_forwarding,
    setting_names,
    strict,
)
from flannelpy.core.host_facts import FactsQuery, Interface
from flannelpy.core.lookup import FILTERED, NO_WAY, Found, Lookup, detour, expected, goes, ip, mend_outer, ruled
from flannelpy.core.model import Lease
from flannelpy.core.objects import Link, Route, Vxlan
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.core.tally import about
from flannelpy.kernel import Kernel

LOOK_S = 5.0
"""Between two looks at the host."""

PEERS_PER_S = 2.0
"""How many peers are asked for in a second where nothing has changed: all of ten in LOOK_S, of 1,000 in eight minutes."""

DOUBTED = 100
"""Of those that a change of routes may concern so many a look: where containers come and go all the time, routes do, too."""

AT_ONCE = 32
"""Peers that are asked for in a turn of the loop: some 2 ms."""

RULES = 4
"""Packets that go astray, whose policy rule is asked for in a look."""

CODES = ("forwarding-off", "reverse-path-filter", "route-astray", "bridge-stale", "bridge-elsewhere", "bridge-down", "bridge-mtu")


@dataclass(frozen=True, slots=True)
class Ground:
    """What a look at the host has found, by which peers are asked for. ``bridge``: that of our containers; ``filters``: devices
    whose reverse path filter is strict, each with the setting that makes it so; ``devices``: our own; ``bound``: IP versions of
    peers that are sent to by the uplink only, whatever the routes say (vxlan's lower device).
    """

    target: Target
    interfaces: Mapping[str, Interface]
    bridge: Interface | None
    forwarding: bool
    filters: Mapping[str, str]
    devices: frozenset[str]
    bound: frozenset[int]

    @property
    def uplink(self) -> str:
        return self.target.local.uplink.name


Wrong = dict[tuple[str, str], str]
"""What is wrong with the way to a peer: by condition and subject, in words."""


class HostWatch:
    """Looks, for ever; at every peer where ``facts.rerouted`` says that routes or rules have changed."""

    def __init__(self, kernel: Kernel, reporter: Reporter, parts: Parts, steering: Steering) -> None:
        self._kernel = kernel
        self._reporter = reporter
        self._parts = parts
        self._steering = steering
        self._wrong: dict[str, Wrong] = {}
        self._asked: dict[str, Lease] = {}
        self._turn = 0
        self._doubted: dict[str, None] = {}  # those that what has moved may concern, and that were not asked for since
        self._basis: object = None
        self._rules: list[PolicyRule | None] = []

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await beat(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look once, and set what is wrong. Raises KernelError."""
        fragments = self._parts.reconciler.fragments
        carriage = self._steering.carriage
        if not fragments.has_target or carriage is None or not (carriage.devices or self._routes(HOST) or fragments.peer_count):
            for code in CODES:  # nobody's packets are carried here
                self._reporter.set(code, {})
            return
        ground = await self._survey(fragments.target, carriage.devices, carriage.mtu)
        await self._ask(ground)

    # ------------------------------------------------------------------------------------------------------ the host

    async def _survey(self, target: Target, devices: frozenset[str], mtu: int) -> Ground:
        local, families = target.local, sorted(target.local.config.families)
        bridges = {*BRIDGES, *(one.interface for one in self._parts.surroundings.underlay.own if one.bridge)} - devices
        uplink = local.uplink.name
        names = frozenset({*bridges, *devices, uplink})
        found = await self._kernel.facts(FactsQuery(names, default_routes=False))
        there = {interface.name: interface for interface in found.interfaces if interface.name in names}
        lease = local.lease
        halves = () if lease is None else (lease.subnet, lease.subnet6)
        overlay = Overlay(local.config.networks, tuple(net for net in halves if net is not None and net.prefixlen), mtu, devices)
        standing = [there[name] for name in sorted(bridges) if name in there and name != uplink]
        inward = [*sorted(devices), *(one.name for one in standing if overlay.serves(one))]
        settings = await self._kernel.settings(setting_names(families, [*inward, uplink]))
        bare = (route for key in self._parts.cluster.view.peers for route in self._routes(key))  # with nothing around its packets
        if settings.get(f"net/ipv4/conf/{uplink}/forwarding") == "0" and any(route.dev == uplink for route in bare):
            inward.append(uplink)
        off = not_forwarding(settings, families, inward)
        stale, elsewhere = bridges_astray(standing, overlay)
        self._reporter.set("forwarding-off", off)
        self._reporter.set("bridge-stale", stale)
        self._reporter.set("bridge-elsewhere", elsewhere)
        self._reporter.set("bridge-down", bridges_down(standing, overlay))
        self._reporter.set("bridge-mtu", mtus_too_large(standing, overlay))
        bridge = next((one for one in standing if one.up and overlay.serves(one)), None)
        filters = {name: setting for name in (*sorted(devices), uplink) if (setting := strict(settings, name))}
        details = [item.detail for item in target.backend.host(local) if isinstance(item, Link)]
        by_any_link = uplink in there and there[uplink].loopback
        bound = frozenset(detail.local.version for detail in details if isinstance(detail, Vxlan) and not by_any_link)
        return Ground(target, there, bridge, not off, filters, devices, bound)

    # ------------------------------------------------------------------------------------------------------ the peers

    async def _ask(self, ground: Ground) -> None:
        """Ask for the peers whose turn it is, and set what is wrong with the way to any."""
        peers = self._parts.cluster.view.peers
        self._wrong = {key: wrong for key, wrong in self._wrong.items() if key in peers}
        self._asked = {key: lease for key, lease in self._asked.items() if key in peers}
        moved = self._parts.facts.rerouted
        self._rules.clear()
        if (basis := (ground.bridge, ground.forwarding, ground.filters)) != self._basis:
            self._basis = basis
            moved.set()
        keys = self._whose_turn(peers)
        before = {key for key in keys if self._wrong.get(key)}
        host = self._routes(HOST)
        for at in range(0, len(keys), AT_ONCE):
            for key in keys[at : at + AT_ONCE]:
                if (lease := peers.get(key)) is not None and self._parts.reconciler.standing.why_not(key) is None:
                    self._wrong[key] = await self._way(ground, lease, [*self._routes(key), *host])
                    self._asked[key] = lease
                else:  # what the kernel has not taken is told elsewhere
                    self._wrong.pop(key, None)
            await asyncio.sleep(0)
        if any(not self._wrong.get(key) for key in before):
            moved.set()  # something was mended, of which nobody has told: for others, too, perhaps
        for code in ("route-astray", "reverse-path-filter"):
            self._reporter.set(code, _gathered(code, self._wrong.values()))

    def _whose_turn(self, peers: Mapping[str, Lease]) -> list[str]:
        """Those that are new or wrong, and some of the others; where something has moved all of them, a hundred a look."""
        keys = list(peers)
        if self._parts.facts.rerouted.is_set():
            self._parts.facts.rerouted.clear()
            self._doubted |= dict.fromkeys(keys)
        doubted = list(islice(self._doubted, DOUBTED))
        for key in doubted:
            del self._doubted[key]
        share = min(len(keys), max(1, int(PEERS_PER_S * LOOK_S)))
        start = self._turn % max(1, len(keys))
        self._turn = start + share
        turn = [*keys, *keys][start : start + share]
        new = [key for key in keys if self._asked.get(key) is not peers[key]]
        wrong = [key for key in keys if self._wrong.get(key)]
        asked = [key for key in doubted if key in peers] or [*new[: 10 * AT_ONCE], *turn]
        return list(dict.fromkeys([*wrong[:share], *asked]))

    async def _way(self, ground: Ground, lease: Lease, routes: list[Route]) -> Wrong:
        """What is wrong with the way to a peer, and back."""
        wrong: Wrong = {}
        addresses = [
            address for net in (lease.subnet, lease.subnet6) if net is not None and net.prefixlen for address in _some(net)
        ]
        questions = [(route, address) for address in addresses if (route := expected(routes, address)) is not None]
        found = await self._kernel.look_up([_lookup(address, ground) for _route, address in questions])
        for (route, address), answer in zip(questions, found, strict=True):
            lookup = _lookup(address, ground)
            astray = None if goes(route, answer) else await self._astray(ground, route, lookup, answer)
            if astray is not None:
                subject, words = detour(route, astray[0], f"{lease}", str(astray[1] or ""))
                wrong["route-astray", subject] = words
        wrong |= await self._outer(ground, lease)
        wrong |= await self._back(ground, lease, [address for address in addresses if address.version == 4][:1])
        return wrong

    async def _astray(self, ground: Ground, wanted: Route, asked: Lookup, answer: Found) -> tuple[Found, PolicyRule | None] | None:
        """What the look-up says, by which rule; where the question may be odd (a container's address that is none): ask plainly."""
        simple = Lookup(asked.dst)
        (plain,) = await self._kernel.look_up([simple])
        if not goes(wanted, plain):
            return plain, await self._rule(ground, simple, plain)
        rule = await self._rule(ground, asked, answer)
        told = not answer.code or answer.code in NO_WAY[asked.dst.version] or (rule is not None and rule.refuses)
        return (answer, rule) if told else None

    async def _rule(self, ground: Ground, lookup: Lookup, found: Found) -> PolicyRule | None:
        """The policy rule that has decided, None where that is none or not known: few are asked for in a look, each once."""
        if not ruled(found):
            return None
        arrives = ground.bridge.name if ground.bridge is not None and lookup.arrives else ""
        known = next((rule for rule in self._rules if rule is not None and rule.takes(lookup.dst, lookup.source, arrives)), None)
        if known is None and len(self._rules) < RULES:
            known = await self._kernel.policy_rule(lookup)
            self._rules.append(known)
        return known

    async def _outer(self, ground: Ground, lease: Lease) -> Wrong:
        """The way to the peer itself: by some link, and never by a device of ours."""
        outer = [address for address in (lease.public_ip, lease.attrs.public_ipv6) if address is not None and int(address)]
        wrong: Wrong = {}
        for address, answer in zip(outer, await self._kernel.look_up([Lookup(address) for address in outer]), strict=True):
            if answer.code:
                rule = await self._rule(ground, Lookup(address), answer)
                mend = f"a policy rule says so: {ip(address.version)} rule del {rule}" if rule else f"ip route get {address}"
                wrong["route-astray", f"to {address.version}"] = f"{lease}: no way to {address}: {mend}"
            elif answer.dev in ground.devices or (address.version in ground.bound and answer.dev not in ("", ground.uplink)):
                rule = await self._rule(ground, Lookup(address), answer)
                by_route = mend_outer(answer, address, ground.uplink, ground.devices)
                mend = f"a policy rule says so: {ip(address.version)} rule del {rule}" if rule else by_route
                text = f"{lease}: packets to {address} go by {answer}, not by the uplink {ground.uplink}: {mend}"
                wrong["route-astray", str(answer)] = text
        return wrong

    async def _back(self, ground: Ground, lease: Lease, inner: Iterable[IPAddress]) -> Wrong:
        """Would a strict reverse path filter take what the peer sends? The kernel is asked as it asks itself for each packet."""
        uplink = ground.target.local.uplink
        if not ground.filters or uplink.address is None:
            return {}
        questions = [
            (name, Lookup(uplink.address, source, ground.interfaces[name].index))
            for name in ground.filters
            if name in ground.interfaces
            for source in ([lease.public_ip] if name == uplink.name else inner)
            if int(source)
        ]
        answers = await self._kernel.look_up([lookup for _name, lookup in questions])
        dropped = [asked for asked, answer in zip(questions, answers, strict=True) if answer.code in FILTERED]
        back = await self._kernel.look_up([Lookup(lookup.source) for _name, lookup in dropped if lookup.source is not None])
        return {
            ("reverse-path-filter", name): filtered(name, ground.filters[name], f"{lookup.source} of {lease}")
            for (name, lookup), way in zip(dropped, back, strict=True)
            if way.code or way.dev not in ("", name)
        }

    def _routes(self, owner: str) -> list[Route]:
        fragment = self._parts.reconciler.fragments.desired.fragment(owner)
        return [item for item in fragment if isinstance(item, Route) and item.kind == "unicast"]


def _some(net: IPNetwork) -> Iterator[IPAddress]:
    """Two addresses of a peer's subnet, one in each half: what takes a half elsewhere is seen."""
    yield IPAddress(net.first + 1, net.version)
    if net.last - net.first > 3:
        yield IPAddress(net.last - 1, net.version)


def _lookup(address: IPAddress, ground: Ground) -> Lookup:
    """As a container of ours sends it, so that rules about where packets come from are asked, too; plainly where there are none."""
    lease = ground.target.local.lease
    net = None if lease is None else lease.subnet if address.version == 4 else lease.subnet6
    if ground.bridge is None or not ground.forwarding or net is None or net.last - net.first < 8:
        return Lookup(address)
    return Lookup(address, IPAddress(net.last - 2, net.version), ground.bridge.index)


def _gathered(code: str, found: Iterable[Wrong]) -> dict[str, str]:
    """One cause is one condition, however many peers it concerns: the first, and how many more."""
    first: dict[str, str] = {}
    more: dict[str, int] = {}
    for wrong in found:
        for (its, subject), words in wrong.items():
            if its == code:
                more[subject] = more.get(subject, -1) + 1
                first.setdefault(subject, words)
    return {its: words + (f" (and {about(more[its])} more peers)" if more[its] else "") for its, words in first.items()}
