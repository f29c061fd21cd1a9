"""What becomes of a peer whose key is gone? It is believed a little later, and not before etcd was asked how the key went.

Its owner may be taking it again this moment, and a route that was not taken away loses no packet. After that moment etcd is asked
what became of the etcd lease that the key hung on. It is alive: somebody deleted the key, and the peer goes. It has ended, too: its
host has not reached etcd for long, or etcd has lost its data, and neither says that the host no longer answers its peers. So it is
kept for long, without standing in anybody's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from flannelpy.agent.context import Timeouts
from flannelpy.core.duration import span
from flannelpy.core.errors import RegistryError
from flannelpy.core.model import Lease
from flannelpy.registry import Registry

log = logging.getLogger("flannelpy")

LEAVING, EXPIRED, RESET = "leaving", "kept-after-expiry", "kept-after-reset"


@dataclass(frozen=True, slots=True)
class Departure:
    """``state``: one of the three above; ``until`` in the loop's time: when it is decided, or the peer is gone."""

    lease: Lease
    state: str
    until: float


class Departures:
    """The peers that are kept although their keys are gone. ``gone`` is called with the key of each that is kept no longer."""

    def __init__(self, registry: Registry, timeouts: Timeouts, gone: Callable[[str], None]) -> None:
        self.kept: dict[str, Departure] = {}
        self.fates: dict[str, str] = {}
        """How those went that are kept no longer, by key: LEAVING was a deletion. Whoever reads one takes it out."""
        self._registry = registry
        self._timeouts = timeouts
        self._gone = gone
        self._changed = asyncio.Event()

    def depart(self, lease: Lease, *, reset: bool = False) -> None:
        """The key of ``lease`` is gone; after a ``reset`` with all that etcd had. One that departs already keeps its time."""
        if lease.key not in self.kept:
            self._keep(lease, *((RESET, self._timeouts.reset_s) if reset else (LEAVING, self._timeouts.departure_s)))

    def returned(self, key: str) -> None:
        """The key is there again."""
        self.fates.pop(key, None)
        self.kept.pop(key, None)

    def until(self, key: str) -> float | None:
        """Seconds until the peer under ``key`` goes or is decided on; None where it does not depart."""
        departure = self.kept.get(key)
        return None if departure is None else max(0.0, departure.until - asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Decide on each when its time has come, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            earliest = min(self.kept.values(), key=lambda departure: departure.until, default=None)
            if earliest is None or earliest.until > loop.time():
                pause = None if earliest is None else earliest.until - loop.time()
                try:
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            await self._decide(earliest)

    async def _decide(self, departure: Departure) -> None:
        key = departure.lease.key
        if departure.state == LEAVING:
            try:
                deleted = await self._registry.outlives_key(departure.lease)
            except RegistryError:
                if self.kept.get(key) is departure:
                    self._keep(departure.lease, LEAVING, self._timeouts.departure_s)
                return
            if self.kept.get(key) is not departure:
                return  # it came back while we asked
            if not deleted:
                kept = span(self._timeouts.expired_s)
                log.info("%s: its lease has ended, not been given back; kept for %s", departure.lease, kept)
                self._keep(departure.lease, EXPIRED, self._timeouts.expired_s)
                return
        self.kept.pop(key, None)
        self.fates[key] = departure.state
        self._gone(key)

    def _keep(self, lease: Lease, state: str, delay_s: float) -> None:
        self.kept[lease.key] = Departure(lease, state, asyncio.get_running_loop().time() + delay_s)
        self._changed.set()
