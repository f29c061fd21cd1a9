"""Who keeps our lease? The shell around the rules of ``core/leasing``: it performs what they ask of the registry, one at a time,
and hands back what came of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from flannelpy.agent.cluster import report_error, report_success
from flannelpy.agent.expiry import tell_first_end
from flannelpy.agent.report import Clock, Reporter
from flannelpy.core import lease_events as ev
from flannelpy.core.errors import ConflictError, RegistryError, TakenError
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import Lease
from flannelpy.registry import Registry, Snapshot

log = logging.getLogger(__name__)

NO_ROOM = "no-free-subnet"


class Keeper:
    """Our lease for as long as the agent runs. ``refresh`` lists everything (and brings the cluster's view up to it)."""

    def __init__(
        self,
        machine: Leasing,
        registry: Registry,
        reporter: Reporter,
        clock: Clock,
        *,
        refresh: Callable[[], Awaitable[Snapshot]],
        on_hold: Callable[[Lease], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._registry = registry
        self._reporter = reporter
        self._clock = clock
        self._refresh = refresh
        self._on_hold = on_hold
        self._on_lost = on_lost
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._alarm: asyncio.TimerHandle | None = None
        self._listed: tuple[Lease, ...] = ()  # while we have no lease: what stands in our way
        self._telling: asyncio.Task[None] | None = None

    @property
    def sure_until(self) -> float:
        """When our lease would end if nobody extended it, in the clock's seconds; infinity for a reservation."""
        return self._machine.sure_until

    def tell(self, event: ev.Event) -> None:
        """Something happened to our lease, seen by the watch or asked for by the agent."""
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Acquire the lease and keep it, for ever."""
        self.tell(ev.Started())
        try:
            async with asyncio.TaskGroup() as asking:
                while True:
                    event = await self._events.get()
                    if isinstance(event, ev.Listed | ev.Overheard):
                        self._listed = event.leases
                    for action in self._machine.step(self._clock(), event):
                        self._perform(action, asking)
        finally:
            if self._alarm is not None:
                self._alarm.cancel()

    def _perform(self, action: ev.Action, asking: asyncio.TaskGroup) -> None:
        match action:
            case ev.WakeAt(when):
                if self._alarm is not None:
                    self._alarm.cancel()
                delay = max(0.0, when - self._clock())
                self._alarm = asyncio.get_running_loop().call_later(delay, self.tell, ev.Woke())
            case ev.Hold(lease):
                self._listed = ()
                self._on_hold(lease)
            case ev.Lost(lease, why):
                self._on_lost()
                log.warning("lost our lease %s: %s; what is programmed stays until we have one again", lease, why)
            case ev.Tell(code, detail) if code == NO_ROOM:
                self._stop_telling()
                self._telling = asking.create_task(self._tell_no_room(detail), name="when a lease ends")
            case ev.Tell(code, detail):
                self._reporter.begin(code, detail)
            case ev.Clear(code):
                if code == NO_ROOM:
                    self._stop_telling()
                self._reporter.end(code)
            case _:
                asking.create_task(self._ask(action), name=f"lease {type(action).__name__}")

    async def _tell_no_room(self, detail: str) -> None:
        """The rules know that every subnet is taken, the registry for how long."""
        ending = await tell_first_end(self._registry, self._listed)
        self._reporter.begin(NO_ROOM, f"{detail}, {ending}" if ending else detail)

    def _stop_telling(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    async def _ask(self, action: ev.Ask) -> None:
        """One action against the registry; what came of it goes to the rules."""
        try:
            outcome = await self._try(action)
        except RegistryError as error:
            report_error(self._reporter, error)
            outcome = _FAILED[type(action)](str(error))
        else:
            report_success(self._reporter)
        self.tell(outcome)

    async def _try(self, action: ev.Ask) -> ev.Event:
        match action:
            case ev.List():
                snapshot = await self._refresh()
                return ev.Listed(snapshot.leases, snapshot.revision, snapshot.defaced)
            case ev.Create(subnet, subnet6, attrs, ttl_s):
                try:
                    return ev.Created(await self._registry.create(subnet, attrs, subnet6=subnet6, ttl_s=ttl_s))
                except TakenError:
                    return ev.CreateTaken()
            case ev.Renew(lease, attrs, ttl_s):
                try:
                    return ev.Renewed(await self._registry.renew(lease, attrs, ttl_s=ttl_s))
                except ConflictError:
                    return ev.RenewConflict()
            case ev.KeepAlive(lease):
                try:
                    return ev.KeptAlive(await self._registry.keep_alive(lease))
                except ConflictError:
                    return ev.KeepAliveLost()
            case ev.Release(lease):
                try:
                    await self._registry.release(lease)
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
