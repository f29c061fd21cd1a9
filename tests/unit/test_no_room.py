"""Does a host without a subnet say until when? The rules know that all are taken, the shell asks the registry for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.expiry import CANDIDATES, tell_first_end
from flannelpy.agent.lease import Keeper
from flannelpy.agent.report import Reporter
from flannelpy.core import lease_events as ev
from flannelpy.core.config import NetworkConfig
from flannelpy.core.duration import span
from flannelpy.core.errors import RegistryUnavailableError
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.registry.memory import MemoryRegistry, MemoryStore

from .agents import HostInMemory, until

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/22"}')  # three subnets
HOUR_S = 3600


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (-5, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3 * HOUR_S, "3 h"),
        (83_400, "23 h 10 min"),
        (90_000, "1 d 1 h"),
        (inf, "for ever"),
    ],
)
def test_a_span_is_what_a_person_would_say(seconds: float, said: str) -> None:
    assert span(seconds) == said


class Asked(MemoryRegistry):
    """Counts questions, and answers none of them where it is told so."""

    def __init__(self, store: MemoryStore, *, silent: bool = False) -> None:
        super().__init__(store)
        self.silent = silent
        self.questions = 0

    async def remaining(self, lease: Lease) -> float:
        self.questions += 1
        if self.silent:
            await asyncio.Event().wait()
        return await super().remaining(lease)


async def fill(registry: MemoryRegistry, *ttls: int) -> list[Lease]:
    """A lease for each; 0 is a reservation."""
    return [
        await registry.create(IPNetwork(f"10.5.{number}.0/24"), LeaseAttrs(IPAddress(f"192.0.2.{number}")), ttl_s=ttl)
        for number, ttl in enumerate(ttls, 1)
    ]


@asynccontextmanager
async def waiting(
    registry: MemoryRegistry, tmp_path: Path = Path("/nonexistent"), avoid: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Keeper, Reporter]]:
    """A host that wants a subnet too."""
    machine = Leasing(CONFIG, LeaseAttrs(IPAddress("192.0.2.99")), Random(1))
    context = HostInMemory(registry.store, tmp_path).context(registry)
    reporter = context.reporter
    keeper = Keeper(context, registry.snapshot, machine, wake=lambda: None)
    keeper.avoid(map(IPNetwork, avoid))
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper, reporter
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def said(reporter: Reporter) -> str:
    return "; ".join(active.detail for active in reporter.health if active.condition.code == "no-free-subnet")


async def test_a_full_pool_is_told_with_the_time_that_the_oldest_has_left() -> None:
    registry = Asked(MemoryStore())
    await fill(registry, 24 * HOUR_S, 3 * HOUR_S, 0)
    async with waiting(registry) as (_, reporter):
        await until(lambda: said(reporter))
        assert said(reporter) == "no free subnet: 3 of 3 in 10.5.0.0/22 leased, oldest expires in 3 h"


async def test_where_nothing_is_leased_nothing_is_said_of_its_end() -> None:
    """All of the network is this host's own."""
    async with waiting(Asked(MemoryStore()), avoid=("10.5.0.0/16",)) as (_, reporter):
        await until(lambda: said(reporter))
        assert said(reporter) == "no free subnet: this host itself needs 10.5.0.0/16; 0 of 3 in 10.5.0.0/22 leased"


async def test_reservations_end_never() -> None:
    registry = Asked(MemoryStore())
    await fill(registry, 0, 0, 0)
    async with waiting(registry) as (_, reporter):
        await until(lambda: said(reporter))
        assert said(reporter) == "no free subnet: 3 of 3 in 10.5.0.0/22 leased, none of them expires"
    assert registry.questions == 0


async def test_it_is_never_told_after_it_is_over() -> None:
    """The question is still open when a subnet becomes free: its late answer would be a condition that nothing ends."""
    registry = Asked(MemoryStore(), silent=True)
    first, *_ = await fill(registry, HOUR_S, HOUR_S, HOUR_S)
    async with waiting(registry) as (keeper, reporter):
        await until(lambda: registry.questions)
        await registry.release(first)
        keeper.tell(ev.SubnetFreed(first.subnet, None))
        await until(lambda: keeper._machine.held is not None)
        assert keeper._telling is not None
        await asyncio.wait([keeper._telling])
        assert said(reporter) == ""


async def test_a_few_questions_are_enough() -> None:
    registry = Asked(MemoryStore())
    leases = await fill(registry, *[HOUR_S] * 40)
    assert await tell_first_end(registry, leases) == "oldest expires in 1 h"
    assert registry.questions == CANDIDATES


async def test_the_one_that_was_not_renewed_is_found() -> None:
    registry = Asked(MemoryStore())
    leases = await fill(registry, *[HOUR_S] * 40)
    registry.store.advance(HOUR_S / 2)
    renewed = [await registry.renew(lease, lease.attrs, ttl_s=HOUR_S) for lease in leases if lease.subnet != leases[20].subnet]
    assert await tell_first_end(registry, [leases[20], *renewed]) == "oldest expires in 30 min"


async def test_a_registry_that_does_not_answer_costs_only_the_addition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannelpy.agent.expiry.WITHIN_S", 0.01)
    registry = Asked(MemoryStore())
    leases = await fill(registry, HOUR_S)
    registry.silent = True
    assert await tell_first_end(registry, leases) == ""
    registry.silent, registry.down = False, True
    with pytest.raises(RegistryUnavailableError):
        await registry.remaining(leases[0])
    assert await tell_first_end(registry, leases) == ""
