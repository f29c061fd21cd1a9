"""What does this host carry the overlay by, now? It follows from three things that may change at any time: the network config,
the host (its uplink), and the lease. Whatever changed, the answer is worked out anew and swapped in: no restart, and the same lease
where it fits.

Everything here looks at how things are, never at what happened: it may be called too often, and in any order.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from flannelpy.agent.carriage import Carriage, clamped, introduce, parsed
from flannelpy.agent.context import Context
from flannelpy.agent.copies import Copies
from flannelpy.agent.keeping import Keeping, keep
from flannelpy.agent.kept import Kept, view_of
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.making import Making, note_changes, that_fits
from flannelpy.agent.ownership import Ownership
from flannelpy.agent.parts import Parts
from flannelpy.agent.phase import Phase
from flannelpy.agent.sync.firewall import Firewall
from flannelpy.agent.sync.fragments import Target
from flannelpy.core.errors import ConfigError, LackingError
from flannelpy.core.model import Lease
from flannelpy.core.objects import Scope
from flannelpy.host.machine import machine
from flannelpy.host.view_file import KeptView

log = logging.getLogger("flannelpy")


class Steering:
    """``carriage`` is what the host carries the overlay by, ``lease`` what it does so for; None until both are known."""

    def __init__(self, context: Context, kept: Kept, parts: Parts) -> None:
        self.phase = Phase.WAITING
        self.carriage: Carriage | None = None
        self.lease: Lease | None = None
        self.keeper: Keeping | None = None
        self.known = asyncio.Event()
        """Set once there is a carriage, and a keeper for its lease."""
        self.changed = asyncio.Event()
        """Something may have changed: ``steer`` is due."""
        self.changed.set()
        self._context = context
        self._kept = kept
        self._parts = parts
        self._ownership = Ownership(context, kept.state, parts.publisher.keep)
        self._text: tuple[str | None] | None = None  # the config that ``carriage`` follows from, or is no use; None: untried
        self._carried: tuple[Carriage, Lease] | None = None  # what the reconciler was handed
        self._copies = Copies(HostKeys(context), parts.cluster.cursor, self.changed.set)
        self._lock = asyncio.Lock()

    @property
    def scope(self) -> Scope:
        """Where in the kernel what is ours may be."""
        return self._ownership.scope(self.carriage)

    async def run(self) -> None:
        """Steer whenever something has changed, for ever."""
        while True:
            await self.changed.wait()
            await self.steer()

    async def settle(self) -> None:
        """Take in what the kernel has said of the host, before somebody acts on what was true before it."""
        if (self._parts.facts.stale or self._parts.surroundings.stale) and self.carriage is not None:
            await self.steer()

    async def steer(self) -> None:
        """Work out what to carry by, and swap it in where it is something else. Raises KernelError; then it is due again."""
        async with self._lock:
            self.changed.clear()
            try:
                await self._look_around()
                await self._resolve()
                await self._carry()
            except BaseException:
                self.changed.set()
                raise

    def again(self) -> None:
        """Work it out once more, whatever has not changed."""
        self._text = None
        self.changed.set()

    def advance(self, phase: Phase) -> None:
        """We are surer now, or (``Phase.RESUMED``, ``FROM_DISK``) have begun without etcd."""
        if phase is not self.phase:
            self.phase = phase
            self._parts.reconciler.allow_sweep(phase.may_sweep)
            self._parts.reconciler.resync()
            self.changed.set()

    # ------------------------------------------------------------------------------------------- config and host

    async def _resolve(self) -> None:
        """Bring ``carriage`` up to config and host."""
        cluster, facts, reporter = self._parts.cluster, self._parts.facts, self._context.reporter
        text, before, earlier = cluster.config_text, self.carriage, self.carriage
        followed = before is not None and (text,) == self._text and not facts.stale
        if followed or (not cluster.listed.is_set() and self.phase is Phase.WAITING):
            return
        self._text, where = (text,), self._context.settings.config_place
        try:
            wanted = parsed(self._context.settings, text)
            another = await facts.look(wanted[0], self._devices)
            self._parts.surroundings.stale |= another or before is None
            if facts.uplink is None or (before is None and facts.missing):
                return
            if before is not None and facts.missing and wanted[0].families != before.config.families:
                raise ConfigError(facts.missing)  # of one of these families; of those before there may be one
            if before is None:
                self._disown()
            prepared = self._parts.preparation.of(wanted[1])
            if prepared is None:
                self._text = None  # goes on from here when it is done
                await self._stay(before)
                return
            known, own = self._ownership.state, self.lease or self._kept.own
            if before is None:
                earlier = await self._making.recall(self._kept.view, wanted, known)
            carriage = await self._making.make(text or "", wanted, prepared.text, known, own, (before, earlier))
            words = ""
        except ConfigError as error:
            if isinstance(error, LackingError):
                self._ownership.ask_again(self.again)
            words = f"at {where} {error}" if text is None else f"at {where}: {error}"
            if earlier is not None:
                self._parts.offers.follow()  # the other hosts may follow it, and offer what was before
                carriage = earlier
        except BaseException:
            self._text = None  # it was not tried to the end
            raise
        reporter.set("config-unusable", {"": words} if words and earlier is None else {})
        reporter.set("config-changed", {"": words} if words and earlier is not None else {})
        if words and (earlier is None or before is not None):
            await self._stay(before)
            return
        if not self._ownership.claim(carriage):
            self._text = None
            self._ownership.ask_again(self.changed.set)
            await self._stay(before)
            return
        reporter.set("mtu-clamped", {"": words} if (words := clamped(carriage)) else {})
        if before is None:
            await self._look_around(carriage.devices)
            self._begin(carriage, where)
        elif not carriage.same(before):
            self._follow(before, carriage)
        self.carriage = carriage
        await self._look_around()

    @property
    def _making(self) -> Making:
        return Making(self._context, self._parts, self._copies.keys)

    async def _stay(self, before: Carriage | None) -> None:
        """The config is not followed, or not yet; the host is: what is carried goes on, by the uplink that there is now."""
        if before is None:
            return
        facts, text, self._text = self._parts.facts, self._text, None  # it is tried again where this fails
        with suppress(ConfigError):  # by that uplink not even what is carried can be: it stays as it is
            asked = parsed(self._context.settings, before.text)
            another = await facts.look(asked[0], self._devices)
            self._parts.surroundings.stale |= another
            if facts.uplink is not None and facts.uplink != before.uplink:
                known, own = self._ownership.state, self.lease or self._kept.own
                self.carriage = await self._making.make(before.text, asked, before.prepared, known, own, (before, before))
                self._follow(before, self.carriage)
        await self._look_around()
        self._text = text

    def _disown(self) -> None:
        """Make nothing of what another machine has kept: the state directory was copied, or this machine was cloned."""
        facts, uplink = self._parts.facts, self._parts.facts.uplink
        address = "" if uplink is None else str(uplink.public_ip or uplink.public_ipv6)
        kept = self._kept.own_part(machine(), facts.uplink_mac, address, self._context.settings.state_dir)
        self._kept, self._copies.keys.foreign = kept, kept is not self._kept
        self._ownership.state = self._kept.state
        if self._kept.view is None and self.phase in (Phase.RESUMED, Phase.FROM_DISK):
            self.phase = Phase.WAITING

    @property
    def _devices(self) -> frozenset[str]:
        """Devices that are ours: none of them is an uplink."""
        return frozenset({*self._ownership.state.devices, *(self.carriage.devices if self.carriage is not None else ())})

    def _begin(self, carriage: Carriage, where: str) -> None:
        introduce(carriage, where)
        self.keeper = keep(self._context, self._kept, self._parts, carriage, self.changed.set)
        self._parts.cluster.tell = self.keeper.tell
        self._judge(carriage)
        self.known.set()

    def _follow(self, before: Carriage, carriage: Carriage) -> None:
        """Config or host have changed under us."""
        changed = note_changes(self._context, before, carriage)
        if before.uplink != carriage.uplink:
            self._parts.reconciler.hasten()
            self._context.registry.reconnect()
        self._judge(carriage)
        if self.keeper is None:
            return
        # All hosts hear of a new config at once; of our own address only we know.
        after_s = self._context.spread(len(self._parts.cluster.view.leases) if changed or before.preference.outgoing else 0)
        if before.attrs != carriage.attrs:
            self.keeper.publish(carriage.attrs, after_s)
        if before.config != carriage.config:
            self.keeper.move(carriage.config, after_s)

    # ------------------------------------------------------------------------------------------------------- lease

    async def _carry(self) -> None:
        """Hand the kernel's side what it has to carry, where that is something else than before."""
        carriage, lease = self.carriage, self._held()
        if carriage is None or lease is None or not carriage.fits(lease):
            return  # what is programmed stays, until there is a lease that fits
        if not self._parts.offers.settle(carriage, None if self.keeper is None else self.keeper.held):
            return  # what is there stays, until it was heard what the peers offer
        if self.keeper is not None and self.keeper.held is not None:
            self.advance(Phase.CONFIRMED)
        self._parts.cluster.set_own(lease)
        self.lease = lease
        if self._carried is not None and self._carried[0].config != carriage.config:
            self._judge(carriage)
        before, carriage = carriage, await self._copies.differ(carriage, lease)
        self.carriage = carriage
        if carriage is not before and self.keeper is not None:
            self.keeper.publish(carriage.attrs)
        self._parts.publisher.keep_view(self._view)
        if self._carried is None or not self._carried[0].same(carriage) or not self._carried[1].same_content(lease):
            await self._swap(carriage, lease)
            self._carried = (carriage, lease)
            self._parts.surroundings.stale = True  # a bridge in our subnet is ours
            await self._look_around()
            self._judge(carriage)

    def _view(self) -> KeptView | None:
        """What a start without etcd needs; None where etcd has confirmed nothing."""
        carriage, lease = self.carriage, self.lease
        if carriage is None or lease is None or self.keeper is None or self.keeper.held is None:
            return None
        return view_of(self._context, that_fits(carriage, lease, self._carried), lease, self._parts.cluster.view)

    async def _look_around(self, devices: frozenset[str] = frozenset()) -> None:
        """Have nothing in the overlay that this host cannot do without: also before anything else is known."""
        surroundings, carriage = self._parts.surroundings, self.carriage
        halves = () if self.lease is None else (self.lease.subnet, self.lease.subnet6)
        bridges = (*(net for net in halves if net is not None and net.prefixlen), *self._kept.previous)
        if not surroundings.stale or not await surroundings.look(self._devices | devices, bridges):
            return
        if carriage is not None:
            self._judge(carriage)
            surroundings.keep_out(self._parts.reconciler)
        if not self.phase.may_sweep:
            await surroundings.clear_the_way(self.scope)

    def _judge(self, carriage: Carriage) -> None:
        """What is around the overlay is in nobody's lease. Until there is a lease that fits, peers are those of what is carried."""
        surroundings, carriage = self._parts.surroundings, that_fits(carriage, self._held(), self._carried)
        self._parts.cluster.configure(carriage.config, carriage.backends, carriage.host, surroundings.underlay)
        if self.keeper is not None:
            self.keeper.avoid(surroundings.underlay.avoided)
        surroundings.report(carriage.config.networks, self.lease)

    def _held(self) -> Lease | None:
        if self.keeper is not None and self.keeper.held is not None:
            return self.keeper.held
        return self._kept.own if self.phase in (Phase.RESUMED, Phase.FROM_DISK) else None

    async def _swap(self, carriage: Carriage, lease: Lease) -> None:
        """Everything that follows from carriage and lease is another one now."""
        self.carriage = carriage
        local, scope, settings = carriage.local(lease), self.scope, self._context.settings
        reconciler = self._parts.reconciler
        wanted, first = self._making.datapath(carriage, local, scope)
        self._parts.datapath.set(wanted)
        if first:
            await self._parts.datapath.tried.wait()
        forward, uplink = self._parts.forwarding.rules, carriage.uplink.name
        parts = settings, carriage.config, carriage.backends, carriage.devices, scope.table, lease
        firewall = Firewall(*parts, forward, uplink, reconciler.fragments.change_firewall)
        shield = self._parts.surroundings.shield(carriage.config.networks)
        carrier = carriage.preference.over(carriage.backend)
        reconciler.set_target(Target(carrier, local, scope, firewall.host, firewall.peer, shield))
        self._ownership.own(carriage, lease, self._parts.facts.uplink_mac, self._ownership.state)

    @property
    def carried(self) -> tuple[Carriage, Lease] | None:
        """What the kernel's side was handed; the rest of us may be further already."""
        return self._carried

    def swept(self) -> None:
        """The kernel holds what is wanted and nothing else of ours."""
        if self._carried is not None:
            self._ownership.swept(*self._carried, self._parts.facts.uplink_mac)
