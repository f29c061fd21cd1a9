"""What becomes of a peer whose key is gone? It is believed a little later, and not before etcd was asked how the key went.

Its owner may be taking it again this moment, and a route that was not taken away loses no packet. After that moment etcd is asked
what became of the etcd lease that the key hung on. It is alive: somebody deleted the key, and the peer goes. It has ended, too: its
host has not reached etcd for long, or etcd has lost its data, and neither says that the host no longer answers its peers. So it is
kept for long, without standing in anybody's way. While etcd does not answer nobody is taken away, however long that is.

All hosts ask this of the same leases: each a little later by chance, and of those that went together in one question.
"""

from __future__ import annotations

import asyncio
import heapq
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

AT_ONCE = 5_000
"""Leases in a question."""
EARLY = 1 / 6
"""Of the time that a key may be gone: those so close to their turn are asked about with the one whose turn it is."""
FATES = 10_000
"""How many fates are kept for whoever asks: not every lease was a peer's that somebody asks for."""


@dataclass(frozen=True, slots=True)
class Departure:
    """``state``: one of the three above; ``until`` in the loop's time: when it is decided, or the peer is gone."""

    lease: Lease
    state: str
    until: float


class Departures:
    """The peers that are kept although their keys are gone. ``gone`` is called with the key of each that is kept no longer."""

    def __init__(
        self, registry: Registry, timeouts: Timeouts, gone: Callable[[str], None], ask_after: Callable[[], float] = lambda: 0.0
    ) -> None:
        """``ask_after``: for how long a question waits by chance, in seconds."""
        self.kept: dict[str, Departure] = {}
        self.fates: dict[str, str] = {}
        """How those went that are kept no longer, by key: LEAVING was a deletion. Whoever reads one takes it out."""
        self._registry = registry
        self._timeouts = timeouts
        self._gone = gone
        self._ask_after = ask_after
        self._chance = (float("-inf"), 0.0)  # when it was drawn, and for how long those wait who depart within that time
        self._changed = asyncio.Event()
        self._due: list[tuple[float, str]] = []
        """A heap of all times there ever were, by key; one that is not its departure's any more is passed over."""

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
        self._due = [(departure.until, key) for key, departure in self.kept.items()]  # also those that a failure left undecided
        heapq.heapify(self._due)
        while True:
            self._changed.clear()
            if due := self._take_due():
                await self._decide(due)
                continue
            pause = self._due[0][0] - asyncio.get_running_loop().time() if self._due else None
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _take_due(self) -> list[Departure]:
        """Some of those whose time has come, and who are all but there; the others' turn is next."""
        now, found = asyncio.get_running_loop().time(), list[Departure]()
        while self._due and len(found) < AT_ONCE:
            when, key = self._due[0]
            departure = self.kept.get(key)
            if departure is not None and departure.until == when:
                if when > now + (EARLY * self._timeouts.departure_s if found else 0.0):
                    break
                found.append(departure)
            heapq.heappop(self._due)
        return found

    async def _decide(self, due: list[Departure]) -> None:
        try:  # also of one whose time is over: who does not see etcd takes nobody away
            deleted = await self._registry.outliving([departure.lease for departure in due])
        except RegistryError:
            for departure in due:
                if self.kept.get(departure.lease.key) is departure:
                    self._keep(departure.lease, departure.state, self._timeouts.departure_s)
            return
        for departure in due:
            if self.kept.get(departure.lease.key) is departure:  # else it came back while we asked
                self._settle(departure, departure.lease.key in deleted)

    def _settle(self, departure: Departure, deleted: bool) -> None:
        key = departure.lease.key
        if departure.state == LEAVING and not deleted:
            kept = span(self._timeouts.expired_s)
            log.info("%s: its lease has ended, not been given back; kept for %s", departure.lease, kept)
            self._keep(departure.lease, EXPIRED, self._timeouts.expired_s)
            return
        self.kept.pop(key, None)
        self.fates[key] = departure.state
        while len(self.fates) > FATES:
            del self.fates[next(iter(self.fates))]
        self._gone(key)

    def _keep(self, lease: Lease, state: str, delay_s: float) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._chance[0] > self._timeouts.departure_s:
            self._chance = now, self._ask_after()
        until = now + delay_s + self._chance[1]
        self.kept[lease.key] = Departure(lease, state, until)
        heapq.heappush(self._due, (until, lease.key))
        self._changed.set()
