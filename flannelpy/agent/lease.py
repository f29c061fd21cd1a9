"""Who keeps our lease? The shell around the rules of ``core/leasing``: it performs what they ask of the registry, one at a time,
and hands back what came of it.

What the agent publishes and the network it is in may change while the lease is held; it stays the same lease wherever that fits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial

from netaddr import IPNetwork

from flannelpy.agent.context import Context
from flannelpy.agent.expiry import tell_first_end
from flannelpy.core import lease_events as ev
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConflictError, RegistryError, TakenError
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.explain.events import LEASE
from flannelpy.registry import Snapshot
from flannelpy.registry.cancelling import cancelled

log = logging.getLogger("flannelpy")

NO_ROOM = "no-free-subnet"

LONGEST_SLEEP_S = 60.0
"""The loop's clock stands still while the machine sleeps, a lease's does not: it is looked at so often."""


class Keeper:
    """Our lease, for as long as the agent runs. ``refresh`` lists every lease; ``wake``: ``held`` or ``lost`` are others
    now; ``promise`` keeps what a lease is going to say, for the next life, and is awaited before that is written.
    """

    def __init__(
        self,
        context: Context,
        refresh: Callable[[], Awaitable[Snapshot]],
        machine: Leasing,
        wake: Callable[[], None],
        promise: Callable[[Lease], Awaitable[None]] | None = None,
    ) -> None:
        self.held: Lease | None = None
        """The lease, as far as is known; the last one while it is asked for again."""
        self.lost = False
        """True while it is asked for again."""
        self._context = context
        self._refresh = refresh
        self._machine = machine
        self._wake = wake
        self._promise = promise
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._alarm: asyncio.TimerHandle | None = None
        self._listed: tuple[Lease, ...] = ()  # while we have no lease: what stands in our way
        self._telling: asyncio.Task[None] | None = None
        self._publishing: asyncio.TimerHandle | None = None
        self._moving: asyncio.TimerHandle | None = None
        self.tell(ev.Started())

    @property
    def sure_until(self) -> float:
        """When our lease would end if nobody extended it, in the clock's seconds; infinity for a reservation."""
        return self._machine.sure_until

    def tell(self, event: ev.Event) -> None:
        """Something happened to our lease, seen by the watch or asked for by the agent."""
        self._events.put_nowait(event)

    def move(self, config: NetworkConfig, after_s: float = 0.0) -> None:
        """See ``Keeping``. Who has no lease waits for nothing."""
        if self._moving is not None:
            self._moving.cancel()
        wait_s = 0.0 if self.held is None or self.lost else after_s
        self._moving = asyncio.get_running_loop().call_later(wait_s, self.tell, ev.ConfigChanged(config))

    def publish(self, attrs: LeaseAttrs, after_s: float = 0.0) -> None:
        """Write these into the lease, ``after_s`` seconds from now; the last that was asked for counts."""
        if self._publishing is not None:
            self._publishing.cancel()
        self._publishing = asyncio.get_running_loop().call_later(after_s, self.tell, ev.AttrsChanged(attrs))

    def avoid(self, networks: Iterable[IPNetwork]) -> None:
        """Where another subnet has to be chosen, none of these."""
        self._machine.avoid = tuple(networks)

    async def run(self) -> None:
        """Acquire the lease and keep it, for ever."""
        try:
            async with asyncio.TaskGroup() as asking:
                while True:
                    event = await self._events.get()
                    if isinstance(event, ev.Listed | ev.Overheard):
                        self._listed = event.leases
                    for action in self._machine.step(self._context.clock(), event):
                        self._perform(action, asking)
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            # What is to be published waits on: nobody asks for it a second time where this is begun anew.
            self.tell(ev.ListFailed("interrupted"))  # where it is begun anew: what was asked has no answer

    def _perform(self, action: ev.Action, asking: asyncio.TaskGroup) -> None:
        match action:
            case ev.WakeAt(when):
                if self._alarm is not None:
                    self._alarm.cancel()
                delay = min(max(0.0, when - self._context.clock()), LONGEST_SLEEP_S)
                self._alarm = asyncio.get_running_loop().call_later(delay, self.tell, ev.Woke())
            case ev.Hold(lease):
                self._hold(lease)
            case ev.Lost(lease, why):
                self.lost = True
                text = f"lost our lease {lease}: {why}; what is programmed stays until we have one again"
                self._context.events.note(LEASE, lease.key, text, logging.WARNING)
                self._wake()
            case ev.Tell(code, detail) if code == NO_ROOM:
                self._stop_telling()
                self._telling = asking.create_task(self._tell_no_room(detail), name="when a lease ends")
            case ev.Tell(code, detail):
                self._context.reporter.begin(code, detail)
            case ev.Clear(code):
                if code == NO_ROOM:
                    self._stop_telling()
                self._context.reporter.end(code)
            case _:
                asking.create_task(self._ask(action), name=f"lease {type(action).__name__}")

    def _hold(self, lease: Lease) -> None:
        before, self.held = self.held, lease
        self._listed = ()
        note = partial(self._context.events.note, LEASE, lease.key)
        if before is None:
            note(f"lease {lease}{', a reservation' if lease.reserved else ''}")
        elif before.key != lease.key:
            note(f"our subnet is {lease} now, it was {before}", logging.WARNING)
        elif self.lost:
            note(f"lease {lease} is ours again")
        elif said := lease.move_since(before):
            note(said)
        self.lost = False
        self._wake()

    async def _tell_no_room(self, detail: str) -> None:
        """The rules know that every subnet is taken, the registry for how long."""
        ending = await tell_first_end(self._context.registry, self._listed)
        self._context.reporter.begin(NO_ROOM, f"{detail}, {ending}" if ending else detail)

    def _stop_telling(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    async def _ask(self, action: ev.Ask) -> None:
        """One action against the registry; what came of it goes to the rules."""
        try:
            outcome = await self._try(action)
        except RegistryError as error:
            outcome = _FAILED[type(action)](str(error))
        except (Exception, asyncio.CancelledError) as error:  # what is asked for has an answer, or nothing is ever asked again
            if isinstance(error, asyncio.CancelledError) and cancelled():
                raise
            log.debug("lease: %s failed", type(action).__name__, exc_info=error)
            outcome = _FAILED[type(action)](f"{type(error).__name__}: {error}")
        self.tell(outcome)

    async def _try(self, action: ev.Ask) -> ev.Event:
        match action:
            case ev.List():
                snapshot = await self._refresh()
                return ev.Listed(snapshot.leases, snapshot.revision, snapshot.defaced)
            case ev.Create(subnet, subnet6, attrs, ttl_s):
                try:
                    return ev.Created(await self._context.registry.create(subnet, attrs, subnet6=subnet6, ttl_s=ttl_s))
                except TakenError:
                    return ev.CreateTaken()
            case ev.Renew(lease, attrs, ttl_s):
                if attrs != lease.attrs and self._promise is not None:
                    await self._promise(replace(lease, attrs=attrs))
                try:
                    return ev.Renewed(await self._context.registry.renew(lease, attrs, ttl_s=ttl_s))
                except ConflictError:
                    return ev.RenewConflict()
            case ev.KeepAlive(lease):
                try:
                    return ev.KeptAlive(await self._context.registry.keep_alive(lease))
                except ConflictError:
                    return ev.KeepAliveLost()
            case ev.Release(lease):
                try:
                    await self._context.registry.release(lease)
                except ConflictError:
                    return ev.ReleaseConflict()
                return ev.Released()


_FAILED: dict[type, Callable[[str], ev.Event]] = {
    ev.List: ev.ListFailed,
    ev.Create: ev.CreateFailed,
    ev.Renew: ev.RenewFailed,
    ev.KeepAlive: ev.KeepAliveFailed,
    ev.Release: ev.ReleaseFailed,
}
