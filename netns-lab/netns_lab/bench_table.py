"""Does a look-up in a worker's peer table cost more with more peers? A million of them among few and among many, in turn."""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from dataclasses import dataclass

from backends.udp.worker.peers import PeerTable

FEW, MANY = 10, 10_000
LOOK_UPS = 1_000_000
ADDRESSES = 10_000
FIRST = 0x0A400000
TARGET = 1.5
"""Most for MANY to FEW. The steps are the same; what is more are caches that do not hold ten thousand peers."""


@dataclass(frozen=True, slots=True)
class LookUps:
    """Seconds for a million look-ups, and the ratio: medians of rounds in which both stood side by side."""

    few_s: float
    many_s: float
    ratio: float


def measure(rounds: int = 7) -> LookUps:
    """Look up addresses all over the peers' subnets."""
    few, many = _asked(FEW), _asked(MANY)
    pairs = [(_timed(*few), _timed(*many)) for _ in range(rounds)]
    few_s, many_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    return LookUps(few_s, many_s, statistics.median(more / less for less, more in pairs))


def _asked(peers: int) -> tuple[PeerTable, list[int]]:
    table = PeerTable(0x0A050000, 24, 8285)
    for number in range(peers):
        table.set(FIRST + (number << 8), 24, 0xAC100001 + number)
    chance = random.Random(1)
    return table, [FIRST + (chance.randrange(peers) << 8) + chance.randrange(1, 255) for _ in range(ADDRESSES)]


def _timed(table: PeerTable, addresses: list[int]) -> float:
    """CPU time of this process, in seconds: another program that runs meanwhile is not counted."""
    began = time.process_time()
    for _ in range(LOOK_UPS // ADDRESSES):
        deque(map(table.find, addresses), maxlen=0)
    return time.process_time() - began
