"""Does the comparison of hosts with and without a guard say no more than its runs show?"""

from __future__ import annotations

from random import Random

import pytest

from netns_lab.bench_guard import PROMISED, Median, Run, Way


@pytest.mark.parametrize(("count", "place"), [(6, 0), (8, 0), (9, 1), (10, 1), (15, 3), (30, 9), (60, 21), (100, 39)])
def test_bounds_of_the_median_are_those_of_the_tables(count: int, place: int) -> None:
    """The 95 % interval of a median by order statistics, as any table of the sign test has it."""
    found = [float(number) for number in range(count)]
    Random(count).shuffle(found)
    median = Median.of(found)
    assert (median.low, median.middle, median.high) == (place, (count - 1) / 2, count - 1 - place)


@pytest.mark.parametrize("seed", range(3))
def test_the_true_median_lies_between_them_as_often_as_is_said(seed: int) -> None:
    """Of a distribution that is lopsided and has no mean: 1,000 benches of 30 rounds each."""
    random = Random(seed)
    medians = [Median.of([random.paretovariate(1.0) for _ in range(30)]) for _ in range(1000)]
    assert 940 < sum(each.low <= 2.0 <= each.high for each in medians) < 985


@pytest.mark.parametrize(
    ("true", "noise", "verdict"),
    [(1.0, 0.02, ">="), (0.9, 0.02, "<"), (PROMISED, 0.3, "cannot be told"), (0.5, 3.0, "cannot be told")],
)
def test_noise_is_not_taken_for_an_answer(true: float, noise: float, verdict: str) -> None:
    random = Random(1)
    assert verdict in Median.of([random.gauss(true, noise) for _ in range(30)]).verdict.replace("whether >=", "whether")


@pytest.mark.parametrize("drift", [-0.02, 0.0, 0.01, 0.05])
def test_what_changes_while_it_runs_meets_both_alike(drift: float) -> None:
    """A machine that becomes faster or slower all the time, and a guard that costs a tenth."""
    way, speed = Way("s", "r"), 10.0

    def run(share: float) -> Run:
        nonlocal speed
        speed += drift
        return Run(speed * share, speed * share, 100.0 / share)

    before = run(1.0)
    for _ in range(30):
        way.runs.append(run(0.9))
        after = run(1.0)
        way.compare(before, after)
        before = after
    assert [round(each.rate, 6) for each in way.ratios] == [round(each.worth, 6) for each in way.ratios] == [0.9] * 30
