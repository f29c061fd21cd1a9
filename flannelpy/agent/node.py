"""What is this host, once its config and uplink are known? The parts built for that situation, and their tasks in one group."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress

from netaddr import IPNetwork

from flannelpy.agent.catch_up import catch_up
from flannelpy.agent.cluster import Cluster, report_life
from flannelpy.agent.firewall import compose, speaks_of_peers
from flannelpy.agent.identity import stable_macs
from flannelpy.agent.keeper import Keeper
from flannelpy.agent.publish import Publisher
from flannelpy.agent.reconcile import Reconciler
from flannelpy.agent.scope import find_scope, fou_ports
from flannelpy.agent.start import Situation, SituationChangedError, can_become, choose_uplink
from flannelpy.agent.supervise import DatapathSupervisor, make_way
from flannelpy.agent.surroundings import Surroundings
from flannelpy.agent.tell import Parts
from flannelpy.core import lease_events as ev
from flannelpy.core.backend import Local
from flannelpy.core.config import differences
from flannelpy.core.errors import ConfigError, FlannelpyError, MalformedError, NoUplinkError, RegistryError
from flannelpy.core.leasing import Leasing
from flannelpy.core.membership import Changes, Membership
from flannelpy.core.model import Lease, parse_subnet_key
from flannelpy.core.objects import HostState, Key
from flannelpy.host import state as state_file
from flannelpy.host import subnet_env
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView
from flannelpy.plugins import parse
from flannelpy.registry import ConfigChanged, Deleted, Event, Malformed, Put, Snapshot

log = logging.getLogger("flannelpy")

LIVENESS_S = 1.0
KEEP_VIEW_S = 5.0
RELEASE_S = 3.0


class Node:
    """One host in one network. ``run`` is all there is to call."""

    def __init__(self, around: Surroundings, situation: Situation) -> None:
        self._around = around
        self._situation = situation
        self._lease: Lease | None = None
        self._held = asyncio.Event()
        self._lost = False
        self._may_publish = not situation.resumed
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kept = _read_state(around)
        self._previous = subnet_env.read(around.settings.subnet_file)
        for reason in self._previous.skipped:
            log.warning("%s", reason)
        config, backend, reporter = situation.config, situation.backend, around.reporter
        self._scope = find_scope(situation, self._kept, around.settings.endpoint.prefix)
        self._reconciler = Reconciler(
            around.kernel, backend, self._scope, reporter, on_settled=self._on_settled, on_facts=self._on_facts
        )
        self._pump = DatapathSupervisor(
            backend,
            reporter,
            around.fd_store,
            peers=lambda: self._cluster.membership.peers,
            make_way=lambda local: make_way(around.kernel, self._scope, backend.host(local)),
            on_open=self._reconciler.dirty.add_everything,
        )
        self._publisher = Publisher(around.settings, situation, reporter, around.notifier, on_moved=self._on_moved)
        self._cluster = Cluster(
            around.registry,
            Membership(config, backend.accepts, address=situation.uplink.public_ip),
            reporter,
            around.patience,
            on_peers=self._on_peers,
            on_event=self._on_event,
            on_listed=self._on_listed,
            on_reset=lambda: self._tell(ev.OwnDeleted()),  # revisions start over: our key may be gone whatever they say
            on_reconnect=lambda: self._tell(ev.Reconnected()),
        )
        self._view_changed = asyncio.Event()
        self._facts_changed = asyncio.Event()
        self._macs: dict[str, str] = {}
        self._keeper: Keeper | None = None

    @property
    def ready(self) -> bool:
        """True once the subnet file has been written."""
        return self._publisher.ready

    @property
    def has_datapath(self) -> bool:
        """True where packets are moved by a process of ours, and stop with it."""
        return self._pump.has_datapath

    @property
    def parts(self) -> Parts:
        """What there is to tell of."""
        told = (self._situation, self._cluster, self._reconciler, self._pump, self._keeper)
        return Parts(*told, self._lease, self._lost, self._publisher.ready)

    async def run(self) -> None:
        """Take a lease, program the kernel, and keep both, until cancelled. Raises SituationChangedError."""
        kept = self._situation.kept
        notices = self._around.kernel.notices(self._scope)  # before the first look, so that nothing falls between
        try:
            if kept is None:
                await self._cluster.begin()
            else:
                self._cluster.restore(kept.leases, kept.revision)
            self._macs = await self._find_macs()
            async with asyncio.TaskGroup() as tasks:
                for name, work in (
                    ("registry", self._follow_registry()),
                    ("uplink", self._watch_uplink()),
                    ("view", self._keep_view()),
                    ("pumps", self._pump.run()),
                    ("notices", self._reconciler.listen(notices)),
                    ("audit", self._reconciler.audit()),
                    ("reconcile", self._reconcile()),
                    ("end", _follow_end(self._end)),
                ):
                    tasks.create_task(work, name=name)
                if kept is not None and kept.own is not None:
                    self._take(kept.own)
        finally:
            notices.close()
            self._cluster.close()
            if self._lease is not None:
                self._write_view()

    async def release(self) -> None:
        """Give the lease back, so that another host may have the subnet at once; for a host that does not return."""
        if self._lease is None or self._lease.reserved:  # a reservation is given back by a person: flannelpy lease release
            return
        try:
            async with asyncio.timeout(RELEASE_S):
                await self._around.registry.release(self._lease)
            log.info("released %s", self._lease)
        except (RegistryError, TimeoutError) as error:
            log.warning("%s could not be released: %s; it ends by itself", self._lease, error or "etcd does not answer")
        with suppress(OSError):
            self._around.settings.subnet_file.unlink(missing_ok=True)  # or the next cluster's first start would ask for it (F34)

    # ------------------------------------------------------------------------------------------------------- start

    async def _find_macs(self) -> dict[str, str]:
        """The MACs of our devices; see ``identity``."""
        config, backend, uplink = self._situation.config, self._situation.backend, self._situation.uplink
        known = self._cluster.membership.leases.values()
        ours = [lease for lease in known if lease.public_ip == uplink.public_ip and lease.attrs.backend_type == backend.name]
        devices = backend.devices(config)
        existing = (
            await self._around.kernel.observe(self._scope, [Key("link", name) for name in devices]) if devices else HostState()
        )
        return stable_macs(backend, config, ours[0] if ours else None, self._kept.macs, existing)

    def _make_keeper(self) -> Keeper:
        around, situation = self._around, self._situation
        machine = Leasing(
            situation.config,
            situation.backend.attrs(Local(situation.config, situation.uplink, macs=self._macs)),
            random.Random(),
            previous=self._previous_subnets(),
            ttl_s=around.settings.lease_ttl_s,
            renew_margin_s=around.settings.renew_margin_s,
        )
        return Keeper(
            machine,
            around.registry,
            around.reporter,
            around.clock,
            refresh=self._cluster.refresh,
            on_hold=self._on_hold,
            on_lost=self._on_lost,
        )

    def _previous_subnets(self) -> list[IPNetwork]:
        found = [self._previous.subnet, self._previous.subnet6]
        if self._kept.lease_key:
            try:
                found += parse_subnet_key(self._kept.lease_key)
            except MalformedError as error:
                log.warning("%s: %s", self._around.settings.state_dir, error)
        return [net for net in found if net is not None]

    # ---------------------------------------------------------------------------------------------- what happens

    def _on_hold(self, lease: Lease) -> None:
        """We hold this now; the same one again after each renewal."""
        before, self._lease = self._lease, lease
        if before is None or before.key != lease.key:
            self._take(lease, before)
        elif self._lost:
            log.info("lease %s is ours again", lease)
        self._lost = False
        self._reconciler.allow_sweep()
        self._view_changed.set()

    def _on_lost(self) -> None:
        self._lost = True

    def _take(self, lease: Lease, before: Lease | None = None) -> None:
        """Build everything on this lease."""
        self._lease = lease
        if before is None:
            log.info("lease %s%s", lease, ", a reservation" if lease.reserved else "")
        else:
            log.warning("our subnet is %s now, it was %s", lease.subnet, before.subnet)
        situation, config = self._situation, self._situation.config
        local = Local(config, situation.uplink, lease, self._macs)
        self._cluster.note_own(self._cluster.membership.set_own(lease))
        self._reconciler.set_local(local)
        self._reconciler.set_firewall(lambda: self._firewall(lease))
        self._pump.set_local(local)
        devices, networks = tuple(situation.backend.devices(config)), tuple(map(str, config.networks))
        ports = tuple(sorted(fou_ports(situation.backend)))
        self._publisher.keep(State(self._around.settings.endpoint.prefix, self._macs, lease.key, networks, devices, ports))
        self._held.set()

    def _on_moved(self, before: Lease, lease: Lease) -> None:
        """The subnet file tells of another subnet than before."""
        if self._around.settings.exit_on_subnet_change and not self._end.done():
            text = f"our subnet is {lease.subnet} now, it was {before.subnet}: ending, as --exit-on-subnet-change asks"
            self._end.set_exception(FlannelpyError(text))

    def _firewall(self, lease: Lease) -> HostState:
        peers = self._cluster.membership.peers
        return compose(self._around.settings, self._situation, self._scope.table, lease, tuple(peers.values()))

    def _on_peers(self, changes: Changes) -> None:
        self._view_changed.set()
        self._reconciler.set_peers(changes.peers)
        if speaks_of_peers(self._situation.backend):
            self._reconciler.renew_firewall()
        self._pump.update(changes.peers)

    def _on_listed(self, snapshot: Snapshot) -> None:
        """A listing that the keeper did not ask for is welcome to it all the same."""
        self._tell(ev.Overheard(snapshot.leases, snapshot.revision, snapshot.defaced))

    def _tell(self, event: ev.Event) -> None:
        if self._keeper is not None:
            self._keeper.tell(event)

    def _on_event(self, event: Event) -> None:
        match event:
            case ConfigChanged(text):
                self._on_config(text)
            case Put(lease):
                self._tell(ev.OwnPut(lease))
            case Malformed(key, _, revision):
                self._tell(ev.OwnDefaced(key, revision))
            case Deleted(key, revision) if self._keeper is not None:
                if self._lease is not None and key == self._lease.key:
                    self._keeper.tell(ev.OwnDeleted(revision))
                else:
                    with suppress(MalformedError):  # then it never was a lease
                        self._keeper.tell(ev.SubnetFreed(*parse_subnet_key(key)))
            case _:
                pass

    def _on_config(self, text: str | None) -> None:
        """The config was written: taken over where that loses nothing, told where it would need a restart."""
        reporter, situation = self._around.reporter, self._situation
        try:
            config, backend = parse(text, self._around.settings.host_options)
        except ConfigError as error:
            reporter.begin("config-changed", f"it {error}" if text is None else str(error))
            return
        told = "; ".join(differences(situation.config, config))
        if not told:
            reporter.end("config-changed")
        elif self._lease is not None and can_become(situation, self._lease, config, backend):
            log.info("the network config has changed, and is taken over: %s", told)
            reporter.end("config-changed")
            if not self._end.done():
                self._end.set_exception(SituationChangedError(told))
        else:
            reporter.begin("config-changed", told)

    def _on_settled(self) -> None:
        """A round is over; after the first full one, the kernel carries what it can."""
        if self._lease is not None and self._may_publish and not self._reconciler.host_failed:
            self._publisher.publish(self._lease, self._reconciler.peer_count)

    def _on_facts(self) -> None:
        self._facts_changed.set()

    # ------------------------------------------------------------------------------------------------------- tasks

    async def _follow_registry(self) -> None:
        """Keep the lease and follow the others; after a start without etcd, when it answers."""
        await catch_up(self._around, self._situation, self._cluster.begin, self._allow_publishing)
        keeper = self._keeper = self._make_keeper()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keeper.run(), name="lease")
            tasks.create_task(self._cluster.follow(), name="watch")
            tasks.create_task(self._cluster.relist(), name="relist")
            tasks.create_task(self._cluster.explain(), name="departures")
            tasks.create_task(self._watch_liveness(), name="liveness")

    def _allow_publishing(self) -> None:
        self._may_publish = True
        if self._reconciler.settled:
            self._on_settled()

    async def _keep_view(self) -> None:
        """Keep what we know of the cluster on disk, soon after it has changed."""
        while True:
            await self._view_changed.wait()
            self._view_changed.clear()
            if self._lease is not None and self._keeper is not None:
                self._write_view()
                await asyncio.sleep(KEEP_VIEW_S)

    def _write_view(self) -> None:
        lease = self._lease
        if lease is None or self._keeper is None:
            return  # nothing that etcd has confirmed
        leases = {**self._cluster.membership.leases, lease.key: lease}
        prefix = self._around.settings.endpoint.prefix
        view = KeptView(prefix, self._situation.text, lease.key, tuple(leases.values()), self._cluster.revision)
        self._publisher.keep_view(view)

    async def _reconcile(self) -> None:
        await self._held.wait()
        await self._pump.tried.wait()  # a pump's device is there before its addresses and routes
        await self._reconciler.run()

    async def _watch_liveness(self) -> None:
        """Say so when etcd goes silent, and when it is back."""
        while True:
            await asyncio.sleep(LIVENESS_S)
            report_life(self._around.reporter, self._around.registry)

    async def _watch_uplink(self) -> None:
        """Say so when the choice of uplink would be another one today."""
        reporter, situation = self._around.reporter, self._situation
        while True:
            await self._facts_changed.wait()
            self._facts_changed.clear()
            try:
                uplink = (await choose_uplink(self._around.kernel, self._around.wish, situation.config)).uplink
            except NoUplinkError as error:
                reporter.begin("uplink-changed", str(error))
                continue
            if uplink == situation.uplink:
                reporter.end("uplink-changed")
            else:
                reporter.begin("uplink-changed", f"{situation.uplink.name} became {uplink}")


async def _follow_end(end: asyncio.Future[None]) -> None:
    """Raise what ends the node."""
    await end


def _read_state(around: Surroundings) -> State:
    try:
        return state_file.read(around.settings.state_dir, around.settings.endpoint.prefix)
    except FlannelpyError as error:
        around.reporter.begin("state-dir", str(error))
        return State()
