"""Are peers that come compared with us soon, and all that come at once together?"""

from __future__ import annotations

import asyncio

import pytest

from flannelpy.agent.copies import GATHER_S, gathering
from tests.unit.virtual_time import run


@pytest.mark.parametrize(
    ("asked", "woken"),
    [
        ([], []),
        ([1.0], [1.0 + GATHER_S]),
        ([0.0] * 1000, [GATHER_S]),
        ([number * GATHER_S / 10 for number in range(10)], [GATHER_S]),
        ([0.0, 2 * GATHER_S, 5.0, 5.0 + GATHER_S / 2], [GATHER_S, 3 * GATHER_S, 5.0 + GATHER_S]),
    ],
)
def test_each_is_heard_of_within_a_moment_and_many_once(asked: list[float], woken: list[float]) -> None:
    async def live() -> list[float]:
        loop, found = asyncio.get_running_loop(), list[float]()
        began = loop.time()
        ask = gathering(lambda: found.append(loop.time() - began))
        for when in asked:
            await asyncio.sleep(began + when - loop.time())
            ask()
        await asyncio.sleep(1.0)
        return found

    assert run(live()) == pytest.approx(woken)
