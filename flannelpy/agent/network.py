"""What runs for one network on this host? The parts, made once for as long as the process lives, and their tasks in one group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from netaddr import IPNetwork

from flannelpy.agent.beat import beat
from flannelpy.agent.beside import Retirement
from flannelpy.agent.carriage import Carriage
from flannelpy.agent.cluster import Cluster
from flannelpy.agent.context import Context
from flannelpy.agent.datapath import DatapathSupervisor
from flannelpy.agent.departures import EXPIRED, LEAVING, RESET
from flannelpy.agent.events import PeerEvents
from flannelpy.agent.facts import Facts
from flannelpy.agent.firewall_watch import FirewallWatch
from flannelpy.agent.flag import show
from flannelpy.agent.forwarding import Forwarding
from flannelpy.agent.guarded import guarded
from flannelpy.agent.host_watch import HostWatch
from flannelpy.agent.introduction import introduce
from flannelpy.agent.kept import recall, whole_view
from flannelpy.agent.migration import Migration
from flannelpy.agent.node import announce
from flannelpy.agent.offers import Offers
from flannelpy.agent.parts import Parts
from flannelpy.agent.phase import Phase
from flannelpy.agent.preparation import Preparation
from flannelpy.agent.probe_targets import aiming, reaches
from flannelpy.agent.probes import Probes
from flannelpy.agent.publish import Publisher
from flannelpy.agent.steering import Steering
from flannelpy.agent.surroundings import Surroundings
from flannelpy.agent.sync.audit import audit, look_anew
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.errors import RegistryError
from flannelpy.core.model import Lease
from flannelpy.core.objects import Scope
from flannelpy.explain.events import REPAIRED
from flannelpy.kernel import Notices
from flannelpy.registry.health import RegistryHealth
from flannelpy.registry.monitored import Monitored, MonitoredNode

log = logging.getLogger("flannelpy")

TURNS = 10
"""Of the loop, in which who listens to the kernel begins anew."""

LIVENESS_S = 1.0
RELEASE_S = 3.0


class Network:
    """One host in one network. ``run`` is all there is to call."""

    def __init__(self, context: Context) -> None:
        self.registry_health = RegistryHealth(context.registry, context.reporter, context.clock)
        registry = Monitored(context.registry, self.registry_health)
        assigned = None if context.assigned is None else MonitoredNode(context.assigned, self.registry_health)
        context = self.context = replace(context, registry=registry, assigned=assigned)
        kept = self._kept = recall(context)
        self.facts = Facts(context.kernel, context.wish, context.reporter)
        self.cluster = Cluster(context, wake=lambda: self.steering.changed.set())
        self.reconciler = Reconciler(
            context.kernel,
            context.reporter,
            self.cluster.cursor(lambda: self.reconciler.dirty.poke()),
            self.facts,
            context.clock,
            before_round=self._before_round,
            nexthops=context.settings.nexthop_objects,
        )
        feed = self.cluster.cursor(lambda: self.datapath.feed())
        self.datapath = DatapathSupervisor(context.reporter, context.fd_store, feed, partial(look_anew, self.reconciler))
        self.publisher = Publisher(context, self._uses, next(iter(kept.previous), None))
        self._came_and_went = asyncio.Event()
        self._peers = self.cluster.cursor(self._came_and_went.set)
        self.reconciler.repairs.listener = lambda subject, text: context.events.keep(REPAIRED, subject, text)
        forwarding = Forwarding(context.kernel, context.reporter, self._change_firewall)
        surroundings = Surroundings(context, self.facts, wake=lambda: self.steering.changed.set())
        preparation = Preparation(context.reporter, wake=lambda: self.steering.changed.set())
        aim = aiming(context.settings, lambda: self.steering, self.facts, lambda: self.publisher.ready)
        probed = self.cluster.cursor(lambda: None)
        probes = Probes(context, probed, aim, partial(reaches, self.reconciler, self.datapath))
        offers = Offers(context, self.cluster, wake=lambda: self.steering.changed.set())
        retirement = Retirement(lambda: self.steering.again(), none=context.settings.prefer == "none")
        migration = Migration(context, self.reconciler, self.cluster, self.datapath, lambda: self.steering.again())
        running = (self.cluster, self.reconciler, self.datapath, self.publisher, retirement, migration, offers)
        self._parts = Parts(self.facts, surroundings, *running, forwarding, preparation, probes)
        self.steering = Steering(context, kept, self._parts)
        self._notices: Notices | None = None
        self._scope = Scope()

    @property
    def probes(self) -> Probes:
        """Who asks the peers whether they are there."""
        return self._parts.probes

    @property
    def ready(self) -> bool:
        """True once the subnet file has been written."""
        return self.publisher.ready

    async def run(self) -> None:
        """Take a lease, program the kernel, and keep both, until cancelled. Raises EndAgentError."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in self._tasks():
                    tasks.create_task(guarded(name, work, self.context.reporter), name=name)
        finally:
            if self._notices is not None:
                self._notices.close()
            await self.publisher.close()

    def _tasks(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        yield "notices", self._listen
        yield "steering", self.steering.run
        yield "underlay", self._parts.surroundings.run
        yield "introduction", partial(introduce, self.context.kernel, self.facts)
        yield "registry", self.cluster.follow
        yield "first knowledge", self._begin
        yield "relist", self.cluster.relist
        yield "departures", self.cluster.departures.run
        yield "lease", self._keep_lease
        yield "offer", self._parts.offers.publish
        yield "offers", self._parts.offers.listen
        yield "migration", partial(self._parts.migration.run, self._standing)
        yield "preparation", self._parts.preparation.run
        yield "datapath", self.datapath.run
        yield "reconcile", self.reconciler.run
        yield "audit", partial(audit, self.reconciler)
        if self.context.settings.forward_rules:
            yield "forwarding", self._parts.forwarding.run
        yield "host watch", HostWatch(self.context.kernel, self.context.reporter, self._parts, self.steering).run
        watched = (self.context.kernel, self.context.reporter, self._parts, self.steering, self.context.clock)
        yield "firewall watch", FirewallWatch(*watched).run
        if self.context.assigned is not None:
            yield "announcement", partial(announce, self.context, self.context.assigned, self._carried)
        yield "flag", partial(show, self.context.settings.run_dir, self.carries)
        yield "publish", self._publish
        yield "files", self.publisher.run
        yield "liveness", self._watch_liveness
        yield "probes", self.probes.run
        yield "events", self._follow_peers

    def carries(self) -> bool:
        """True while this host is ready: the subnet file is there, and no condition speaks against it."""
        return self.ready and not self.context.reporter.health.blocks_ready

    async def release(self) -> None:
        """Give the lease back, so that another host may have the subnet at once; for a host that does not return."""
        keeper = self.steering.keeper
        lease = keeper.held if keeper is not None and keeper.held is not None else self.steering.lease
        if lease is None or lease.reserved:  # a reservation is given back by a person: flannelpy lease release
            return
        try:
            async with asyncio.timeout(RELEASE_S):
                await self.context.registry.release(lease)
            log.info("released %s", lease)
        except (RegistryError, TimeoutError) as error:
            log.warning(
                "%s could not be released: %s; it ends by itself",
                lease,
                error or f"{self.context.settings.registry_name} does not answer",
            )
        with suppress(OSError):
            self.context.settings.subnet_file.unlink(missing_ok=True)  # or the next cluster's first start would ask for it (F34)

    def audit(self) -> None:
        """Look at everything once more, now."""
        self.facts.stale = self._parts.surroundings.stale = True
        self.steering.changed.set()
        self.reconciler.resync()
        self.cluster.doubt()

    # ------------------------------------------------------------------------------------------------------- tasks

    async def _begin(self) -> None:
        """Begin with what was kept on disk where etcd does not answer in time, or where packets wait."""
        context, kept, listed = self.context, self._kept, self.cluster.listed
        waiting = bool(context.fd_store.names)
        if kept.own is not None:
            if not waiting:
                await _within(context.timeouts.offline_s, listed)
            if not listed.is_set() and (view := whole_view(context.settings)) is not None and view.own is not None:
                self.cluster.restore(view.config, view.leases, view.revision)
                self.steering.advance(Phase.RESUMED if waiting else Phase.FROM_DISK)
                if waiting:
                    await _within(context.timeouts.offline_s, listed)
                if not listed.is_set():
                    self.steering.advance(Phase.FROM_DISK)
                    context.reporter.begin("view-stale", f"{len(view.leases)} leases as of revision {view.revision}")
        await listed.wait()
        context.reporter.end("view-stale")
        self.steering.changed.set()

    def _change_firewall(self) -> None:
        self.reconciler.fragments.change_firewall()
        self.reconciler.dirty.poke()

    def _carried(self) -> Lease | None:
        """What our node was given, if it is carried, and the subnet file says so."""
        keeper = self.steering.keeper
        held = None if keeper is None or keeper.lost else keeper.held
        return held if held is not None and self.publisher.says(held.key) else None

    def _standing(self) -> tuple[Carriage | None, Lease | None, Lease | None]:
        keeper = self.steering.keeper
        return self.steering.carriage, self.steering.lease, None if keeper is None else keeper.held

    async def _keep_lease(self) -> None:
        await self.steering.known.wait()
        assert self.steering.keeper is not None
        await self.steering.keeper.run()

    async def _listen(self) -> None:
        """Hear what the kernel says; each part of a notice goes to whom it concerns."""
        while True:
            scope = self._scope = self.steering.scope
            notices = self._notices = self.context.kernel.notices(scope)
            self.reconciler.resync()  # nobody has heard what happened before
            try:
                async for notice in notices:
                    if self.facts.hear(notice) | self._parts.surroundings.hear(notice):
                        self.steering.changed.set()
                    if moved := self.facts.take_moved():
                        self.reconciler.reroute(moved)
                    self.reconciler.hear(notice)
            finally:
                notices.close()

    async def _before_round(self) -> None:
        """What is about to become ours is heard of before it does: to be heard later would take a second look at everything."""
        await self.steering.settle()
        if self._notices is not None and not self.reconciler.settled and self.steering.scope != self._scope:
            self._notices.close()
            for _ in range(TURNS):
                if self.steering.scope == self._scope:
                    break
                await asyncio.sleep(0)

    async def _publish(self) -> None:
        """Let others know when the kernel carries what it should."""
        while True:
            await self.reconciler.after_round()
            steering, reconciler = self.steering, self.reconciler
            if steering.carried is None or not reconciler.settled:
                continue
            carriage, lease = steering.carried
            if steering.phase.may_publish and self.datapath.may_publish and not reconciler.standing.host_failed:
                self.publisher.publish(lease, carriage, reconciler.fragments.peer_count)
            if steering.phase.may_sweep and not reconciler.standing.left_over:
                steering.swept()
            if self._notices is not None and steering.scope != self._scope:
                self._notices.close()  # and listen for what is ours now

    async def _watch_liveness(self) -> None:
        """Say so when etcd goes silent, and when it is back."""
        while True:
            self.registry_health.link_down(self.facts.down)
            self.registry_health.look(self.context.clock())
            self.context.lateness.observe(await beat(LIVENESS_S))

    async def _follow_peers(self) -> None:
        """Note which peers come, go and move, from the first lease on."""
        await self.steering.known.wait()
        self._peers.rewind()
        events = PeerEvents(self.context.events, self._why_none, self.cluster.names.of)
        while True:
            events.take(self._peers.take())
            await self._came_and_went.wait()
            self._came_and_went.clear()

    def _why_none(self, key: str) -> str:
        """Why the lease under ``key`` is no peer's any more."""
        fate = self.cluster.departures.fates.pop(key, LEAVING)
        if key in self.cluster.view.leases:
            why = self.cluster.refused.get(key, "")
            return f"excluded: {why.partition(': ')[2] or why}" if why else "its subnet or address is ours now"
        return {EXPIRED: "its lease has ended", RESET: f"{self.context.settings.registry_name} has lost its lease"}.get(
            fate, "its key was deleted"
        )

    async def _uses(self, subnet: IPNetwork) -> bool:
        """True where an interface of this host has an address in ``subnet``, as a bridge that was made for it has."""
        found = await self.facts.underlay(frozenset())
        return any(net in subnet for net, _interface in found.networks)


async def _within(seconds: float, event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
