"""What does the cluster look like now? One range read and a watch keep a membership true; readers follow it with a cursor each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass

from netaddr import IPAddress

from flannelpy.agent.context import Context
from flannelpy.agent.departures import Departures
from flannelpy.agent.view import Cursor, View
from flannelpy.core import lease_events as ev
from flannelpy.core.backend import Backend, Beside
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import MalformedError, RegistryError, WatchGapError
from flannelpy.core.membership import Changes, Membership
from flannelpy.core.model import Lease, parse_subnet_key
from flannelpy.core.names import Names
from flannelpy.core.offer import Offer, Offers
from flannelpy.core.underlay import Underlay
from flannelpy.plugins import Published, Spoken
from flannelpy.registry import ConfigChanged, Deleted, Event, Malformed, Put, Snapshot

log = logging.getLogger("flannelpy")

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 2.0
FIRST_S = 5.0
"""So long the first listing is kept for whoever asks for one."""
STEADY_S = 10.0
"""A watch that stood for so long was well."""


@dataclass(slots=True)
class _Listing:
    """``floor``: the revision of the last one; ``config_floor``: that of which the config is; ``first``:
    the first, as long as nobody has asked for it.
    """

    floor: int = 0
    config_floor: int = 0
    first: Snapshot | None = None


class Cluster:
    """The registry, followed. ``wake`` is called when the network config was written; ``tell`` is the lease keeper's ear."""

    def __init__(self, context: Context, wake: Callable[[], None]) -> None:
        self.config_text: str | None = None
        """The network config as stored; None where there is none, or it is not known yet (``listed``)."""
        self.listed = asyncio.Event()
        """Set once the registry has answered with its config and every lease."""
        self.revision = 0
        self.tell: Callable[[ev.Event], None] = lambda _event: None
        self._membership = known = Membership()
        self.departures = Departures(context.registry, context.timeouts, self._gone, lambda: context.ask_after(len(known.leases)))
        self._context = context
        self._wake = wake
        self._config: NetworkConfig | None = None
        self._own: Lease | None = None
        self._last = _Listing()
        self._rewound = False
        self._cursors: list[Cursor] = []
        self._doubts = asyncio.Event()

    # ------------------------------------------------------------------------------------------------------ looking

    @property
    def view(self) -> View:
        """The cluster as it is."""
        return View(self._config, self._own, self._membership.peers, self._membership.leases, self.revision)

    @property
    def refused(self) -> Mapping[str, str]:
        """Why a lease is no peer's, by key; empty text where that is nothing to report."""
        return self._membership.refused

    def cursor(self, wake: Callable[[], None]) -> Cursor:
        """A reader's own place, at the start: everything is new to it."""
        cursor = Cursor(self._membership.peers, wake)
        self._cursors.append(cursor)
        return cursor

    # --------------------------------------------------------------------------------------------- what we are to it

    def configure(
        self, config: NetworkConfig, backends: tuple[Backend, ...], address: IPAddress | None, underlay: Underlay
    ) -> None:
        """Judge the leases as a host of this network, that speaks these backends, has this address and this around it."""
        self._config, spoken = config, Spoken(backends)
        self._note(self._membership.configure(config, spoken.accepts, address, underlay, spoken))

    def prefer(self, carriers: Mapping[str, Backend | Beside]) -> None:
        """What peers offer of these carriers counts."""
        self._note(self._membership.prefer({name: Published(carrier) for name, carrier in carriers.items()}))

    def offer(self, key: str, offer: Offer | None) -> None:
        """The host with the lease ``key`` offers this now."""
        self._note(self._membership.offer(key, offer))

    @property
    def offers(self) -> Offers:
        """What stands beside the leases, whether it counts or not."""
        return self._membership.offers

    @property
    def names(self) -> Names:
        """What the hosts are called."""
        return self._membership.names

    def set_own(self, lease: Lease) -> None:
        """Our lease is this now."""
        self._own = lease
        self._note(self._membership.set_own(lease))

    def restore(self, config: str, leases: Iterable[Lease], revision: int) -> None:
        """Begin with what was kept on disk, while the registry is away."""
        self.config_text, self.revision = config, revision
        self._note(self._membership.replace(leases))

    def doubt(self) -> None:
        """List everything anew, soon."""
        self._doubts.set()

    # ---------------------------------------------------------------------------------------------------- listing

    async def refresh(self) -> Snapshot:
        """Every lease now, and the membership up to it. Raises RegistryError; then nothing has changed.

        Whoever asks first (at the start, the lease's keeper) has the listing that the agent began with, if nothing changed since.
        """
        first, self._last.first = self._last.first, None
        return first if first is not None and first.revision == self.revision else await self._read()

    async def _read(self) -> Snapshot:
        self._last.first = None
        known = self.revision
        snapshot = await self._context.registry.snapshot()
        if known <= snapshot.revision < self.revision:
            return snapshot  # the watch has overtaken the listing, and knows better
        reset = snapshot.revision < known
        self._last.floor = self.revision = snapshot.revision
        listed, unread = {lease.key for lease in snapshot.leases}, {bad.key for bad in snapshot.malformed}
        absent = [key for key in self._membership.leases if key not in listed]
        missing = [key for key in absent if key not in unread]  # else what it held before stays: nobody has said that it is gone
        for key in listed:
            self.departures.returned(key)
        self._note(self._membership.replace(snapshot.leases, keep=absent))
        for key in missing:
            self._depart(key, reset=reset)
        if reset:
            self._on_reset(snapshot.revision, known, len(missing))
        self._settle_reset()
        self._context.reporter.set("lease-malformed", {bad.key: bad.why for bad in snapshot.malformed})
        return snapshot

    async def _list(self) -> Snapshot:
        """Everything there is to know of the cluster: the leases, and the config after them. Raises RegistryError."""
        snapshot = await self._read()
        if (stored := await self._context.registry.config()).revision >= self._last.config_floor:  # else the watch has overtaken it
            self._set_config(stored.text, stored.revision)
        if not self.listed.is_set():
            self._last.first = snapshot
            asyncio.get_running_loop().call_later(FIRST_S, setattr, self._last, "first", None)
        self.listed.set()
        return snapshot

    async def _list_until_done(self) -> Snapshot:
        delay = FIRST_RETRY_S
        while True:
            with suppress(RegistryError):
                return await self._list()
            await asyncio.sleep(self._context.random.uniform(delay / 2, delay))
            delay = min(delay * 2, LAST_RETRY_S)

    def _on_reset(self, revision: int, known: int, missing: int) -> None:
        self._context.reporter.begin(
            "registry-reset",
            f"revision {revision} after {known}; {missing} leases are missing and kept for up to "
            f"{self._context.timeouts.reset_s:.0f} s until their hosts return",
        )
        self._rewound = True
        self._last.config_floor = 0
        self.tell(ev.OwnDeleted())  # revisions start over: our key may be gone whatever they say

    # ------------------------------------------------------------------------------------------------------- tasks

    async def follow(self) -> None:
        """List, and watch for ever; list anew after a gap."""
        await self._list_until_done()
        connected, delay, loop = False, 0.0, asyncio.get_running_loop()
        while True:
            self._rewound = False
            began = loop.time()
            try:
                async with aclosing(self._context.registry.watch(self.revision + 1)) as batches:  # type: ignore[type-var]
                    async for batch in batches:
                        if self._rewound:
                            raise WatchGapError("the registry's revisions have started over")
                        if batch.connected and connected:
                            self.tell(ev.Reconnected())
                            self._doubts.set()  # it may be another store, restored and already further than we were
                        connected = True
                        for event in batch.events:
                            self._take(event, batch.revision)
                        self.revision = max(self.revision, batch.revision)
            except WatchGapError as gap:
                log.info("the watch has a gap (%s): listing anew", gap)
                await self._pause()
                # The first is listed at once; where each watch has one, listing is all that would be done.
                delay = 0.0 if loop.time() - began > STEADY_S else delay
                await asyncio.sleep(self._context.random.uniform(delay / 2, delay))
                delay = min(max(delay * 2, FIRST_RETRY_S), LAST_RETRY_S)
                self._overhear(await self._list_until_done())
            except RegistryError:
                await asyncio.sleep(self._context.random.uniform(0.5, 1.0))

    async def relist(self) -> None:
        """List again every ``relist_s``, and soon after the watch was cut, for ever."""
        await self.listed.wait()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._context.relist_after(len(self._membership.leases))):
                    await self._doubts.wait()
            self._doubts.clear()
            await self._pause()
            self._overhear(await self._list_until_done())

    async def _pause(self) -> None:
        await asyncio.sleep(self._context.spread(len(self._membership.leases)))

    def _overhear(self, snapshot: Snapshot) -> None:
        """A listing that the keeper did not ask for is welcome to it all the same."""
        self.tell(ev.Overheard(snapshot.leases, snapshot.revision, snapshot.defaced))

    # ------------------------------------------------------------------------------------------------ what happens

    def _take(self, event: Event, told_at: int) -> None:
        match event:
            case Put(lease):
                if lease.mod_revision > self._last.floor:
                    self.departures.returned(lease.key)
                    self._note(self._membership.put(lease))
                    self._context.reporter.end("lease-malformed", lease.key)
                    self._settle_reset()
                self.tell(ev.OwnPut(lease))
            case Deleted(key, revision):
                if not revision or revision > self._last.floor:
                    self._depart(key)
                    self._context.reporter.end("lease-malformed", key)
                self._tell_freed(key, revision)
            case Malformed(key, why, revision):
                # The value cannot be read: what the key held before stays programmed, nobody has said that it is gone.
                if not revision or revision > self._last.floor:  # else a listing has said since what the key holds
                    self._context.reporter.begin("lease-malformed", why, key)
                self.tell(ev.OwnDefaced(key, revision))
            case ConfigChanged(text, revision):
                if not revision or revision > self._last.config_floor:  # else what was read since is newer
                    self._set_config(text, revision or told_at)

    def _tell_freed(self, key: str, revision: int) -> None:
        if self._own is not None and key == self._own.key:
            self.tell(ev.OwnDeleted(revision))
        else:
            with suppress(MalformedError):  # then it never was a lease
                self.tell(ev.SubnetFreed(*parse_subnet_key(key), revision))

    def _set_config(self, text: str | None, revision: int) -> None:
        self._last.config_floor = revision
        if text != self.config_text or not self.listed.is_set():
            self.config_text = text
            self._wake()

    def _depart(self, key: str, *, reset: bool = False) -> None:
        """This key is gone; it is believed later, unless it comes back."""
        lease = self._membership.leases.get(key)
        if lease is not None and key not in self.departures.kept:
            self.departures.depart(lease, reset=reset)
            self._note(self._membership.put(lease.depart()))

    def _gone(self, key: str) -> None:
        self._note(self._membership.remove(key))
        self._settle_reset()

    def _settle_reset(self) -> None:
        if not self.departures.kept:
            self._context.reporter.end("registry-reset")

    def _note(self, changes: Changes) -> None:
        for key, why in changes.refused.items():
            if why and not self._membership.leases[key].departing:
                self._context.reporter.begin("peer-unusable", why, key)
            else:
                self._context.reporter.end("peer-unusable", key)
        if changes.peers:
            for cursor in self._cursors:
                cursor.note(changes.peers)
