"""How often has the reconciler a round? At once where little happens, and not for each thing by itself where much does."""

from __future__ import annotations

import asyncio

import pytest

from flannelpy.agent.sync.dirty import BURST_S, COMPANY_S, LISTEN_S, LISTENS, LULL_S, SHARE, Dirty
from flannelpy.core.objects import Key
from tests.unit.virtual_time import VirtualLoop, run


def rounds(changes: int, every_s: float, round_s: float) -> tuple[int, float]:
    """How many rounds so many changes make, of which each takes so long, and the longest that one has waited for its."""

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
                    await asyncio.sleep(round_s)

        count, task = 0, asyncio.create_task(reconcile())
        for number in range(changes):
            key = Key("route", str(number))
            came[key] = loop.time()
            dirty.add([key])
            await asyncio.sleep(every_s)
        await task
        return count, max(waits)

    return run(play())


@pytest.mark.parametrize("round_s", [0.0005, 0.002, 0.01])
def test_changes_that_leave_time_between_their_rounds_never_wait(round_s: float) -> None:
    count, longest_s = rounds(1000, 1.01 * round_s / SHARE, round_s)
    assert count == 1000
    assert longest_s < 1e-6


@pytest.mark.parametrize("round_s", [0.001, 0.005])
def test_a_burst_of_single_changes_does_not_wait(round_s: float) -> None:
    changes = int(BURST_S / round_s)
    count, longest_s = rounds(changes, 1.01 * round_s, round_s)
    assert count == changes
    assert longest_s < 1e-6


@pytest.mark.parametrize("round_s", [0.0005, 0.002, 0.01])
def test_a_storm_of_changes_makes_few_rounds_and_none_waits_long(round_s: float) -> None:
    changes, every_s = 10_000, 0.0005
    count, longest_s = rounds(changes, every_s, round_s)
    pause_s = min(COMPANY_S, round_s / SHARE)
    assert count < BURST_S / round_s + 1.3 * changes * every_s / pause_s + 2
    assert longest_s < COMPANY_S + round_s + LISTENS * round_s + LULL_S


def backlog(messages: int, round_s: float, read_s: float = 0.001) -> int:
    """How many rounds it takes to have done a backlog, where reading a message takes so long, and a round so long; neither lets
    anybody else have the processor meanwhile.
    """

    async def play() -> int:
        dirty, count, read = Dirty(), 0, 0
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def watch() -> None:
            nonlocal read
            for number in range(messages):
                dirty.add([Key("route", str(number))])
                read += 1
                loop.now += read_s
                await asyncio.sleep(0)

        task = asyncio.create_task(watch())
        while read < messages or dirty.pending:
            await dirty.wait(3.0)
            count += 1
            dirty.take()
            loop.now += round_s
            await asyncio.sleep(0)
        await task
        return count

    return run(play())


@pytest.mark.parametrize("round_s", [0.02, 0.1, 0.5, 3.0])
def test_between_two_rounds_a_backlog_is_read(round_s: float) -> None:
    """The 2 s of reading that it is, in pieces of four rounds or of a second."""
    assert backlog(2000, round_s) <= 3 + 2 * 2.0 / min(4 * round_s, 1.0)


@pytest.mark.parametrize(("round_s", "longest_s"), [(0.001, 0.004), (0.01, 0.04), (0.1, 0.4), (3.0, 1.0)])
def test_what_comes_without_end_holds_up_the_next_round_for_a_bounded_time(round_s: float, longest_s: float) -> None:
    async def play() -> float:
        dirty, loop = Dirty(), asyncio.get_running_loop()

        async def others() -> None:
            for number in range(100_000):
                dirty.add([Key("route", str(number))])
                await asyncio.sleep(LULL_S / 50)

        task = asyncio.create_task(others())
        await dirty.wait(3.0)
        dirty.take()
        await asyncio.sleep(round_s)
        began = loop.time()
        await dirty.wait(3.0)
        task.cancel()
        return loop.time() - began

    assert longest_s == min(LISTENS * round_s, LISTEN_S)
    assert longest_s * 0.99 <= run(play()) <= longest_s + LULL_S


@pytest.mark.parametrize("round_s", [0.001, 0.01, 0.1, 1.0, 3.0])
def test_where_nothing_more_comes_the_next_round_does_not_wait(round_s: float) -> None:
    async def play() -> float:
        dirty, loop = Dirty(), asyncio.get_running_loop()
        dirty.add([Key("route", "1")])
        await dirty.wait(3.0)
        dirty.take()
        await asyncio.sleep(round_s)
        dirty.add([Key("route", "2")])
        began = loop.time()
        await dirty.wait(3.0)
        return loop.time() - began

    assert run(play()) <= 2 * LULL_S
