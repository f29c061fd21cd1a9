"""What is reported, and when: once when it begins, once when it ends, never a blip, and what flaps is no blip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.core.conditions import CHANGED_S, CHANGES, CONDITIONS, Health


def reported(health: Health, now: float) -> list[str]:
    return [("resolved: " if item.resolved else "") + item.active.condition.code for item in health.news(now)[0]]


def held(health: Health) -> list[tuple[str, str]]:
    return [(active.condition.code, active.detail) for active in health]


def test_a_condition_is_reported_once_and_its_end_once() -> None:
    health = Health()
    health.begin("config-unusable", 0.0, "at /x/config is missing")
    assert reported(health, 0.0) == ["config-unusable"]
    health.begin("config-unusable", 1.0, "at /x/config is missing")
    assert reported(health, 1.0) == []
    health.end("config-unusable", 2.0)
    assert reported(health, 2.0) == ["resolved: config-unusable"]
    assert held(health) == []


def test_another_detail_is_reported_again_but_not_without_end() -> None:
    """A person who mends a config reads each try at once; what flaps by itself does not fill the disk."""
    health, said = Health(), 0
    for tenth in range(100):
        health.begin("config-unusable", tenth / 10, f"try {tenth}")
        said += len(reported(health, tenth / 10))
        assert held(health) == [("config-unusable", f"try {tenth}")]  # who looks sees the latest
    assert said == CHANGES
    assert health.news(10.0) == ([], CHANGED_S)
    assert reported(health, CHANGED_S) == ["config-unusable"]


def test_a_blip_is_no_news() -> None:
    health = Health()
    health.begin("registry-unreachable", 10.0, "refused")
    assert health.news(10.0) == ([], 12.0)
    health.end("registry-unreachable", 11.0)
    assert held(health) == []
    assert reported(health, 13.0) == []
    assert health.news(13.0) == ([], None)


@pytest.mark.parametrize("well_s", [0.1, 1.0, 1.9])
def test_what_flaps_faster_than_its_time_is_reported_once_and_stays(well_s: float) -> None:
    """A full etcd: each read that goes through ends the condition, each write that does not begins it."""
    health, now, said = Health(), 0.0, []
    for _ in range(40):
        health.begin("registry-unreachable", now, "no space")
        said += reported(health, now)
        health.end("registry-unreachable", now + 0.2)
        said += reported(health, now + 0.2)
        now += 0.2 + well_s
    assert said == ["registry-unreachable"]
    assert held(health) == [("registry-unreachable", "no space")]
    assert reported(health, now + 2.0) == ["resolved: registry-unreachable"]
    assert held(health) == []


def test_what_stays_is_reported_when_its_time_has_come() -> None:
    health = Health()
    health.begin("registry-unreachable", 10.0, "refused")
    assert reported(health, 12.0) == ["registry-unreachable"]


def test_a_condition_hides_what_says_the_same_from_further_away() -> None:
    health = Health()
    health.begin("lease-lost", 0.0, "expired")
    health.begin("lease-unconfirmed", 0.0, "late")
    assert reported(health, 60.0) == ["lease-lost"]


def test_a_set_begins_changes_and_ends_by_difference() -> None:
    health = Health()
    health.set("peer-unusable", 0.0, {"10.5.9.0-24": "one", "10.5.10.0-24": "two"})
    assert reported(health, 0.0) == ["peer-unusable"] * 2
    health.set("peer-unusable", 1.0, {"10.5.9.0-24": "one", "10.5.11.0-24": "three"})
    news, _due = health.news(1.0)
    assert [(item.active.subject, item.resolved) for item in news] == [("10.5.10.0-24", True), ("10.5.11.0-24", False)]
    health.set("peer-unusable", 2.0, {})
    assert held(health) == []


def test_only_what_holds_this_very_moment_keeps_the_agent_from_being_ready() -> None:
    health = Health()
    health.begin("config-unusable", 0.0, "missing")
    assert health.blocks_ready
    health.end("config-unusable", 1.0)
    assert not health.blocks_ready
    assert not health.holds("config-unusable")


CODES = st.sampled_from(["registry-unreachable", "kernel-refused", "lease-lost", "config-unusable"])
STEPS = st.lists(st.tuples(CODES, st.booleans(), st.sampled_from("abc"), st.floats(0.01, 5.0)), max_size=60)


@given(STEPS)
def test_what_is_over_leaves_nothing_and_each_end_follows_its_begin(
    steps: list[tuple[str, bool, str, float]],
) -> None:
    health, now, open_codes = Health(), 0.0, set[str]()

    def listen() -> None:
        for item in health.news(now)[0]:
            code = item.active.condition.code
            if item.resolved:
                assert code in open_codes
                open_codes.remove(code)
            else:
                open_codes.add(code)

    for code, begins, detail, pause in steps:
        if begins:
            health.begin(code, now, detail)
        else:
            health.end(code, now)
        listen()
        now += pause
    for code in CONDITIONS:
        health.set(code, now, {})
    listen()
    now += max(condition.after for condition in CONDITIONS.values())
    listen()
    assert open_codes == set()
    assert held(health) == []
    assert health.news(now) == ([], None)


def test_the_table_is_whole() -> None:
    for code, condition in CONDITIONS.items():
        assert condition.code == code
        assert "{detail}" in condition.text
        assert condition.remedy
        assert set(condition.hides) <= CONDITIONS.keys()
