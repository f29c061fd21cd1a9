"""Does a part of the agent go on, whatever ends it?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flannelpy.agent.guarded import EndAgentError, guarded
from flannelpy.agent.report import Reporter
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory
from tests.unit.virtual_time import run

ENDINGS: list[BaseException] = [
    ValueError("by chance"),
    OSError(5, "by chance"),
    TimeoutError(),
    asyncio.CancelledError(),  # of a call that somebody else has cut, not of this task
    asyncio.InvalidStateError(),
    ExceptionGroup("several", [KeyError("one"), OSError(1, "two")]),
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
def test_a_part_that_fails_begins_anew_and_says_so(ending: BaseException) -> None:
    async def live() -> None:
        reporter = Reporter(asyncio.get_running_loop().time)
        begun: list[float] = []

        async def work() -> None:
            begun.append(asyncio.get_running_loop().time())
            if len(begun) < 4:
                raise ending
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as tasks:
            part = tasks.create_task(guarded("part", work, reporter), name="part")
            await asyncio.sleep(3)
            assert len(begun) == 4
            assert reporter.health.holds("task-failed")
            await asyncio.sleep(30)
            assert not reporter.health.holds("task-failed")
            assert not part.done()
            part.cancel()
        assert part.cancelled()
        assert len(begun) == 4

    run(live())


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
def test_a_part_that_fails_as_it_is_cancelled_does_not_begin_anew(ending: BaseException) -> None:
    async def live() -> None:
        begun = []

        async def work() -> None:
            begun.append(1)
            try:
                await asyncio.Event().wait()
            finally:
                raise ending

        part = asyncio.create_task(guarded("part", work, Reporter(asyncio.get_running_loop().time)))
        await asyncio.sleep(1)
        part.cancel()
        await asyncio.sleep(30)
        assert part.cancelled()
        assert begun == [1]

    run(live())


def test_only_its_owner_ends_it() -> None:
    async def work() -> None:
        raise EndAgentError("subnet changed")

    async def live() -> None:
        with pytest.raises(EndAgentError):
            await guarded("part", work, Reporter(asyncio.get_running_loop().time))

    run(live())


@pytest.mark.parametrize("call", ["config", "snapshot", "create"])
async def test_a_call_that_somebody_else_has_cut_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    made, cuts = getattr(host.registry, call), iter([True, True])

    async def cut(*given: Any, **named: Any) -> Any:
        if next(cuts, False):
            raise asyncio.CancelledError
        return await made(*given, **named)

    monkeypatch.setattr(host.registry, call, cut)
    async with host.run():  # until it is ready
        assert next(cuts, None) is None
        assert host.lease
