"""Which faults befall a cluster, and when? Drawn from a seed alone, so that a run that failed can be had again.

Values only: ``chaos`` carries them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

REGISTRY: Mapping[str, float] = {
    "etcd stands still": 2,
    "etcd is killed": 2,
    "its lease key is deleted": 2,
    "its etcd lease is revoked": 1,
    "its lease key is put again": 1,
    "junk below subnets": 2,
    "a peer comes and goes": 3,
    "history is compacted": 1,
}
KERNEL: Mapping[str, float] = {
    "its device is deleted": 2,
    "its device is set down": 2,
    "its device has another MTU": 2,
    "its device's addresses are flushed": 2,
    "its routes are flushed": 3,
    "its neighbours are flushed": 1,
    "nft is flushed": 3,
}
HOST: Mapping[str, float] = {
    "eth1 is down": 3,
    "its cable is pulled": 2,
    "eth1 has another MTU": 2,
    "eth1 has another address": 3,
    "eth1 is made anew": 2,
    "veth pairs come and go": 2,
    "its agent is killed": 3,
    "its agent is restarted": 2,
    "its agent stands still": 2,
}
"""The kinds of faults, and how often each comes beside the others."""

EVERYBODYS = frozenset(
    {"etcd stands still", "etcd is killed", "junk below subnets", "a peer comes and goes", "history is compacted"}
)
"""Those that befall no host in particular."""
FAULTS_A_ROUND = (3, 8)
LONGEST_PAUSE_S, LONGEST_FAULT_S = 0.8, 2.5


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: ``pause_s`` after the one before, for ``lasts_s`` where it is one that lasts. ``host`` 0: everybody's.

    ``draw`` is what else is left to chance: which MTU, which address, in which order.
    """

    kind: str
    host: int
    pause_s: float
    lasts_s: float
    draw: int

    def __str__(self) -> str:
        return f"{f'h{self.host}: ' if self.host else ''}{self.kind} ({self.pause_s:.2f} s later, {self.lasts_s:.2f} s)"


def rounds(seed: int, hosts: int) -> Iterator[tuple[Fault, ...]]:
    """The faults of each round, without an end; equal for equal seeds."""
    chance = Random(seed)
    kinds = {**REGISTRY, **KERNEL, **HOST}
    while True:
        yield tuple(_draw(chance, kinds, hosts) for _ in range(chance.randint(*FAULTS_A_ROUND)))


def _draw(chance: Random, kinds: Mapping[str, float], hosts: int) -> Fault:
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    host = chance.randint(1, hosts)
    pause_s, lasts_s = chance.uniform(0, LONGEST_PAUSE_S), chance.uniform(0.1, LONGEST_FAULT_S)
    return Fault(kind, 0 if kind in EVERYBODYS else host, pause_s, lasts_s, chance.randrange(1 << 16))
