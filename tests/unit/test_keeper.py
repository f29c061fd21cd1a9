"""Is a lease extended in time on a machine that was asleep? The loop's clock stood still meanwhile, the lease's did not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress

from flannelpy.agent.lease import LONGEST_SLEEP_S, Keeper
from flannelpy.core.config import NetworkConfig
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import LeaseAttrs
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from tests.unit.agents import HostInMemory
from tests.unit.virtual_time import run as run_virtually

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
HOUR_S = 3600.0


async def sleep_and_wake(sleeps: Iterable[float]) -> None:
    """A machine that takes a lease, and sleeps so many seconds, several times; awake for two minutes after each."""
    loop, asleep = asyncio.get_running_loop(), 0.0
    registry = MemoryRegistry(MemoryStore())
    context = replace(HostInMemory(registry.store, Path("/nonexistent")).context(registry), clock=lambda: loop.time() + asleep)
    machine = Leasing(CONFIG, LeaseAttrs(IPAddress("192.0.2.1")), Random(1))
    keeper = Keeper(context, registry.snapshot, machine, wake=lambda: None)
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(1.0)
    assert keeper.held is not None
    lease, created = keeper.held, keeper.held.create_revision
    for seconds in sleeps:
        left = keeper.sure_until - context.clock()
        asleep += seconds
        registry.store.advance(seconds)
        await asyncio.sleep(LONGEST_SLEEP_S + 1.0)
        if left - seconds < HOUR_S:  # the margin: it is due, or has ended even
            assert keeper.sure_until - context.clock() > 23 * HOUR_S, "soon, not when the loop's clock has caught up"
        assert keeper.sure_until > context.clock()
        assert not keeper.lost
        assert keeper.held is not None
        assert keeper.held.key == lease.key
        if seconds < left:
            assert keeper.held.create_revision == created, "it never ended"
        created = keeper.held.create_revision
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 30 * HOUR_S), min_size=1, max_size=5))
def test_a_machine_that_was_asleep_extends_its_lease_soon_after_it_woke(sleeps: list[float]) -> None:
    run_virtually(sleep_and_wake(sleeps))


def test_one_that_slept_almost_as_long_as_the_lease_is_in_time() -> None:
    run_virtually(sleep_and_wake([23.98 * HOUR_S, 23.98 * HOUR_S]))


def test_an_address_that_is_to_be_published_is_though_the_keeper_was_begun_anew_meanwhile() -> None:
    async def live(after_s: float, stands_s: float) -> None:
        registry = MemoryRegistry(MemoryStore())
        context = HostInMemory(registry.store, Path("/nonexistent")).context(registry)
        machine = Leasing(CONFIG, LeaseAttrs(IPAddress("192.0.2.1")), Random(1))
        keeper = Keeper(context, registry.snapshot, machine, wake=lambda: None)
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(1.0)
        keeper.publish(LeaseAttrs(IPAddress("192.0.2.2")), after_s)
        await asyncio.sleep(stands_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(30.0)
        assert keeper.held is not None
        assert str(keeper.held.public_ip) == "192.0.2.2"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for after_s, stands_s in ((0.0, 0.0), (5.0, 1.0), (5.0, 4.99), (5.0, 10.0)):
        run_virtually(live(after_s, stands_s))
