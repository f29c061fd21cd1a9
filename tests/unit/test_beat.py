"""Do those who look now and then wake together, as often as they want, and never twice at one beat?"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.agent.beat import EARLY, beat, next_beat
from tests.unit.virtual_time import run


@given(st.floats(0.0, 1e6), st.sampled_from([0.5, 1.0, 3.0, 5.0]), st.floats(0.0, 15.0))
def test_the_next_beat_is_ahead_and_no_more_than_a_period_and_a_moment(now: float, period_s: float, phase_s: float) -> None:
    due = next_beat(now, period_s, phase_s)
    assert EARLY * period_s - 1e-6 <= due - now <= (1 + EARLY) * period_s + 1e-6
    beats = (due - phase_s) / period_s
    assert beats == pytest.approx(round(beats), abs=1e-6)


@pytest.mark.parametrize("begun", [0.0, 0.3, 0.77])
def test_all_wake_at_one_moment(begun: float) -> None:
    async def live() -> list[tuple[float, float]]:
        loop, woken = asyncio.get_running_loop(), list[tuple[float, float]]()

        async def look(after_s: float, period_s: float) -> None:
            await asyncio.sleep(after_s)
            while True:
                await beat(period_s)
                woken.append((period_s, loop.time()))

        began = loop.time()
        tasks = [asyncio.create_task(look(begun * number, period)) for number, period in enumerate((1.0, 1.0, 3.0))]
        await asyncio.sleep(30.0)
        for task in tasks:
            task.cancel()
        assert loop.time() == pytest.approx(began + 30.0)
        return woken

    woken = run(live())
    moments = {round(at, 3) for _period, at in woken}
    assert 28 <= len(moments) <= 31
    assert sum(1 for period, _at in woken if period == 3.0) in (9, 10)
    assert sum(1 for period, _at in woken if period == 1.0) >= 56
