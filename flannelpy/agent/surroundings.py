"""What is around the overlay on this host, that it cannot do without? Its addresses, gateways, resolver and etcd: looked at when
something of it may be another one, and never covered by a route of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf

from netaddr import IPNetwork

from flannelpy.agent.context import Context
from flannelpy.agent.facts import Facts
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.model import Lease
from flannelpy.core.objects import Key, Scope
from flannelpy.core.plan import Step, removable
from flannelpy.core.pool import overlap
from flannelpy.core.underlay import Shield, Underlay
from flannelpy.host.resolver import nameservers
from flannelpy.kernel import Notice

log = logging.getLogger("flannelpy")

UNKNOWN_S = 5.0
"""While nobody says where etcd is, whose name is all that is known."""


ADDRESSES_S = 3.0
"""Addresses of others come and go with their containers: for their sake it is looked no more often than this."""


class Surroundings:
    """The underlay as it was last seen. ``stale``: it may be another one now; ``wake`` is called where only we know of that."""

    def __init__(self, context: Context, facts: Facts, wake: Callable[[], None]) -> None:
        self.underlay = Underlay()
        self.stale = True
        self._context = context
        self._facts = facts
        self._wake = wake
        self._looked = -inf
        self._again: asyncio.TimerHandle | None = None

    def hear(self, notice: Notice) -> bool:
        """Take in what the kernel says of the host; True where it may be another one now."""
        concerned = notice.lost or notice.default_route
        if notice.addressed and not concerned:
            later = self._looked + ADDRESSES_S - self._context.clock()
            if later > 0:
                if self._again is None:
                    self._again = asyncio.get_running_loop().call_later(later, self._doubt)
            else:
                concerned = True
        self.stale = self.stale or concerned
        return concerned

    def _doubt(self) -> None:
        self._again, self.stale = None, True
        self._wake()

    async def look(self, ours: frozenset[str], bridges: Iterable[IPNetwork]) -> bool:
        """See anew; ``ours`` are our own devices, ``bridges`` subnets of ours. True where it is another one. Raises KernelError."""
        self.stale, self._looked = False, self._context.clock()
        try:
            etcd = await self._context.registry.addresses()
            resolvers = await asyncio.to_thread(nameservers, self._context.settings.resolver_file)
            others = [
                *((each, self._context.settings.registry_name.value) for each in sorted(etcd)),
                *((each, "the resolver") for each in resolvers),
            ]
            underlay = await self._facts.underlay(ours, bridges, [each for each in others if not each[0].is_loopback()])
        except BaseException:
            self.stale = True
            raise
        before, self.underlay = self.underlay, underlay
        return before != underlay

    async def run(self) -> None:
        """Ask again now and then, for ever: of a name or a file that says something else now nobody tells. With chance in it: hosts
        that were switched on together would ask one resolver together for ever.
        """
        chance = self._context.random.uniform
        while True:
            known = await self._context.registry.addresses()
            await asyncio.sleep(self._context.relist_after(0) if known else chance(0.8, 1.0) * UNKNOWN_S)
            self.stale = True
            self._wake()

    def shield(self, networks: Iterable[IPNetwork]) -> Shield:
        """What of it lies inside these networks, and is kept out of them."""
        return Shield.of(self.underlay, networks)

    def keep_out(self, reconciler: Reconciler) -> None:
        """Have no route cover any of it; what lies outside of the networks, where containers come and go, makes none anew."""
        if reconciler.fragments.has_target:
            target = reconciler.fragments.target
            if (shield := self.shield(target.local.config.networks)).kept != target.shield.kept:
                reconciler.set_target(replace(target, shield=shield))

    def report(self, networks: tuple[IPNetwork, ...], lease: Lease | None) -> None:
        """Where Network covers any of it, packets for it may go astray; where our own subnet does, they do."""
        own = [(net, f"{net} on {interface}") for net, interface in self.underlay.networks]
        own += [(IPNetwork(address), f"{address}, {what}") for address, what in self.underlay.others]
        covered = dict.fromkeys(words for net, words in own if any(overlap(net, whole) for whole in networks))
        text = f"{' and '.join(map(str, networks))} and {', '.join(covered)}"
        self._context.reporter.set("network-overlap", {"": text} if covered else {})
        shield = self.shield(networks)
        halves = () if lease is None else (lease.subnet, lease.subnet6)
        cut = {str(net): f"{net} and {words}" for net in halves if net is not None and (words := shield.covered(net))}
        self._context.reporter.set("subnet-overlap", cut)

    async def clear_the_way(self, scope: Scope) -> None:
        """Take away what an earlier run has left and covers any of it: etcd may be out of reach for that very reason.

        Raises KernelError.
        """
        shield, kernel = self.shield(scope.networks), self._context.kernel
        if not shield.kept:
            return
        try:
            found = await kernel.observe(scope, [Key("route", "")])
            crossing = [(route, words) for route, words in shield.crossing(found) if removable(route, scope)]
            results = await kernel.apply([Step("remove", route, route) for route, _words in crossing])
        except BaseException:
            self.underlay, self.stale = Underlay(), True  # as if it had not been seen: there is something to do about it
            raise
        for (_route, words), result in zip(crossing, results, strict=True):
            log.warning("%s, in the way to %s%s", result.step, words, f": {result.error}" if result.error else "")
