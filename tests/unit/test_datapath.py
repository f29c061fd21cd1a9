"""Is a userspace datapath that fails opened again, soon, and yet not in a tight loop? In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannelpy.agent.datapath import FIRST_RETRY_S, LAST_RETRY_S, STEADY_S, DatapathSupervisor, Wanted
from flannelpy.agent.report import Reporter
from flannelpy.agent.view import Cursor
from flannelpy.core.backend import Backend, FdStore, Local, NoFdStore
from flannelpy.core.errors import BackendError
from flannelpy.core.model import Lease
from tests.unit.syncing import target
from tests.unit.virtual_time import run as run_virtually

Fate = tuple[bool, float]
"""Of one life: whether it can be opened, and how long it runs then, in seconds."""


class Frail:
    """A datapath whose lives are told beforehand; after the last of them it runs for ever."""

    def __init__(self, fates: list[Fate]) -> None:
        self.fates = list(fates)
        self.tried: list[float] = []
        self.open_now = False

    async def open(self, _fd_store: FdStore) -> None:
        assert not self.open_now, "never two at a time"
        self.tried.append(asyncio.get_running_loop().time())
        if self.fates and not self.fates[0][0]:
            self.fates.pop(0)
            raise BackendError("/dev/net/tun: Device or resource busy")
        self.open_now = True

    def update(self, _peers: Mapping[str, Lease | None]) -> None: ...

    def adopt(self, _local: Local, _backend: Backend | None = None) -> bool:
        return False

    async def run(self) -> None:
        if not self.fates:
            await asyncio.Event().wait()
        await asyncio.sleep(self.fates.pop(0)[1])
        raise BackendError("flannel0: the device is gone")

    async def close(self) -> None:
        self.open_now = False


async def live(datapath: Frail, seconds: float, clear: Callable[[], None] = lambda: None) -> Reporter:
    """A supervisor's life of so many seconds."""
    loop = asyncio.get_running_loop()
    reporter = Reporter(loop.time)
    supervisor = DatapathSupervisor(reporter, NoFdStore(), Cursor({}, lambda: None), lambda: None)

    async def cleared() -> None:
        clear()

    made = target()
    supervisor.set(Wanted(datapath, cast(Backend, made.backend), made.local, cleared))
    task = asyncio.create_task(supervisor.run())
    await asyncio.sleep(seconds)
    assert supervisor.tried.is_set()
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not datapath.open_now
    return reporter


def pauses(datapath: Frail) -> list[float]:
    return [round(after - before, 3) for before, after in zip(datapath.tried, datapath.tried[1:], strict=False)]


@pytest.mark.parametrize("opens", [True, False])
def test_one_that_dies_again_and_again_is_opened_ever_later(opens: bool) -> None:
    """Also where each opening goes well: somebody takes its device away each time."""
    datapath = Frail([(opens, 0.0)] * 1000)
    run_virtually(live(datapath, 60.0))
    assert pauses(datapath)[:6] == [FIRST_RETRY_S, 0.4, 0.8, 1.6, 3.2, LAST_RETRY_S]
    assert set(pauses(datapath)[6:]) == {LAST_RETRY_S}


def test_after_a_while_without_a_failure_the_next_one_is_a_first_one() -> None:
    datapath = Frail([(True, 0.0)] * 6 + [(True, STEADY_S + 1.0)])
    run_virtually(live(datapath, 60.0))
    assert pauses(datapath)[-1] == STEADY_S + 1.0 + FIRST_RETRY_S


def test_what_is_the_matter_is_told_until_it_is_open() -> None:
    assert [active.text for active in run_virtually(live(Frail([(False, 0.0)] * 1000), 5.0)).health] == [
        "the userspace datapath cannot run: /dev/net/tun: Device or resource busy; trying again"
    ]
    assert list(run_virtually(live(Frail([(False, 0.0)] * 3), 5.0)).health) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 1.0, 9.0, 11.0, 50.0])), max_size=30))
def test_whatever_becomes_of_it_it_runs_in_the_end_and_is_never_tried_in_a_tight_loop(fates: list[Fate]) -> None:
    datapath = Frail(fates)
    reporter = run_virtually(live(datapath, 3000.0))
    assert datapath.fates == []
    assert list(reporter.health) == []
    assert all(pause >= FIRST_RETRY_S for pause in pauses(datapath))
    for (_opens, lived), pause in zip(fates, pauses(datapath), strict=True):
        assert pause <= lived + LAST_RETRY_S


class Leaving(Frail):
    """A datapath that leaves something to the next start, unless another takes its place."""

    def __init__(self) -> None:
        super().__init__([])
        self.retired = False
        self.closed: list[bool] = []

    def retire(self) -> None:
        self.retired = True

    async def close(self) -> None:
        await super().close()
        self.closed.append(self.retired)


@pytest.mark.parametrize("after", ["nothing", "none", "another"])
def test_only_one_whose_place_is_taken_leaves_nothing(after: str) -> None:
    async def live_on() -> list[bool]:
        datapath, made = Leaving(), target()
        supervisor = DatapathSupervisor(
            Reporter(asyncio.get_running_loop().time), NoFdStore(), Cursor({}, lambda: None), lambda: None
        )

        async def cleared() -> None:
            pass

        supervisor.set(Wanted(datapath, cast(Backend, made.backend), made.local, cleared))
        task = asyncio.create_task(supervisor.run())
        await asyncio.sleep(1.0)
        if after != "nothing":
            supervisor.set(Wanted(None if after == "none" else Leaving(), cast(Backend, made.backend), made.local, cleared))
            await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return datapath.closed

    assert run_virtually(live_on()) == [after != "nothing"]


class Crowd(Frail):
    """A datapath of several tasks; each is gone once its device is, as the workers of udp are."""

    def __init__(self, turns: int) -> None:
        super().__init__([])
        self.gone, self._turns = asyncio.Event(), turns

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(self._keep())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _keep(self) -> None:
        await self.gone.wait()
        for _ in range(self._turns):
            await asyncio.sleep(0)
        raise BackendError("TUN device flannel0 was deleted")


@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("turns", range(8))
def test_one_whose_device_goes_in_the_moment_it_is_no_longer_wanted_is_let_go(turns: int, after: int) -> None:
    """A TaskGroup tells of the failure only, and not that it was cancelled: whoever tries anew would do so for ever."""

    async def turn() -> None:
        loop = asyncio.get_running_loop()
        datapath, made = Crowd(turns), target()
        supervisor = DatapathSupervisor(Reporter(loop.time), NoFdStore(), Cursor({}, lambda: None), lambda: None)

        async def cleared() -> None: ...

        supervisor.set(Wanted(datapath, cast(Backend, made.backend), made.local, cleared))
        task = asyncio.create_task(supervisor.run())
        await supervisor.tried.wait()
        await asyncio.sleep(1.0)
        datapath.gone.set()
        for _ in range(after):
            await asyncio.sleep(0)
        supervisor.set(Wanted(None, cast(Backend, made.backend), made.local, cleared))
        await asyncio.sleep(1.0)
        assert not supervisor.has_datapath
        assert supervisor.tried.is_set()
        tried = len(datapath.tried)
        await asyncio.sleep(60.0)
        assert len(datapath.tried) == tried
        assert not datapath.open_now
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    run_virtually(turn())
