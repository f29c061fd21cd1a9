"""What if somebody else changes what we have set? It is repaired at once; the same thing too often, at a bounded rate.

Each key has a bucket of repairs: ``AT_ONCE`` of them, and one more every ``EVERY_S``. What is changed now and then is repaired at
once each time, however often it happens; two programs that fight over one thing are slowed down to that rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flannelpy.core.objects import Key

AT_ONCE = 5
EVERY_S = 3.0


@dataclass(slots=True)
class Bucket:
    """``tokens``: repairs that may be made at ``at``; ``suppressed``: since it was last full, one had to wait."""

    tokens: float
    at: float
    suppressed: bool = False

    def level(self, now: float) -> float:
        """Repairs that may be made now."""
        return min(float(AT_ONCE), self.tokens + max(0.0, now - self.at) / EVERY_S)


class Damping:
    """The keys that were repaired lately. Pure: ``now`` is handed in."""

    def __init__(self) -> None:
        self._buckets: dict[Key, Bucket] = {}

    def suppress(self, keys: Iterable[Key], now: float) -> set[Key]:
        """Of these keys, to be repaired now, those that must wait (until ``next_due``); the others are counted as repaired."""
        late = set()
        for key in keys:
            bucket = self._buckets.setdefault(key, Bucket(float(AT_ONCE), now))
            bucket.tokens, bucket.at = bucket.level(now), now
            if bucket.tokens < 1.0:
                bucket.suppressed = True
                late.add(key)
            else:
                bucket.tokens -= 1.0
        return late

    def settle(self, now: float) -> None:
        """Forget the keys that nobody has touched for long."""
        for key in [key for key, bucket in self._buckets.items() if bucket.level(now) >= AT_ONCE]:
            del self._buckets[key]

    def contested(self) -> list[Key]:
        """The keys that had to wait, and have not been left alone since."""
        return [key for key, bucket in self._buckets.items() if bucket.suppressed]

    def next_due(self, keys: Iterable[Key]) -> float | None:
        """When the first of these may be repaired."""
        times = [bucket.at + (1.0 - bucket.tokens) * EVERY_S for key in keys if (bucket := self._buckets.get(key)) is not None]
        return min(times, default=None)

    def __len__(self) -> int:
        return len(self._buckets)
