"""What does the cluster look like now? One range read and a watch keep a membership true, and tell each change on.

A key that goes is believed a little later: its owner may be taking it again this moment, and a route that was not taken away loses
no packet. After that moment etcd is asked what became of the etcd lease that the key hung on. It is alive: somebody deleted the
key, and the peer goes. It has ended too: its host has not reached etcd for long, or etcd has lost its data, and neither tells that
the host no longer answers its peers. So it is kept for long, without standing in anybody's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from flannelpy.agent.report import Reporter
from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryTlsError, RegistryUnavailableError, WatchGapError
from flannelpy.core.membership import Changes, Membership
from flannelpy.core.model import Lease
from flannelpy.registry import ConfigChanged, Deleted, Event, Malformed, Put, Registry, Snapshot

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 2.0

_CODES = {RegistryTlsError: "registry-tls", RegistryAuthError: "registry-auth"}

REGISTRY_CODES = ("registry-unreachable", *_CODES.values())
"""The conditions under which the registry is not to be reached."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things are waited for, in seconds.

    ``departure_s``: a peer whose key is gone; ``expired_s``: one whose etcd lease has ended with it; ``reset_s``: peers that are
    missing after etcd lost data; ``relist_s``: between full listings, the safety net under the watch; ``offline_s``: for etcd at
    start, before what is kept on disk is used.
    """

    departure_s: float = 3.0
    expired_s: float = 600.0
    reset_s: float = 600.0
    relist_s: float = 300.0
    offline_s: float = 1.0


def report_error(reporter: Reporter, error: RegistryError) -> None:
    """A call failed: the condition that fits."""
    reporter.begin(_CODES.get(type(error), "registry-unreachable"), str(error))


def report_success(reporter: Reporter) -> None:
    """A call went through: whatever kept us from the registry is over."""
    for code in REGISTRY_CODES:
        reporter.end(code)


def report_life(reporter: Reporter, registry: Registry) -> None:
    """Say so where etcd is silent, or answers and keeps the watch from going on; and where that is over."""
    trouble = registry.trouble
    if trouble is not None and not isinstance(trouble, RegistryUnavailableError):
        report_error(reporter, trouble)
    elif not registry.alive:
        reporter.begin("registry-unreachable", "no sign of life on the watch")
    elif trouble is None:
        report_success(reporter)


class Departure(NamedTuple):
    """What is to become of a peer whose key is gone. ``state``: leaving, kept-after-expiry or kept-after-reset; ``until`` in the
    loop's time.
    """

    timer: asyncio.TimerHandle
    state: str
    until: float


class Cluster:
    """The registry followed. ``on_peers`` gets what changed among usable peers, ``on_event`` every event as it comes, ``on_listed``
    every listing that nobody asked for; ``on_reset`` is called when etcd has lost its data, ``on_reconnect`` when the watch stands
    again after it was cut.
    """

    def __init__(
        self,
        registry: Registry,
        membership: Membership,
        reporter: Reporter,
        patience: Patience,
        *,
        on_peers: Callable[[Changes], None],
        on_event: Callable[[Event], None],
        on_listed: Callable[[Snapshot], None],
        on_reset: Callable[[], None],
        on_reconnect: Callable[[], None],
    ) -> None:
        self.membership = membership
        self.revision = 0
        """The last revision that was seen."""
        self._registry = registry
        self._reporter = reporter
        self._patience = patience
        self._on_peers = on_peers
        self._on_event = on_event
        self._on_listed = on_listed
        self._on_reset = on_reset
        self._on_reconnect = on_reconnect
        self._floor = 0
        self._rewound = False
        self._malformed: set[str] = set()
        self.departing: dict[str, Departure] = {}
        """By lease key: peers that are kept although their keys are gone."""
        self._unexplained: asyncio.Queue[str] = asyncio.Queue()

    def restore(self, leases: Iterable[Lease], revision: int) -> None:
        """Begin with what was kept on disk, instead of ``refresh``, while the registry is away."""
        self.revision = revision
        self._note(self.membership.replace(leases))

    async def begin(self) -> None:
        """The first listing, whenever the registry gives one."""
        delay = FIRST_RETRY_S
        while True:
            try:
                await self.refresh()
            except RegistryError as error:
                report_error(self._reporter, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY_S)
            else:
                report_success(self._reporter)
                return

    async def refresh(self) -> Snapshot:
        """List everything and bring the membership up to it. Raises RegistryError; then nothing has changed."""
        known = self.revision
        snapshot = await self._registry.snapshot()
        if known <= snapshot.revision < self.revision:
            return snapshot  # the watch has overtaken the listing, and knows better
        listed = {lease.key for lease in snapshot.leases}
        missing = [key for key in self.membership.leases if key not in listed]
        reset = snapshot.revision < known
        self._floor = self.revision = snapshot.revision
        for key in listed:
            self._returned(key)
        self._note(self.membership.replace(snapshot.leases, keep=missing))
        self._depart(missing, reset=reset)
        if reset:
            self._rewound = True
            self._reporter.begin(
                "registry-reset",
                f"revision {snapshot.revision} after {known}; {len(missing)} leases are missing and kept for up to "
                f"{self._patience.reset_s:.0f} s until their hosts return",
            )
            self._settle_reset()
            self._on_reset()
        self._malformed = {bad.key for bad in snapshot.malformed}
        for bad in snapshot.malformed:
            self._reporter.begin("lease-malformed", bad.why, bad.key)
        self._reporter.end_all_but("lease-malformed", self._malformed)
        return snapshot

    async def follow(self) -> None:
        """Watch for ever; list anew after a gap. Call ``refresh`` first."""
        connected = False
        while True:
            self._rewound = False
            try:
                async for batch in self._registry.watch(self.revision + 1):
                    if self._rewound:
                        raise WatchGapError("somebody else has found that etcd's revisions have started over")
                    if batch.connected and connected:
                        self._on_reconnect()
                    connected = True
                    for event in batch.events:
                        self._take(event)
                    self.revision = max(self.revision, batch.revision)
            except WatchGapError as gap:
                log.info("the watch has a gap (%s): listing anew", gap)
                await self._refresh_until_done()
            except RegistryError as error:
                report_error(self._reporter, error)
                await asyncio.sleep(1.0)

    async def relist(self) -> None:
        """List again every ``relist_s``, for ever."""
        while True:
            await asyncio.sleep(self._patience.relist_s)
            await self._refresh_until_done()

    async def explain(self) -> None:
        """Ask what became of the keys that are gone and did not come back, one after the other, for ever."""
        while True:
            key = await self._unexplained.get()
            lease = self.membership.leases.get(key)
            if lease is None or key not in self.departing:
                continue
            try:
                deleted = await self._registry.outlives_key(lease)
            except RegistryError:
                self._set_out(key, "leaving", self._patience.departure_s, self._unexplained.put_nowait)
                continue
            if key not in self.departing:
                continue  # it came back while we asked
            if deleted:
                self._gone(key)
            else:
                log.info("%s: its lease has ended, not been given back; kept for %.0f s", lease, self._patience.expired_s)
                self._set_out(key, "kept-after-expiry", self._patience.expired_s, self._gone)

    def close(self) -> None:
        """Stop the clocks of departing peers."""
        for departure in self.departing.values():
            departure.timer.cancel()
        self.departing.clear()

    def note_own(self, changes: Changes) -> None:
        """Our own lease moved, and with it the verdict on others."""
        self._note(changes)

    async def _refresh_until_done(self) -> None:
        pause = 0.2
        while True:
            try:
                self._on_listed(await self.refresh())
                report_success(self._reporter)
                return
            except RegistryError as error:
                report_error(self._reporter, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    def _take(self, event: Event) -> None:
        match event:
            case Put(lease):
                if lease.mod_revision > self._floor:
                    self._returned(lease.key)
                    self._note(self.membership.put(lease))
                    self._clear_malformed(lease.key)
            case Deleted(key, mod_revision):
                if not mod_revision or mod_revision > self._floor:
                    self._depart([key])
                    self._clear_malformed(key)
            case Malformed(key, why):
                # The value cannot be read: what the key held before stays programmed, nobody has said that it is gone.
                self._malformed.add(key)
                self._reporter.begin("lease-malformed", why, key)
            case ConfigChanged():
                pass
        self._on_event(event)

    def _depart(self, keys: Iterable[str], *, reset: bool = False) -> None:
        """These keys are gone; believe it later, unless they come back. A key that departs already keeps its time."""
        for key in keys:
            lease = self.membership.leases.get(key)
            if lease is None or key in self.departing:
                continue
            self._note(self.membership.put(lease.depart()))
            if reset:
                self._set_out(key, "kept-after-reset", self._patience.reset_s, self._gone)
            else:
                self._set_out(key, "leaving", self._patience.departure_s, self._unexplained.put_nowait)

    def _set_out(self, key: str, state: str, delay_s: float, then: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self.departing[key] = Departure(loop.call_later(delay_s, then, key), state, loop.time() + delay_s)

    def _returned(self, key: str) -> None:
        departure = self.departing.pop(key, None)
        if departure is not None:
            departure.timer.cancel()
            self._settle_reset()

    def _gone(self, key: str) -> None:
        self.departing.pop(key, None)
        self._note(self.membership.remove(key))
        self._settle_reset()

    def _settle_reset(self) -> None:
        if not self.departing:
            self._reporter.end("registry-reset")

    def _clear_malformed(self, key: str) -> None:
        if key in self._malformed:
            self._malformed.discard(key)
            self._reporter.end("lease-malformed", key)

    def _note(self, changes: Changes) -> None:
        for key, why in changes.refused.items():
            if why and not self.membership.leases[key].departing:
                self._reporter.begin("peer-unusable", why, key)
            else:
                self._reporter.end("peer-unusable", key)
        if changes.peers:
            self._on_peers(changes)
