"""Is it told what the kernel's guard has dropped?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from flannelpy.agent.status import with_drops
from flannelpy.core.errors import KernelError
from flannelpy.explain.status import GuardStatus, from_json, to_json
from flannelpy.kernel.fake import FakeKernel
from tests.unit.test_status import YOUNG, read

GUARDED = replace(YOUNG, guard=GuardStatus("strict"))


class Mute(FakeKernel):
    async def counted(self, table: str) -> dict[str, int]:
        raise KernelError(f"{table}: no netfilter", 0)


@pytest.mark.parametrize("count", [0, 1, 2**40])
async def test_drops_are_told_by_reason(count: int) -> None:
    kernel = FakeKernel()
    kernel.counters = {"flannelpy": {"inner_source": count, "somebody_elses": 5}, "another": {"outer_source": 7}}
    status = await with_drops(GUARDED, kernel, "flannelpy")
    assert status.guard == GuardStatus("strict", {"inner_source": count})
    assert from_json(to_json(status)) == status


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        (None, "strict, drops unknown"),
        ({"inner_source": 0}, "strict, dropped nothing yet"),
        ({"outer_source": 1200, "inner_source": 3}, "strict, dropped 1,200 outer source, 3 inner source"),
    ],
)
def test_one_line_tells_them(dropped: dict[str, int] | None, words: str) -> None:
    lines = read(replace(YOUNG, guard=GuardStatus("strict", dropped)), 200)
    assert f"guard        {words}" in lines


async def test_what_the_kernel_does_not_say_is_unknown() -> None:
    assert await with_drops(GUARDED, Mute(), "flannelpy") == GUARDED


async def test_where_nothing_is_guarded_nobody_is_asked() -> None:
    assert await with_drops(YOUNG, Mute(), "flannelpy") == YOUNG
