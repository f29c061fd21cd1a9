"""How many lines of a kind pass, and is each of the others counted?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.core.line_rate import LineRate


def test_what_is_more_than_the_rate_is_counted_once() -> None:
    rate = LineRate(most=20, window_s=60)
    written = [rate.allows("peer-unusable", now * 0.1) for now in range(500)]
    assert sum(written) == 20
    assert written[:20] == [True] * 20
    assert rate.next() == 60.0
    assert rate.take_held(59.9) == {}
    assert rate.take_held(60.0) == {"peer-unusable": 480}
    assert rate.take_held(61.0) == {}
    assert rate.next() is None
    assert rate.allows("peer-unusable", 61.0)


def test_a_window_without_anything_held_back_ends_by_itself() -> None:
    rate = LineRate(most=2, window_s=10)
    assert [rate.allows("a", now) for now in (0.0, 1.0, 10.0, 11.0, 12.0)] == [True, True, True, True, False]


def test_each_kind_has_a_rate_of_its_own() -> None:
    rate = LineRate(most=1)
    assert rate.allows("a", 0.0)
    assert rate.allows("b", 0.0)
    assert not rate.allows("a", 1.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 5)), max_size=300))
def test_nothing_is_lost_without_being_counted(calls: list[tuple[int, float]]) -> None:
    rate, now, written, counted = LineRate(most=3, window_s=10), 0.0, 0, 0
    for kind, pause in calls:
        now += pause
        counted += sum(rate.take_held(now).values())
        written += rate.allows(kind, now)
    assert written + counted + sum(rate.take_held(now + 10).values()) == len(calls)


def test_what_is_remembered_is_bounded() -> None:
    rate = LineRate(kinds=10)
    for kind in range(1000):
        rate.allows(kind, 0.0)
    assert len(rate._windows) == 10


@pytest.mark.parametrize("back_s", [1.0, 1e9])
def test_a_clock_that_is_set_back_holds_nothing_for_ever(back_s: float) -> None:
    rate = LineRate[str](most=2)
    assert [rate.allows("a", 1e9) for _ in range(4)] == [True, True, False, False]
    assert rate.take_held(1e9 - back_s) == {"a": 2}
    assert rate.allows("a", 1e9 - back_s)
