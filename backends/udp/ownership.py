"""Whose is a block of addresses, where several leases claim it? The oldest lease's; and when that goes, the next one's.

Keys that differ may claim one block (host bits, an IPv6 half more) or overlap (10.5.9.0/24 and 10.5.9.128/25). Nothing here trusts
that somebody has sorted them out before: what is owned depends on the claims that there are, and not on the order in which they
came. An overlap is settled as a whole: a claim counts only where no older one that counts shares an address with it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from backends.udp.protocol import DELETE, SET, Block, Order


class Claim(NamedTuple):
    """A lease's, to ``block``. Of two, the smaller counts: by create revision, then by key. ``host`` is the PublicIP."""

    revision: int
    key: str
    block: Block
    host: int


class Ownership:
    """All claims by lease key, and what comes of them."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}
        self._at: dict[Block, list[Claim]] = {}  # oldest first
        self._lengths: Counter[int] = Counter()  # of the blocks in _at
        self._sorted: list[Block] = []  # those blocks, so that all inside another one are a slice
        self._owned: dict[Block, int] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def orders(self) -> list[Order]:
        """The whole table."""
        return [Order(SET, *block, host) for block, host in self._owned.items()]

    def change(self, changes: Mapping[str, Claim | None]) -> list[Order]:
        """Claims that came, changed, or (None) went; what a peer table must do for it, deletions first."""
        touched: dict[Block, None] = {}
        for key, claim in changes.items():
            before = self._claims.get(key)
            if claim == before:
                continue
            if before is not None:
                self._withdraw(before)
                touched[before.block] = None
            if claim is not None:
                self._enter(claim)
                touched[claim.block] = None
        return self._settle(touched)

    def _enter(self, claim: Claim) -> None:
        self._claims[claim.key] = claim
        rivals = self._at.get(claim.block)
        if rivals is None:
            self._at[claim.block] = [claim]
            self._lengths[claim.block[1]] += 1
            insort(self._sorted, claim.block)
        else:
            insort(rivals, claim)

    def _withdraw(self, claim: Claim) -> None:
        del self._claims[claim.key]
        rivals = self._at[claim.block]
        rivals.remove(claim)
        if not rivals:
            del self._at[claim.block]
            self._lengths -= Counter({claim.block[1]: 1})  # a length that no longer occurs is gone from it
            del self._sorted[bisect_left(self._sorted, claim.block)]

    def _settle(self, touched: Iterable[Block]) -> list[Order]:
        """Judge anew whatever shares an address with what was touched."""
        before: dict[Block, int] = {}
        after: dict[Block, int] = {}
        seen: set[Block] = set()
        for block in touched:
            top = self._widest(block)
            group = [] if top in seen else list(self._inside(top))
            seen.add(top)
            before |= {each: self._owned[each] for each in (*group, block) if each in self._owned}
            after |= self._judged(group)
        for each in before.keys() - after.keys():
            del self._owned[each]
        self._owned |= after
        gone = [Order(DELETE, *each) for each in before if each not in after]
        return gone + [Order(SET, *each, host) for each, host in after.items() if before.get(each) != host]

    def _widest(self, block: Block) -> Block:
        """The widest block that is claimed and holds ``block``, or this itself."""
        network, length = block
        for shorter in sorted(self._lengths):
            if shorter >= length:
                break
            wide = network >> 32 - shorter << 32 - shorter, shorter
            if wide in self._at:
                return wide
        return block

    def _inside(self, top: Block) -> Iterator[Block]:
        """The blocks that are claimed inside of ``top``, which no other one holds; itself too."""
        network, length = top
        at, end = bisect_left(self._sorted, (network, 0)), network + (1 << 32 - length)
        while at < len(self._sorted) and self._sorted[at][0] < end:
            yield self._sorted[at]
            at += 1

    def _judged(self, group: list[Block]) -> dict[Block, int]:
        """Who owns which of these. Two CIDR blocks are apart, or one holds the other."""
        owned: dict[Block, int] = {}
        firsts: list[int] = []
        for claim in sorted(self._at[block][0] for block in group):
            network, length = claim.block
            at = bisect_left(firsts, network)
            held = any((network >> 32 - other << 32 - other, other) in owned for other in self._lengths if other <= length)
            if held or (at < len(firsts) and firsts[at] < network + (1 << 32 - length)):
                continue
            owned[claim.block] = claim.host
            firsts.insert(at, network)
        return owned
