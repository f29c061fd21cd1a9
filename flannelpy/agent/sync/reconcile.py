"""How does the kernel stay as desired? One loop: observe, plan, apply, report. Nothing else touches the kernel.

Events only mark what is dirty: a peer that changed, a kernel object that somebody touched, a step that failed. What arrives while a
round runs is coalesced into the next; nothing waits on purpose. Between full observations a mirror of the last one is kept true by
the kernel's acknowledgements and notices.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from netaddr import IPAddress

from flannelpy.agent.sync.dirty import Dirty
from flannelpy.agent.sync.refusal import explain, is_moot
from flannelpy.core.backend import Local
from flannelpy.core.contests import QUIET_S, Contests
from flannelpy.core.desired import Desired
from flannelpy.core.errors import FlannelpyError, KernelError
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, Key, Link, Object, Scope
from flannelpy.core.plan import Plan, Step, plan
from flannelpy.kernel import Result

log = logging.getLogger(__name__)

AUDIT_S = 300.0
"""A full observation this often, in seconds, under the notices."""

SILENT_S = 5.0
SILENT = frozenset({"fou", "sysctl"})
"""Kinds of objects that the kernel changes without a notice are looked at this often, in seconds."""

FIRST_RETRY_S, LAST_RETRY_S = 0.4, 30.0

LOGGED = 3
"""Repairs of one round that are logged one by one."""

HOST, FIREWALL = "host", "firewall"
"""Owners of the fragments that are not a peer's (a lease key never looks like this)."""


from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    backend: object
    local: object
    scope: object
    firewall: object
    firewall_speaks_of_peers: bool


