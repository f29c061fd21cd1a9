"""How often has the reconciler a round? At once where little happens, and not for each thing by itself where much does."""

from __future__ import annotations

import asyncio

from flannelpy.agent.sync.dirty import ROUNDS, ROUNDS_PER_S, Dirty
from flannelpy.core.objects import Key
from tests.unit.virtual_time import run


def rounds(changes: int, every_s: float) -> tuple[int, float]:
    """How many rounds so many changes make, and the longest that one of them has waited, in seconds."""

    async def play() -> tuple[int, float]:
        dirty, loop = Dirty(), asyncio.get_running_loop()
        came: dict[Key, float] = {}
        waits: list[float] = []

        async def reconcile() -> None:
            while len(waits) < changes:
                await dirty.wait(3.0)
                if dirty.pending:
                    nonlocal count
                    count += 1
                    waits.extend(loop.time() - came[key] for key in dirty.take() or ())

        count, task = 0, asyncio.create_task(reconcile())
        for number in range(changes):
            key = Key("route", str(number))
            came[key] = loop.time()
            dirty.add([key])
            await asyncio.sleep(every_s)
        await task
        return count, max(waits)

    return run(play())


def test_a_change_now_and_then_never_waits() -> None:
    assert rounds(200, 1.01 / ROUNDS_PER_S) == (200, 0.0)


def test_a_burst_of_single_changes_does_not_wait() -> None:
    assert rounds(ROUNDS, 0.001) == (ROUNDS, 0.0)


def test_a_storm_of_changes_makes_few_rounds_and_none_waits_long() -> None:
    count, longest_s = rounds(10_000, 0.0005)
    assert count < ROUNDS + 5.0 * ROUNDS_PER_S + 2
    assert longest_s < 1.5 / ROUNDS_PER_S
