"""A rehearsal ends: with what became of each step, or with one line that says why it could not be held."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence

import pytest
from netaddr import IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Route
from flannelpy.core.plan import Step
from flannelpy.kernel import Result
from flannelpy.kernel.fake import FakeKernel
from flannelpy.kernel.modules import Modules
from flannelpy.kernel.rehearsal import rehearse

STEP = Step("add", Route(IPNetwork("10.5.77.0/24"), kind="blackhole"))


def failing(reason: BaseException) -> Callable[[], FakeKernel]:
    def make() -> FakeKernel:
        raise reason

    return make


async def test_a_rehearsal_says_what_became_of_each_step() -> None:
    assert await rehearse(FakeKernel, [STEP]) == [Result(STEP)]


async def test_a_kernel_that_refuses_refuses_each_step() -> None:
    refusal = KernelError("no", errno.EPERM)
    assert await rehearse(failing(refusal), [STEP]) == [Result(STEP, refusal)]
    (result,) = await rehearse(failing(OSError(errno.EMFILE, "Too many open files")), [STEP])
    assert (str(result.error), result.error and result.error.code) == ("Too many open files", errno.EMFILE)


@pytest.mark.parametrize("reason", [ImportError("no module"), AssertionError("x"), MemoryError(), SystemExit(3)], ids=repr)
async def test_whatever_goes_wrong_reaches_whoever_waits(reason: BaseException) -> None:
    with pytest.raises(KernelError, match=f"the rehearsal failed: {type(reason).__name__}"):
        await rehearse(failing(reason), [STEP])


async def test_a_rehearsal_that_does_not_end_is_left_alone() -> None:
    class Slow(FakeKernel):
        async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
            await asyncio.sleep(1)
            return await super().apply(steps)

    with pytest.raises(KernelError, match=r"not clear in 0.01 s: route add blackhole 10.5.77.0/24"):
        await rehearse(Slow, [STEP], deadline_s=0.01)


async def test_a_module_is_tried_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    ran: list[list[str]] = []
    monkeypatch.setattr("flannelpy.kernel.modules._now", lambda: now)
    monkeypatch.setattr("flannelpy.kernel.modules.shutil.which", lambda command, path: f"/sbin/{command}")
    monkeypatch.setattr("flannelpy.kernel.modules._run", ran.append)
    modules = Modules()
    for now in (1000.0, 1001.0, 1059.9, 1060.0, 1061.0):  # noqa: B007
        await modules.load("fou")
    await modules.load("ipip")
    assert [command[-1] for command in ran] == ["fou", "fou", "ipip"]
