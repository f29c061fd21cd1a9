"""Is it told what the kernel's guard has dropped?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from flannelpy.agent.status import with_drops
from flannelpy.core.errors import KernelError
from flannelpy.explain.status import BackendStatus, GuardStatus, SourceCheckStatus, from_json, to_json
from flannelpy.kernel.fake import FakeKernel
from tests.unit.test_status import YOUNG, read

BARE = replace(YOUNG, backend=BackendStatus("host-gw", 1500))
GUARDED = replace(BARE, guard=GuardStatus("strict"))


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


@pytest.mark.parametrize(("count", "words"), [(0, "nothing yet"), (1200, "1,200")])
async def test_what_containers_were_not_let_send_is_told_for_each_backend(count: int, words: str) -> None:
    kernel = FakeKernel()
    kernel.counters = {"flannelpy": {"container_source": count, "inner_source": 1}}
    for before in (BARE, GUARDED):
        status = await with_drops(before, kernel, "flannelpy")
        assert status.container_source_check == SourceCheckStatus(count)
        assert from_json(to_json(status)) == status
        assert f"containers   source checked, dropped {words}" in read(status, 200)
    assert (await with_drops(BARE, FakeKernel(), "flannelpy")).container_source_check is None


async def test_before_there_is_a_network_nobody_is_asked() -> None:
    assert await with_drops(YOUNG, Mute(), "flannelpy") == YOUNG
