"""How much time do many hosts leave each other for what all of them do? What one writes etcd sends to all, and each lists all.

Among N hosts the cost of one event that makes each of them write, or list, grows by N * N; what may take seconds among a thousand
takes minutes among ten thousand, however fast each of them is. ``docs/scaling.md`` has the figures.
"""

from __future__ import annotations

MANY = 1_000
"""Hosts up to which etcd does all that in the time that is asked for."""

SPREAD_PER_HOST_S = 0.006
"""Three hosts need no spread, a thousand need six seconds."""


def spread_s(hosts: int, most_s: float) -> float:
    """Over how many seconds ``hosts`` hosts spread what one event asks of all of them; ``most_s``: among ``MANY``."""
    return min(most_s, SPREAD_PER_HOST_S * hosts) * max(1.0, hosts / MANY) ** 2


def between_listings_s(hosts: int, usual_s: float) -> float:
    """Seconds between two listings that nothing asks for: listings a second, of all hosts together, are as many among ten thousand
    as among a thousand; ``usual_s``: among up to ``MANY``.
    """
    return usual_s * max(1.0, hosts / MANY)
