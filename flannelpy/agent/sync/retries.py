"""When is what the kernel refused tried again? One time a key, that doubles; nothing but its own attempt makes another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf

from flannelpy.core.objects import Key

FIRST_RETRY_S, LAST_RETRY_S = 0.4, 30.0
LAST_LINK_S = 5.0
"""For a device and its port, on which everything else waits, and of which nobody tells when what it needs (a port) is free."""


class Retries:
    """The keys that wait. Pure: ``now`` is handed in, in seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._waits: dict[Key, tuple[float, float]] = {}  # key -> (the delay that it is in, when it is due)
        self.attempts = 0
        """How often something was refused, ever."""

    def refused(self, key: Key, now: float) -> None:
        """An attempt at ``key`` has failed now: later, twice as late as before."""
        self.attempts += 1
        before = self._waits.get(key)
        last = LAST_LINK_S if key.kind in ("link", "wg") else LAST_RETRY_S
        delay = FIRST_RETRY_S if before is None else min(before[0] * 2, last)
        self._waits[key] = delay, now + delay

    def done(self, key: Key) -> None:
        """There is nothing left to try."""
        self._waits.pop(key, None)

    def hasten(self, keys: Iterable[Key], now: float) -> None:
        """What was in the way of these may be gone: they are due now. Those that do not wait are passed over."""
        for key in keys:
            if (before := self._waits.get(key)) is not None:
                self._waits[key] = before[0], min(before[1], now)

    def postpone(self, key: Key, other: Key) -> None:
        """``key`` cannot go before ``other``, which waits: it is not due before that one is."""
        before, first = self._waits.get(key), self._waits.get(other)
        if before is not None and first is not None:
            self._waits[key] = before[0], max(before[1], first[1])

    def waiting(self, key: Key, now: float) -> bool:
        """True where ``key`` is not to be tried yet."""
        return self._waits.get(key, (0.0, -inf))[1] > now

    def due(self, now: float) -> list[Key]:
        """What is to be tried now."""
        return [key for key, (_delay, when) in self._waits.items() if when <= now]

    @property
    def next_due(self) -> float | None:
        """When something is to be tried next."""
        return min((when for _delay, when in self._waits.values()), default=None)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._waits))

    def __contains__(self, key: Key) -> bool:
        return key in self._waits

    def __len__(self) -> int:
        return len(self._waits)
