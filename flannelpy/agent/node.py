"""Who keeps a lease that Kubernetes gives? The shell around our node: what it has is ours, what we publish is written into it.

There is no race and no end: the controller-manager chooses, and a node lives until it is deleted. So this only looks, writes where
something else stands there than we publish, and looks again when the watch has seen something, or after a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

from netaddr import IPNetwork

from flannelpy.agent.context import Context
from flannelpy.core import lease_events as ev
from flannelpy.core.claims import same_host, unusable
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConflictError, RegistryError
from flannelpy.core.model import Lease, LeaseAttrs, subnet_key
from flannelpy.explain.events import LEASE
from flannelpy.registry import Assigned

log = logging.getLogger("flannelpy")

UNASSIGNED = "node-unassigned"

FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0
LOOK_S = 300.0
"""How often our node is looked at where nothing was heard of it."""
ANNOUNCE_S = 300.0
READY_S = 0.2

EDIT_S, LAST_EDIT_S = 1.0, 30.0
"""What somebody else has written over is put back at once, the next time after a pause, and after longer ones from then on: another
host that takes our node for its own does the same."""
MANY_EDITS = 3
QUIET_S = 120.0
"""So long without an edit, and the next one is the first."""


@dataclass(slots=True)
class _Edits:
    """What others have written over what we publish: ``ours`` was written last, ``due`` is when it is put back, if it has to be."""

    ours: LeaseAttrs | None = None
    count: int = 0
    at: float = -inf
    due: float | None = None
    said: str = ""
    """What is told of it."""

    def wait(self, wanted: LeaseAttrs, now: float) -> float:
        """Our node does not say what is ``wanted``: how many seconds it stays so."""
        if wanted != self.ours:
            return 0.0  # it is we who have changed
        if self.due is None:
            self.count, self.at = (1 if now - self.at > QUIET_S else self.count + 1), now
            self.due = now if self.count == 1 else now + min(LAST_EDIT_S, EDIT_S * 2.0 ** min(self.count - 2, 10))
        return max(0.0, self.due - now)

    def settle(self, ours: LeaseAttrs | None, now: float) -> None:
        """Our node says this now; None: nobody knows."""
        self.ours, self.due = ours, None
        if now - self.at > QUIET_S:
            self.count = 0


class NodeKeeper:
    """Our node's lease, for as long as the agent runs; see ``agent.keeping``. ``wake``: ``held`` or ``lost`` are others now;
    ``promise`` keeps what the node is going to say, for the next life, and is awaited before that is written; ``known``: whose a
    lease is, as far as is known.
    """

    def __init__(
        self,
        context: Context,
        assigned: Assigned,
        config: NetworkConfig,
        attrs: LeaseAttrs,
        wake: Callable[[], None],
        promise: Callable[[Lease], Awaitable[None]],
        known: Callable[[str], Lease | None] = lambda _key: None,
    ) -> None:
        self.held: Lease | None = None
        """The lease, as far as is known; the last one while our node has none."""
        self.lost = False
        """True while our node has none."""
        self._context = context
        self._assigned = assigned
        self._config = config
        self._attrs = attrs
        self._wake = wake
        self._promise = promise
        self._known = known
        self._changed = asyncio.Event()
        self._publishing: asyncio.TimerHandle | None = None
        self._edits = _Edits()
        self._rivals: dict[str, tuple[str, str]] = {}  # by lease: the condition that another node is for us, and its words

    @property
    def sure_until(self) -> float:
        """A node has no end."""
        return inf

    def tell(self, event: ev.Event) -> None:
        """Something happened to a lease: our node is looked at where it may be ours."""
        match event:
            case ev.OwnPut(lease):
                self._weigh(lease)
                if self.held is None or lease.key == self.held.key:
                    self._changed.set()
            case ev.SubnetFreed(subnet, subnet6):
                if self._rivals.pop(subnet_key(subnet, subnet6), None):
                    self._tell_conflicts()
            case ev.OwnDefaced() | ev.Reconnected():
                pass
            case ev.Overheard(leases):
                before, self._rivals = self._rivals, {}
                for lease in leases:
                    self._weigh(lease, heard=lease.key in before)
                self._tell_conflicts()
                self._changed.set()
            case _:
                self._changed.set()

    def _weigh(self, lease: Lease, *, heard: bool = True) -> None:
        """Is another node's lease a condition of ours? With our address only one that was heard to be written: else a leftover."""
        held, before = self.held, self._rivals.pop(lease.key, None)
        if held is not None and lease.holder != held.holder:
            if lease.key == held.key:
                words = f"node {lease.holder} at {lease.attrs.host} has our podCIDR, too, and is older: peers send there"
                self._rivals[lease.key] = "subnet-conflict", words
            elif heard and same_host(lease.attrs, held.attrs):
                self._rivals[lease.key] = "duplicate-public-ip", f"node {lease.holder}, {lease}"
        if self._rivals.get(lease.key) != before:
            self._tell_conflicts()

    def move(self, config: NetworkConfig, after_s: float = 0.0) -> None:  # noqa: ARG002 - Keeping's
        """The network is this now; our subnet is what it is, and fits or not: there is nothing to wait for."""
        self._config = config
        self._changed.set()

    def publish(self, attrs: LeaseAttrs, after_s: float = 0.0) -> None:
        """Write these into our node, ``after_s`` seconds from now; the last that was asked for counts."""
        if self._publishing is not None:
            self._publishing.cancel()
        self._publishing = asyncio.get_running_loop().call_later(after_s, self._say, attrs)

    def _say(self, attrs: LeaseAttrs) -> None:
        self._attrs = attrs
        self._changed.set()

    def avoid(self, networks: Iterable[IPNetwork]) -> None:
        """Nothing: Kubernetes chooses."""

    async def run(self) -> None:
        """Have what Kubernetes gives us, and publish in it, for ever."""
        delay = FIRST_RETRY_S
        listening = asyncio.create_task(self._listen(self._assigned.changes), name="our node")
        try:
            while True:
                self._changed.clear()
                try:
                    pause = await self._look()
                except RegistryError as error:
                    log.debug("our node: %s", error)
                    pause = None
                delay = min(2 * delay, LAST_RETRY_S) if pause is None else FIRST_RETRY_S
                pause = delay if pause is None else pause
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._context.random.uniform(pause / 2, pause)):
                        await self._changed.wait()
        finally:
            listening.cancel()  # what is to be published waits on: nobody asks for it a second time where this is begun anew
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, since: int) -> None:
        """A node that somebody else has changed is looked at, at once: one that was made anew has nothing of ours in it."""
        while True:
            await self._assigned.changed(since)
            since = self._assigned.changes
            self._changed.set()

    async def _look(self) -> float | None:
        """See what our node is, and make it say what we publish: in how many seconds to look again. None: it has no lease for us.

        Raises RegistryError.
        """
        why = "our node has no podCIDR of the network's families yet"
        try:
            own = await self._assigned.own(self._config.families)
        except ConflictError as error:
            own, why = None, str(error)
        if own is not None and (unfit := unusable(own, (), self._config)):
            why, own = f"our node's podCIDR is {' and '.join(_subnets(own))}: {unfit}", None
        if own is None:
            self._miss(why)
            return None
        wanted = await self._assigned.advertise(self._attrs)
        now, edits = self._context.clock(), self._edits
        pause = edits.wait(wanted, now) if own.attrs != wanted else 0.0
        if edits.count >= MANY_EDITS and pause:
            says = own.attrs.host or "nothing"  # a node without annotations has no address
            edits.said = f"node {own.holder} is written over and over; it says {says}, we say {wanted.host}"
            self._tell_conflicts()
        if pause:
            self._hold(replace(own, attrs=wanted))
            return pause
        if own.attrs != wanted:
            await self._promise(replace(own, attrs=wanted))
            own = await self._context.registry.renew(own, wanted)
        self._hold(own)
        edits.settle(wanted, now)
        if not edits.count and edits.said:
            edits.said = ""
            self._tell_conflicts()
        return QUIET_S if edits.count else LOOK_S

    def _tell_conflicts(self) -> None:
        for code in ("subnet-conflict", "duplicate-public-ip"):
            self._context.reporter.set(code, {key: words for key, (each, words) in self._told.items() if each == code})

    @property
    def _told(self) -> Mapping[str, tuple[str, str]]:
        return {"": ("subnet-conflict", self._edits.said), **self._rivals} if self._edits.said else self._rivals

    def _miss(self, why: str) -> None:
        self._edits.settle(None, self._context.clock())
        self._context.reporter.set(UNASSIGNED, {"": why})
        if self.held is not None and not self.lost:
            self.lost = True
            text = f"lost our lease {self.held}: {why}; what is programmed stays until we have one again"
            self._context.events.note(LEASE, self.held.key, text, logging.WARNING)
            self._wake()

    def _hold(self, lease: Lease) -> None:
        self._context.reporter.set(UNASSIGNED, {})
        before, was_lost = self.held, self.lost
        if before == lease and not was_lost:
            return
        self.held, self.lost = lease, False
        if before is None or (before.key, before.attrs.host) != (lease.key, lease.attrs.host):
            self._rivals.clear()  # who was one has another subnet and address than we have now
            there = self._known(lease.key)  # nobody tells of it again
            if there is not None and there.holder and not there.departing:
                self._weigh(there, heard=False)
            self._tell_conflicts()
        note = self._context.events.note
        if before is None:
            note(LEASE, lease.key, f"lease {lease}, from our node")
        elif before.key != lease.key:
            note(LEASE, lease.key, f"our subnet is {lease} now, it was {before}", logging.WARNING)
        elif was_lost:
            note(LEASE, lease.key, f"lease {lease} is ours again")
        elif said := lease.move_since(before):
            note(LEASE, lease.key, said)
        self._wake()


async def announce(context: Context, assigned: Assigned, carried: Callable[[], Lease | None]) -> None:
    """Say of our node that its network is there, once it is; at once where somebody says otherwise, or makes it anew; for ever.

    Only of a node that still has the lease that is ``carried``: one that was made anew this moment may have no podCIDR.
    """
    delay = FIRST_RETRY_S
    while True:
        since, pause = assigned.changes, READY_S
        try:
            if (lease := carried()) is not None:
                await assigned.announce(lease)
                delay, pause = FIRST_RETRY_S, ANNOUNCE_S
        except RegistryError as error:
            log.debug("that our node's network is there could not be said: %s", error)
            delay = pause = min(2 * delay, LAST_RETRY_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(context.random.uniform(pause / 2, pause)):
                await assigned.changed(since)


def _subnets(lease: Lease) -> list[str]:
    return [str(net) for net in (lease.subnet, lease.subnet6) if net is not None and net.prefixlen]
