"""How does the kernel stay as desired? One loop: observe, plan, apply, report. Nothing else sets what the kernel keeps for us.

Events only mark what is dirty: a peer that changed, a kernel object that somebody touched, a step that failed. What arrives while a
round runs is coalesced into the next; nothing waits on purpose. What can fail in a round is a condition and another round.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING

from flannelpy.agent.report import Clock, Reporter
from flannelpy.agent.sync.dirty import Dirty
from flannelpy.agent.sync.fragments import Fragments, Target
from flannelpy.agent.sync.kernel_errors import not_applicable
from flannelpy.agent.sync.mirror import Mirror
from flannelpy.agent.sync.progress import Progress
from flannelpy.agent.sync.repairs import Repairs
from flannelpy.agent.sync.retries import Retries
from flannelpy.agent.sync.standing import Standing
from flannelpy.agent.sync.whole import differing, take
from flannelpy.core.desired import Desired
from flannelpy.core.errors import KernelError
from flannelpy.core.objects import HostState, Key, Link
from flannelpy.core.plan import Plan, Step, lives_on, plan
from flannelpy.kernel import Kernel, Notice, Result

if TYPE_CHECKING:
    from flannelpy.agent.sync.sources import Gateways, Peers

log = logging.getLogger(__name__)

SILENT_S = 5.0
SILENT = frozenset({"fou", "sysctl", "forward", "wg", "wgpeer"})
"""Kinds of objects that the kernel changes without a notification are looked at this often, in seconds."""

GOES_ALONG = frozenset({"route", "nexthop", "neigh", "fdb", "wg", "wgpeer", "sysctl"})
"""What the kernel itself takes (with a device, a link that goes down, the last address): nobody is to blame for it then."""

HASTEN_S = INCOMPLETE_S = 1.0
UNREADABLE_S = 0.4
"""After a look that failed."""


class Reconciler:
    """Desired state, the mirror, and the loop between them. ``before_round`` is awaited before each round looks at anything."""

    def __init__(
        self,
        kernel: Kernel,
        reporter: Reporter,
        peers: Peers,
        gateways: Gateways,
        clock: Clock,
        *,
        before_round: Callable[[], Awaitable[None]],
        nexthops: bool = False,
    ) -> None:
        self.dirty = Dirty()
        self.fragments = Fragments(reporter, peers, gateways, kernel.nexthops if nexthops else None)
        self.retries = Retries()
        self.heartbeat = time.monotonic()
        """When the loop last turned, by time.monotonic: while the machine sleeps nothing turns, and no watchdog counts that."""
        self.repairs = Repairs()
        self._kernel = kernel
        self._reporter = reporter
        self._clock = clock
        self._before_round = before_round
        self._mirror = Mirror(self.desired.get)
        self.standing = Standing(self.fragments, self._mirror, self.retries)
        self._state = Progress()

    # ------------------------------------------------------------------------------------------ what others tell us

    def set_target(self, target: Target) -> None:
        """The host is to be this now; every fragment is made anew, and what differs from before is done."""
        self.fragments.set_target(target)
        self._state.settled = False
        self.dirty.add_everything()

    def allow_sweep(self, allowed: bool) -> None:
        """Whether the view is complete and our lease confirmed: only then what nobody asked for is removed."""
        if allowed and not self._state.may_sweep:
            self._state.first_sweep = True
            self.dirty.add_everything()
        self._state.may_sweep = allowed

    def hear(self, notice: Notice) -> None:
        """Take in what the kernel says of our objects. What equals what is desired is no news."""
        if notice.resync:
            self._state.unannounced = True
            self.dirty.add_everything()
        self._mirror.hear(notice.objects)
        if len(self.retries):
            self._hasten_what_may_go(notice)
        self.dirty.add(key for key, item in notice.objects.items() if self.desired.get(key) != item)
        self.dirty.add(self._mirror.doubt(self.fragments.taken_along(notice)))  # gone without a word, or led elsewhere

    def _hasten_what_may_go(self, notice: Notice) -> None:
        """A route that was in the way of ours is gone; or an interface, maybe one that had what a device of ours needs.

        Others' interfaces come and go all the time: for their sake a device is tried once a second at the most.
        """
        now = self._clock()
        may_go = [key for key, item in notice.objects.items() if item is None and key.kind == "route"]
        devices = [key for key in self.retries if key.kind == "link"]
        if notice.links and devices and now - self._state.hastened >= HASTEN_S:
            self._state.hastened = now
            may_go += devices
        self.retries.hasten(may_go, now)
        self.dirty.add(key for key in may_go if key in self.retries)

    def reroute(self, families: Collection[int]) -> None:
        """Routes of these IP versions have changed: what is reached without a gateway may be, too."""
        if self.fragments.reroute(families):
            self.dirty.poke()

    def hasten(self) -> None:
        """The uplink is another one, or came back: what failed may work now."""
        self.retries.hasten(self.retries, self._clock())
        self.dirty.add(self.retries)

    def resync(self) -> None:
        """Look at everything."""
        self.dirty.add_everything()

    @property
    def desired(self) -> Desired:
        """What the kernel should hold."""
        return self.fragments.desired

    @property
    def settled(self) -> bool:
        """True once a full round has been applied for what the host is to be now."""
        return self._state.settled

    async def after_round(self) -> None:
        """Return when the next round is over."""
        await self._state.round_over.wait()

    # ------------------------------------------------------------------------------------------------------- tasks

    async def run(self) -> None:
        """Keep the kernel as desired, for ever."""
        self.dirty.add_everything()
        while True:
            self.heartbeat = time.monotonic()
            await self.dirty.wait(self._until_due())
            self.dirty.add(self._due())
            if self.dirty.pending or self.fragments.waiting:
                await self._before_round()
                await self.round()

    def look_at_silent(self) -> None:
        """Look at what no notification tells of, and at what may be over by now."""
        silent = self.desired.kinds(SILENT)
        self._mirror.stale.update(silent)
        self.dirty.add(silent)
        if self.fragments.broken:
            self.dirty.poke()
        self.repairs.damping.settle(self._clock())
        self._report()

    def _due(self) -> list[Key]:
        now = self._clock()
        for key in self.retries.due(now):
            device = self._lives_on(key)
            if device is not None and key.kind != "link" and self._mirror.get(Key("link", device)) is None:
                self.retries.postpone(key, Key("link", device))
        due = self.retries.due(now)
        self._mirror.stale.update(due)
        return [*due, *self.repairs.take_due(now)]

    def _until_due(self) -> float:
        """Seconds until something waits no longer; never so long that the heartbeat would seem to stand still."""
        times = [when for when in (self.retries.next_due, self.repairs.next_due) if when is not None]
        return 0.0 if self.fragments.waiting else max(0.0, min([self._clock() + SILENT_S, *times]) - self._clock())

    # ------------------------------------------------------------------------------------------------------ a round

    async def round(self) -> None:
        """Bring what is dirty up to what is desired. What fails is dirty again."""
        touched = taken = self.dirty.take()
        if not self.fragments.has_target:
            return
        target, changed = self.fragments.target, self._state.changed
        unannounced, self._state.unannounced = self._state.unannounced, False
        try:
            changed |= await self.fragments.refresh()
            self.retries.hasten(changed, self._clock())
            touched = None if taken is None else taken | changed
            if touched is None or touched:
                await self._round(touched, changed, quiet=unannounced)
        except BaseException as error:
            self.dirty.put_back(touched)  # with what is known of why
            self._state.unannounced |= unannounced
            if not isinstance(error, KernelError):
                raise
            self._reporter.set("kernel-unreadable", {"": str(error)})
            await asyncio.sleep(UNREADABLE_S)
            return
        self._state.changed = set()
        self._reporter.set("kernel-unreadable", {})
        if touched is None and target is self.fragments.target:
            self._state.settled = True
        self._report()
        over, self._state.round_over = self._state.round_over, asyncio.Event()
        over.set()

    async def _round(self, touched: set[Key] | None, changed: set[Key], *, quiet: bool) -> None:
        """``changed``: what is desired has changed under these; ``quiet``: the kernel itself may have taken what is missing."""
        self._mirror.listen()
        planned: Collection[Key] | None = touched
        observed = await self._observe(touched)
        if touched is None and self._state.settled and (planned := await differing(self.desired, self._mirror)) is not None:
            observed = observed.only(planned)
        steps = self._repairable(self._plan(planned, observed), changed, quiet=quiet)
        self._mirror.listen()
        results = await self._kernel.apply(steps) if steps else ()
        self.standing.tally(results, self.dirty.age_s)
        await self._learn(results, partial=touched is not None)

    async def _observe(self, touched: set[Key] | None) -> HostState:
        """Everything from the kernel; or, for some keys, the mirror, and the kernel where the mirror is stale."""
        scope, mirror = self.fragments.scope, self._mirror
        stale = None if touched is None else [key for key in touched if key in mirror.stale]
        observed = HostState() if stale == [] else await self._kernel.observe(scope, stale)
        self.fragments.hear_answers(observed)
        if stale is None or touched is None:
            observed = await take(mirror, observed)
            self.dirty.add(mirror.stale)
            if observed.incomplete:  # a table never stood still while it was read
                asyncio.get_running_loop().call_later(INCOMPLETE_S, self.dirty.add_everything)
            return observed
        if stale:
            mirror.take_part(stale, observed)
            self.dirty.add(mirror.stale)
        return HostState(mirror.objects).only(touched)

    def _plan(self, touched: Collection[Key] | None, observed: HostState) -> Plan:
        """What to do now: nothing that waits for its time, nor what would live on a device that does."""
        desired = self.desired.state if touched is None else self.desired.only(touched)
        steps = plan(desired, observed, self.fragments.scope, self._held(touched))
        steps = steps if self._state.may_sweep else tuple(step for step in steps if step.op != "remove")
        self.standing.settle(touched, steps, self._clock())
        return steps

    def _held(self, touched: Collection[Key] | None) -> set[Key]:
        """What waits. A device that is there waits for itself only: peers on it come and go, whatever it refuses."""
        now = self._clock()
        waiting = {key for key in self.retries if self.retries.waiting(key, now)}
        return {key for key in waiting if touched is None or key in touched or (key.kind == "link" and not self._mirror.get(key))}

    async def _learn(self, results: Sequence[Result], partial: bool) -> None:
        """Take over into the mirror what the kernel acknowledged; have again what it refused, later."""
        now, refused = self._clock(), list[tuple[Step, KernelError]]()
        for result in results:
            step, key = result.step, result.step.key
            if result.error is not None and not not_applicable(step, result.error):
                refused.append((step, result.error))
                continue
            self.standing.forget(key)
            self._mirror.learn(key, None if step.op == "remove" else step.item)
            if step.op in ("add", "remake") and isinstance(step.item, Link):
                self.retries.hasten((key for key in self.retries if self._lives_on(key) == step.item.name), now)
                if partial:
                    self.dirty.add_everything()  # what lived on it is gone, and all of it must come back
        self.dirty.add(await self.standing.refuse(self._kernel, refused, now))
        self.dirty.add(self._mirror.stale)

    def _lives_on(self, key: Key) -> str | None:
        item = self.desired.get(key)
        return None if item is None else lives_on(item)

    def _repairable(self, steps: Plan, changed: set[Key], *, quiet: bool) -> Plan:
        """The steps to take now; what somebody else changes too often is left for later. Says what somebody else has changed."""
        drift = [step for step in steps if step.key not in changed and step.key not in self.standing.refusals]
        drift = [step for step in drift if step.before or step.key.kind != "sysctl"]  # one that the kernel does not have
        if self._state.first_sweep and any(step.op == "remove" for step in drift):
            left = [step for step in drift if step.op == "remove"]
            drift = [step for step in drift if step.op != "remove"]
            more = f", and {len(left) - 1} more" if len(left) > 1 else ""
            log.info("removing what an earlier run has left: %s%s", left[0], more)
        self._state.first_sweep = self._state.first_sweep and not self._state.may_sweep
        if not self._state.settled:
            return steps
        counted = [step.key for step in drift if not quiet or step.key.kind not in GOES_ALONG]
        late = self.repairs.suppress(counted, self._clock())
        self.repairs.note([step for step in drift if step.key not in late])
        return tuple(step for step in steps if step.key not in late)

    def _report(self) -> None:
        """Derive what is wrong from what is desired, what is there and what was answered."""
        self.standing.report(self._reporter)
        self._reporter.set("kernel-contested", {str(key): str(key) for key in self.repairs.damping.contested()})
