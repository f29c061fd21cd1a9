"""What is told, and when: once when it begins, once when it ends, never a blip."""

from __future__ import annotations

from flannelpy.core.conditions import CONDITIONS, Health


def told(health: Health, now: float) -> list[str]:
    return [("over: " if item.over else "") + item.active.condition.code for item in health.news(now)[0]]


def test_a_condition_is_told_once_and_its_end_once() -> None:
    health = Health()
    health.begin("config-unusable", 0.0, "at /x/config is missing")
    assert told(health, 0.0) == ["config-unusable"]
    health.begin("config-unusable", 1.0, "at /x/config is missing")
    assert told(health, 1.0) == []
    health.end("config-unusable")
    assert told(health, 2.0) == ["over: config-unusable"]


def test_another_detail_is_told_again() -> None:
    health = Health()
    health.begin("config-unusable", 0.0, "at /x/config is missing")
    health.news(0.0)
    health.begin("config-unusable", 1.0, "at /x/config: not JSON")
    assert told(health, 1.0) == ["config-unusable"]


def test_a_blip_is_no_news() -> None:
    health = Health()
    health.begin("registry-unreachable", 10.0, "refused")
    assert health.news(10.0) == ([], 12.0)
    health.end("registry-unreachable")
    assert told(health, 13.0) == []


def test_what_stays_is_told_when_its_time_has_come() -> None:
    health = Health()
    health.begin("registry-unreachable", 10.0, "refused")
    assert told(health, 12.0) == ["registry-unreachable"]


def test_a_condition_hides_what_says_the_same_from_further_away() -> None:
    health = Health()
    health.begin("lease-lost", 0.0, "expired")
    health.begin("lease-unconfirmed", 0.0, "late")
    assert told(health, 60.0) == ["lease-lost"]


def test_one_condition_for_each_subject() -> None:
    health = Health()
    health.begin("peer-unusable", 0.0, "one", "10.5.9.0-24")
    health.begin("peer-unusable", 0.0, "two", "10.5.10.0-24")
    health.news(0.0)
    health.end_all_but("peer-unusable", {"10.5.9.0-24"})
    assert [item.active.subject for item in health.news(0.0)[0]] == ["10.5.10.0-24"]


def test_the_table_is_whole() -> None:
    for code, condition in CONDITIONS.items():
        assert condition.code == code
        assert "{detail}" in condition.text
        assert condition.remedy
        assert set(condition.hides) <= CONDITIONS.keys()
