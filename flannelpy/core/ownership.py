"""Whose is a block of addresses, or an identity, that several leases claim? The oldest lease's; when that goes, the next one's.

A claim counts as a whole, and only where no older one that counts shares an address or a name with it: what does not count shuts
out nobody. What comes of a set of claims does not depend on the order in which they came.

Work is proportional to what changes. The blocks that count are apart from each other, so they stand in order; and a claim that does
not count waits behind one older claim that does, and is looked at again only when that one counts no longer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from typing import NamedTuple

Age = tuple[int, str]
"""Create revision and lease key; the smaller is the older. Of two in one transaction the smaller key counts."""

Block = tuple[int, int, int]
"""IP version, first and last address, of a CIDR block."""


class Claim(NamedTuple):
    """What a lease claims: blocks of addresses, and names (a MAC, a public key) that only one may have."""

    age: Age
    blocks: tuple[Block, ...]
    names: tuple[str, ...] = ()


class Ownership:
    """Claims by lease key, and which of them count. Between two changes each counts, or waits behind an older one that does."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}
        self._owned: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}  # first, last, whose; in order, and apart
        self._named: dict[str, str] = {}  # whose a name is
        self._before: dict[str, str] = {}  # of one that does not count, the older one that it waits behind
        self._behind: dict[str, set[str]] = {}  # the same the other way round
        self._pending: list[Age] = []  # a heap of those that are to be judged,
        self._due: set[str] = set()  # and their keys
        self._were: dict[str, str | None] = {}  # behind which one those waited whose verdict may be another now

    def change(self, changes: Mapping[str, Claim | None]) -> dict[str, str | None]:
        """Claims that came, changed, or (None) went.

        The verdict on each that came or changed, and on every other one that has another verdict now: None where it counts, else
        the key of an older one that does.
        """
        self._were = {}
        for key, claim in changes.items():
            self._withdraw(key)
            self._due.discard(key)
            if claim is None:
                self._claims.pop(key, None)
            else:
                self._claims[key] = claim
                self._have_judged(key)
        while self._pending:  # the oldest first: what a verdict changes is younger
            key = heappop(self._pending)[1]
            if key in self._due:
                self._due.discard(key)
                self._judge(key)
        asked = {key for key in changes if key in self._claims}
        turned = {key for key, was in self._were.items() if key in self._claims and self._before.get(key) != was}
        return {key: self._before.get(key) for key in asked | turned}

    def _have_judged(self, key: str) -> None:
        self._due.add(key)
        heappush(self._pending, self._claims[key].age)

    def _judge(self, key: str) -> None:
        """Of one that neither counts nor waits."""
        claim = self._claims[key]
        rivals = list[str]()
        for rival in self._rivals(claim):
            if self._claims[rival].age < claim.age:
                self._wait(key, rival)
                return
            rivals.append(rival)
        for rival in dict.fromkeys(rivals):
            self._withdraw(rival)
            self._wait(rival, key)
        for version, first, last in claim.blocks:
            insort(self._owned[version], (first, last, key))
        for name in claim.names:
            self._named[name] = key

    def _rivals(self, claim: Claim) -> Iterator[str]:
        """Whose claims count and share something with this one."""
        for name in claim.names:
            if (owner := self._named.get(name)) is not None:
                yield owner
        for version, first, last in claim.blocks:
            owned = self._owned[version]
            at = bisect_left(owned, (first,))
            if at and owned[at - 1][1] >= first:
                yield owned[at - 1][2]
            while at < len(owned) and owned[at][0] <= last:
                yield owned[at][2]
                at += 1

    def _wait(self, key: str, before: str) -> None:
        self._before[key] = before
        self._behind.setdefault(before, set()).add(key)

    def _withdraw(self, key: str) -> None:
        """It neither counts nor waits now; those that waited behind it are to be judged."""
        claim = self._claims.get(key)
        if claim is None or key in self._due:
            return
        before = self._before.pop(key, None)
        self._were.setdefault(key, before)
        if before is not None:
            behind = self._behind[before]
            behind.discard(key)
            if not behind:
                del self._behind[before]
            return
        for version, first, last in claim.blocks:
            owned = self._owned[version]
            del owned[bisect_left(owned, (first, last, key))]
        for name in claim.names:
            del self._named[name]
        for waiting in self._behind.pop(key, ()):
            self._were.setdefault(waiting, self._before.pop(waiting))
            self._have_judged(waiting)
