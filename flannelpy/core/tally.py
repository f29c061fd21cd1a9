"""How often, and how long? Numbers that only grow, for whoever draws them over time."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a histogram's buckets, in seconds: from a join in an idle cluster to one that had to wait for a retry."""


def about(number: int) -> str:
    """``9``, ``over 9``, ``over 19``, ``over 49``: exact to nine, then in steps. A text that is told anew whenever it is another
    one would else be told for each peer of a thousand that is looked at.
    """
    if number < 10:
        return str(number)
    power = 10 ** (len(str(number)) - 1)
    return f"over {max(step for step in (1, 2, 5) if step * power <= number) * power - 1:,}"


@dataclass(slots=True)
class Histogram:
    """Durations in seconds by bucket; ``counts`` has one more than BOUNDS_S, for what is longer than all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """One more that took so long."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds
