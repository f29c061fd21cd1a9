"""What reaches the log of conditions that begin and end, and how much of it where somebody makes them do so all day long?"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flannelpy.agent.report import BURST, Reporter
from flannelpy.core.foreign import LINE
from tests.unit.virtual_time import run

MORE = re.compile(r"^(resolved: )?([\w-]+): (\d+) more of the kind$")


def lines(caplog: pytest.LogCaptureFixture, play: Callable[[Reporter], object], wait_s: float = 130.0) -> list[str]:
    """What is logged while ``play`` is done, and in the ``wait_s`` seconds after."""

    async def played() -> None:
        reporter = Reporter(asyncio.get_running_loop().time)
        outcome = play(reporter)
        if asyncio.iscoroutine(outcome):
            await outcome
        await asyncio.sleep(wait_s)

    caplog.clear()
    with caplog.at_level(logging.DEBUG, "flannelpy"):
        run(played())
    return [record.getMessage() for record in caplog.records]


async def flap(reporter: Reporter, times: int, pause_s: float) -> None:
    for number in range(times):
        reporter.begin("lease-malformed", f"word {number}", "key")
        await asyncio.sleep(pause_s)
        reporter.end("lease-malformed", "key")
        await asyncio.sleep(pause_s)


def test_what_begins_and_ends_is_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    said = lines(caplog, lambda reporter: flap(reporter, 3, 1.0))
    assert len(said) == 6
    assert [line.startswith("resolved: ") for line in said] == [False, True] * 3


def test_of_many_at_a_time_the_first_are_told_and_the_rest_counted(caplog: pytest.LogCaptureFixture) -> None:
    def play(reporter: Reporter) -> None:
        reporter.set("lease-malformed", {f"key {number}": f"word {number}" for number in range(1000)})

    said = lines(caplog, play)
    assert len(said) == BURST + 1
    assert said[-1] == f"lease-malformed: {1000 - BURST} more of the kind"


def test_a_key_that_is_broken_and_mended_for_an_hour_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    times = 7_200
    said = lines(caplog, lambda reporter: flap(reporter, times, 0.25))
    assert len(said) < 60 * 2 * 25
    counted = sum(int(found[3]) for line in said if (found := MORE.match(line)))
    assert counted + sum(MORE.match(line) is None for line in said) == 2 * times  # each happening is told or counted


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 30)), max_size=40))
def test_each_happening_is_told_or_counted(caplog: pytest.LogCaptureFixture, bursts: list[tuple[int, float]]) -> None:
    async def play(reporter: Reporter) -> None:
        for size, pause_s in bursts:
            reporter.set("lease-malformed", {f"key {number}": "word" for number in range(size)})
            await asyncio.sleep(0.001)
            reporter.set("lease-malformed", {})
            await asyncio.sleep(pause_s + 0.001)

    said = lines(caplog, play)
    counted = sum(int(found[3]) for line in said if (found := MORE.match(line)))
    assert counted + sum(MORE.match(line) is None for line in said) == 2 * sum(size for size, _ in bursts)


def test_of_a_detail_without_end_a_line_is_kept() -> None:
    async def kept() -> int:
        reporter = Reporter(asyncio.get_running_loop().time)
        reporter.begin("lease-malformed", "x" * 1_000_000, "key")
        return len(next(iter(reporter.health)).detail)

    assert run(kept()) == LINE