class Reconciler:
    """Desired state, the mirror, and the loop between them."""

    def __init__(self, kernel, reporter, peers, gateways, clock, *, before_round=None):
        self._source = peers
        self._gateways_ = gateways
        self._before = before_round
        self.target = None
        self._rounds = asyncio.Event()
        self.desired = Desired()
        self.dirty = Dirty()
        self.repairs = 0
        self.last_repair: tuple[float, Step] | None = None
        """When (in the loop's time) and what somebody else had changed."""
        self.settled = False
        """True once a full round has been applied."""
        self._kernel = kernel
        self._backend = None
        self._scope = Scope()
        self._reporter = reporter
        self._local: Local | None = None
        self._peers: dict[str, Lease] = {}
        self._changed: dict[str, Lease | None] = {}
        self._mirror: dict[Key, Object] = {}
        self._meant: set[Key] = set()
        self._on_link: dict[IPAddress, str] = {}
        self._delays: dict[Key, float] = {}
        self._failed_kinds: set[str] = set()
        self._may_sweep = False
        self._first_sweep = False
        self._noticed: dict[Key, Object | None] = {}
        self._unsure: set[Key] = set()
        self._contests = Contests()
        self._local_changed = False
        self._reroute = False
        self._make_firewall: Callable[[], HostState] = HostState
        self._firewall_changed = False

    # ------------------------------------------------------------------------------------------ what others tell us

    def set_target(self, target):
        self.target = target
        self._backend, self._scope, self._local = target.backend, target.scope, target.local
        self._local_changed = True
        self._source.rewind()
        self._make_firewall = lambda: target.firewall(tuple(self._source.current.values()))
        self._firewall_changed = True
        self.settled = False
        self.dirty.add_everything()

    def resync(self):
        self.dirty.add_everything()

    def audit_now(self):
        self.dirty.add_everything()

    def hasten(self):
        self.dirty.add(self._delays)

    def reroute(self, families):
        self._reroute = self._backend is not None and self._backend.wants_on_link
        if self._reroute:
            self.dirty.poke()

    async def after_round(self):
        self._rounds.clear()
        await self._rounds.wait()

    @property
    def left_out(self):
        return {a.subject: a.detail for a in self._reporter.health if a.condition.code in ("peer-unreadable", "peer-conflict")}

    def in_sync(self, owner):
        return all(self._mirror.get(k) == v for k, v in self.desired.fragment(owner).objects.items())

    def set_peers(self, changed: Mapping[str, Lease | None]) -> None:
        """These peers came or changed; None for one that went."""
        self._changed.update(changed)
        self.dirty.poke()

    def set_firewall(self, make: Callable[[], HostState]) -> None:
        """What the nft table should hold; asked once a round, however often something in it changed."""
        self._make_firewall = make
        self.renew_firewall()

    def renew_firewall(self) -> None:
        """Something that the nft table speaks of has changed."""
        self._firewall_changed = True
        self.dirty.poke()

    def allow_sweep(self, allowed=True) -> None:
        """The view is complete and our lease confirmed: from now on what nobody asked for is removed."""
        if allowed and not self._may_sweep:
            self._may_sweep = self._first_sweep = True
            self.dirty.add_everything()

    @property
    def host_failed(self) -> bool:
        """True while something of the host's own (device, address, network route, firewall) could not be applied.

        Packets flow without a sysctl, which in a container may not be settable.
        """
        ours = {key for owner in (HOST, FIREWALL) for key in self.desired.fragment(owner).objects}
        return any(key in ours and key.kind != "sysctl" for key in self._delays)

    @property
    def peer_count(self) -> int:
        """Peers that are to be programmed."""
        return len(self._peers)

    @property
    def failing(self) -> set[str]:
        """Owners of what the kernel has refused so far."""
        return {owner: "refused" for key in self._delays for owner in self.desired.claimants(key)}

    def count(self) -> tuple[Counter[str], Counter[str]]:
        """Kernel objects by kind: those that are wanted, and those of them that are there as wanted, as far as we were told."""
        wanted = self.desired.state.objects
        held = Counter(key.kind for key, item in wanted.items() if self._mirror.get(key) == item)
        return Counter(key.kind for key in wanted), held

    # ------------------------------------------------------------------------------------------------------- tasks

    async def run(self) -> None:
        """Keep the kernel as desired, for ever. The only place where the two meet."""
        self.dirty.add_everything()
        while True:
            await self.dirty.wait()
            await self._before()
            if self.target is None:
                self.dirty.take()
                continue
            touched = self.dirty.take()
            touched = await self._refresh_fragments(touched)
            if touched is not None and not touched:
                continue
            self._noticed.clear()
            try:
                observed = await self._observe(touched)
            except KernelError as error:
                self._reporter.begin("kernel-unreadable", str(error))
                await asyncio.sleep(FIRST_RETRY_S)
                self.dirty.add_everything()
                continue
            self._reporter.end("kernel-unreadable")
            steps = self._note_drift(self._plan(touched, observed))
            self._noticed.clear()
            results = await self._kernel.apply(steps) if steps else ()
            self._learn(results, partial=touched is not None)
            await self._report(results)
            if touched is None:
                self.settled = True
            self._rounds.set()

    def hear(self, notice):
        if notice.resync:
            self.dirty.add_everything()
        drifted = []
        self._noticed |= notice.objects
        for key, item in notice.objects.items():
            if item is None:
                self._mirror.pop(key, None)
            else:
                self._mirror[key] = item
            if self.desired.get(key) != item:
                drifted.append(key)
        self.dirty.add(drifted)

    async def audit(self) -> None:
        """Look at everything every AUDIT_S, and at what no notice tells of every SILENT_S, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time() + AUDIT_S
        while True:
            await asyncio.sleep(SILENT_S)
            if loop.time() >= due:
                due += AUDIT_S
                self.dirty.add_everything()
            for key in self.desired.fragment(HOST).objects:
                if key.kind in SILENT:
                    self._doubt(key)

    # -------------------------------------------------------------------------------------------- parts of a round

    async def _refresh_fragments(self, touched: set[Key] | None) -> set[Key] | None:
        """Recompute the fragments of what changed; returns the keys to look at, None for everything."""
        keys: set[Key] = set()
        if self._firewall_changed:
            self._firewall_changed = False
            keys |= self.desired.put(FIREWALL, self._make_firewall())
        if self._local is None:
            self._meant |= keys
            return None if touched is None else touched | keys
        changed = dict(self._source.take())
        if changed and self.target.firewall_speaks_of_peers:
            keys |= self.desired.put(FIREWALL, self._make_firewall())
        if self._reroute:
            self._reroute = False
            self._on_link.clear()
            changed = {**self._peers, **changed}
        if self._backend.wants_on_link:
            await self._look_up_gateways(changed.values())
        local = self._local
        if self._backend.wants_on_link:
            local = Local(local.config, local.uplink, local.lease, local.macs, dict(self._on_link))
        if self._local_changed:
            self._local_changed = False
            keys |= self.desired.put(HOST, self._backend.host(local))
        for owner, lease in changed.items():
            if lease is None:
                self._peers.pop(owner, None)
                self._reporter.end("peer-unreadable", owner)
                keys |= self.desired.drop(owner)
            else:
                self._peers[owner] = lease
                keys |= self._set_peer(owner, lease, local)
        if changed:
            self._report_conflicts()
        self._meant |= keys
        return None if touched is None else touched | keys

    def _set_peer(self, owner: str, lease: Lease, local: Local) -> set[Key]:
        try:
            state = self._backend.peer(lease, local)
        except FlannelpyError as error:
            self._reporter.begin("peer-unreadable", f"{lease}: {error}", owner)
            return self.desired.drop(owner)
        self._reporter.end("peer-unreadable", owner)
        return self.desired.put(owner, state, rank=lease.create_revision)

    def _report_conflicts(self) -> None:
        for owner, (other, key) in self.desired.conflicts.items():
            lease, holder = self._peers.get(owner), self._peers.get(other)
            if lease is None or not lease.departing:
                self._reporter.begin("peer-conflict", f"{lease} claims {key}, which is held by {holder or 'this host'}", owner)
        self._reporter.end_all_but("peer-conflict", set(self.desired.conflicts))

    async def _look_up_gateways(self, leases: Iterable[Lease | None]) -> None:
        """Find out which peers' addresses are reached without a gateway."""
        for lease in leases:
            for address in (lease.public_ip, lease.attrs.public_ipv6) if lease is not None else ():
                if address is None or address in self._on_link:
                    continue
                answer = await self._kernel.route_to(address)
                if answer is not None and answer.via is None:
                    self._on_link[address] = answer.dev

    async def _observe(self, touched: set[Key] | None) -> HostState:
        """Everything from the kernel; or, for some keys, the mirror, and the kernel where the mirror may be wrong."""
        if touched is None:
            everything = await self._kernel.observe(self._scope)
            self._mirror = dict(everything.objects)
            self._doubt_what_changed()
            return everything
        unsure = [key for key in touched if key in self._delays or key in self._unsure]
        self._unsure.difference_update(unsure)
        if unsure:
            seen = await self._kernel.observe(self._scope, unsure)
            for key in unsure:
                found = seen.get(key)
                if found is None:
                    self._mirror.pop(key, None)
                else:
                    self._mirror[key] = found
            self._doubt_what_changed()
        return HostState(self._mirror).only(touched)

    def _doubt_what_changed(self) -> None:
        """Objects that changed while we looked, before or after their turn in the dump."""
        for key, item in self._noticed.items():
            if self._mirror.get(key) != item:
                self._doubt(key)

    def _doubt(self, key: Key) -> None:
        """The mirror may be wrong about ``key``: ask the kernel, next round."""
        self._unsure.add(key)
        self.dirty.add([key])

    def _plan(self, touched: set[Key] | None, observed: HostState) -> Plan:
        wanted = self.desired.state if touched is None else self.desired.only(touched)
        steps = plan(wanted, observed, self._scope)
        if not self._may_sweep:
            steps = tuple(step for step in steps if step.op != "remove")
        return steps

    def _learn(self, results: Sequence[Result], partial: bool) -> None:
        """Take over into the mirror what the kernel acknowledged; have again what it refused, later."""
        again: dict[float, list[Key]] = defaultdict(list)
        for result in results:
            key, item = result.step.key, result.step.item
            if result.error is None or is_moot(result.step, result.error):
                self._delays.pop(key, None)
                there = None if result.step.op == "remove" else item
                if key in self._noticed and self._noticed[key] != there:
                    self._doubt(key)  # somebody else was at it while we were: which of the two came last, only the kernel knows
                elif there is None:
                    self._mirror.pop(key, None)
                else:
                    self._mirror[key] = item
                if partial and isinstance(item, Link) and result.step.op in ("add", "remake"):
                    self.dirty.add_everything()  # what lived on it is gone, and all of it must come back
            else:
                delay = min(self._delays.get(key, FIRST_RETRY_S / 2) * 2, LAST_RETRY_S)
                self._delays[key] = delay
                again[delay].append(key)
        for delay, keys in again.items():
            asyncio.get_running_loop().call_later(delay, self.dirty.add, keys)
        for key in [key for key in self._delays if key not in self._mirror and self.desired.get(key) is None]:
            del self._delays[key]

    def _note_drift(self, steps: Plan) -> Plan:
        """Say what somebody else changed: steps that follow neither from a change of what is desired nor from a failure.

        Returns the steps to take now: what is changed again and again is repaired with growing pauses.
        """
        drift = [step for step in steps if step.key not in self._meant and step.key not in self._delays]
        drift = [step for step in drift if step.before or step.key.kind != "sysctl"]  # one that the kernel does not have
        self._meant.clear()
        if self._first_sweep and any(step.op == "remove" for step in drift):
            left = [step for step in drift if step.op == "remove"]
            drift = [step for step in drift if step.op != "remove"]
            more = f", and {len(left) - 1} more" if len(left) > 1 else ""
            log.info("left over from before, nobody needs it now: %s%s", left[0], more)
        self._first_sweep = False
        if not drift or not self.settled:
            return steps
        loop = asyncio.get_running_loop()
        put_off = self._contests.put_off([step.key for step in drift], loop.time())
        for key, pause in put_off.items():
            if pause is not None:
                self._reporter.begin("kernel-contested", str(key), str(key))
                loop.call_later(pause, self._try_contested, key)
        drift = [step for step in drift if step.key not in put_off]
        self.repairs += len(drift)
        self.last_repair = (loop.time(), drift[-1]) if drift else self.last_repair
        for step in drift[:LOGGED]:
            log.warning("%s was changed by somebody else; repairing: %s", step.key, step)
        if len(drift) > LOGGED:
            log.warning("%d more kernel objects were changed by somebody else; repairing them, too", len(drift) - LOGGED)
        return tuple(step for step in steps if step.key not in put_off)

    def _try_contested(self, key: Key) -> None:
        """The pause is over: repair it now, if it still needs it."""
        self._contests.grant(key)
        self._doubt(key)
        asyncio.get_running_loop().call_later(QUIET_S, self._end_contests)

    def _end_contests(self) -> None:
        for key in self._contests.settle(asyncio.get_running_loop().time()):
            self._reporter.end("kernel-contested", str(key))

    async def _report(self, results: Sequence[Result]) -> None:
        """One condition for each kind of failure, with the first of its steps."""
        failures: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            if result.error is not None and not is_moot(result.step, result.error):
                failures[f"{result.step.item.noun} {result.error.code}"].append(result)
        for kind, failed in failures.items():
            first = failed[0]
            more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            if kind not in self._failed_kinds:
                reason = await explain(self._kernel, first)
                self._reporter.begin("kernel-refused", f"{first.step}: {reason}{more}; trying again", kind)
        self._failed_kinds |= set(failures)
        if not self._delays and self._failed_kinds:
            self._failed_kinds.clear()
            self._reporter.end_all_but("kernel-refused", set())
