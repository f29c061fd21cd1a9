"""Which block of a pool is free, and which of the free ones to take?

A block is free where no lease overlaps it, whatever that lease's length or alignment. Among the free ones those that others used
most recently come last (peers may still hold routes and caches for them); otherwise chance decides, so that hosts that start
together choose differently. Cost: a sort of the leases, whatever the size of the pool.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from random import Random

from netaddr import IPNetwork

from flannelpy.core.config import Pool

FREED_KEPT, FREED_KEPT_S = 4096, 86_400.0
"""How many freed subnets are remembered, and for how long in seconds."""
OURS_KEPT = 8
OWN_SHOWN = 3

Run = tuple[int, int]
"""Neighbouring block numbers: from the first to before the second."""


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    """True where two networks share an address."""
    return one.version == other.version and one.first <= other.last and other.first <= one.last


def free_runs(pool: Pool, taken: Iterable[IPNetwork]) -> list[Run]:
    """The blocks that nothing in ``taken`` touches, in order."""
    base, size, count, version = int(pool.first), pool.size, pool.count, pool.network.version
    spans = sorted(((net.first - base) // size, (net.last - base) // size) for net in taken if net.version == version)
    runs: list[Run] = []
    start = 0
    for low, high in spans:
        if low >= count:
            break
        if low > start:
            runs.append((start, low))
        start = max(start, high + 1)
    if start < count:
        runs.append((start, count))
    return runs


def fullness(pool: Pool, leased: Iterable[IPNetwork], avoided: Iterable[IPNetwork]) -> str:
    """In words, why nothing in a pool is free: how much is leased, and what this host needs itself, where that is the rest."""
    free = sum(end - start for start, end in free_runs(pool, leased))
    text = f"{pool.count - free} of {pool.count} in {pool.network} leased"
    own = [str(net) for net in avoided if overlap(net, pool.network)] if free else []
    more = f" and {len(own) - OWN_SHOWN} more" if len(own) > OWN_SHOWN else ""
    return f"this host itself needs {', '.join(own[:OWN_SHOWN])}{more}; {text}" if own else text


def choose_block(pool: Pool, taken: Sequence[IPNetwork], recent: Mapping[IPNetwork, float], random: Random) -> IPNetwork | None:
    """A free block, or None where there is none. ``recent``: subnets that were freed lately, and when.

    As many of the recent ones are passed over as leave a choice, the latest first.
    """
    latest_first = sorted(recent, key=lambda net: recent[net], reverse=True)

    def leaves(passed_over: int) -> list[Run]:
        return free_runs(pool, chain(taken, latest_first[:passed_over]))

    passed_over = len(latest_first)
    if not leaves(passed_over):
        # The first number that leaves nothing; one less leaves something, unless even none does.
        passed_over = bisect_left(range(passed_over), True, key=lambda number: not leaves(number)) - 1
    return _pick(pool, leaves(passed_over), random) if passed_over >= 0 else None


class Memory:
    """What is known of subnets beside the leases: which were ours, which others gave back lately, which we gave back just now."""

    def __init__(self, ours: Iterable[IPNetwork] = ()) -> None:
        self._ours = tuple(ours)
        self._freed: dict[IPNetwork, float] = {}
        self._released: set[IPNetwork] = set()

    def freed(self, now: float, nets: Iterable[IPNetwork]) -> None:
        """A lease of these is gone: take them last, for a day."""
        for net in nets:
            self._freed.pop(net, None)
            self._freed[net] = now
        while self._freed and (len(self._freed) > FREED_KEPT or now - next(iter(self._freed.values())) > FREED_KEPT_S):
            del self._freed[next(iter(self._freed))]

    def released(self, now: float, nets: Iterable[IPNetwork]) -> None:
        """We gave these back; until we are settled they are not taken up as ours."""
        nets = tuple(nets)
        self._released.update(nets)
        self.freed(now, nets)

    def lost(self, nets: Iterable[IPNetwork]) -> None:
        """These were ours: the first to ask for."""
        self._ours = (*nets, *self._ours)[:OURS_KEPT]

    def were_ours(self, nets: Sequence[IPNetwork]) -> bool:
        """True for a lease's subnets, all of which we held before."""
        return bool(nets) and all(net in self._ours for net in nets)

    def settled(self) -> None:
        """We hold a lease."""
        self._released.clear()

    def choose(self, pool: Pool, taken: Sequence[IPNetwork], random: Random) -> IPNetwork | None:
        """A subnet of the pool: one that was ours before if it is free, else any free one; None where there is none."""
        for net in (before.cidr for before in self._ours):
            if pool.fits(net) and net not in self._released and not any(overlap(net, other) for other in taken):
                return net
        return choose_block(pool, taken, self._freed, random)


def _pick(pool: Pool, runs: Sequence[Run], random: Random) -> IPNetwork | None:
    if not runs:
        return None
    number = random.randrange(sum(end - start for start, end in runs))
    for start, end in runs:
        if number < end - start:
            return pool.block(start + number)
        number -= end - start
    raise AssertionError("a number below the count lies in one of the runs")
