"""What is reported, and when: once when it begins, once when it ends, never a blip, and what flaps is no blip."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.core import health as health_module
from flannelpy.core.conditions import CONDITIONS, IN_KUBERNETES, RegistryName
from flannelpy.core.health import CHANGED_S, CHANGES, SUBJECTS, Health


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


@pytest.mark.parametrize("code", ["subnet-file", "state-dir"])
def test_a_folder_that_the_service_sees_no_more_has_a_remedy_that_helps(code: str) -> None:
    """A unit sees of what is writable what was there at its start (ProtectSystem=): a new folder is read-only to it."""
    assert "where it was removed, systemctl restart flannelpy" in CONDITIONS[code].remedy


def test_in_kubernetes_nothing_speaks_of_an_etcd_of_ours() -> None:
    assert IN_KUBERNETES.keys() == CONDITIONS.keys()
    for condition in IN_KUBERNETES.values():
        for text in (condition.text, condition.remedy):
            assert "etcd" not in text.replace("Kubernetes' etcd", "")
            assert "{registry}" not in text
            assert "lease release" not in text
    assert IN_KUBERNETES["registry-unreachable"].text.startswith("the API server does not answer: ")
    assert CONDITIONS["registry-unreachable"].text.startswith("etcd does not answer: ")


def test_health_speaks_of_its_registry() -> None:
    health = Health(RegistryName.API_SERVER)
    health.begin("registry-unreachable", 0.0, "no answer")
    assert [active.text for active in health] == ["the API server does not answer: no answer; what is programmed stays as it is"]


# ------------------------------------------------------------------------------------------------------ many subjects


MALFORMED = "lease-malformed"


def rest(health: Health) -> list[str]:
    """What is said of the subjects that are only counted."""
    return [active.detail for active in health if active.detail.endswith("others like these")]


def test_of_many_subjects_the_first_are_known_and_the_others_counted() -> None:
    health = Health()
    health.set(MALFORMED, 0.0, {f"junk{number}": "bad" for number in range(71_500)})
    assert len(list(health)) == SUBJECTS + 1
    assert rest(health) == ["71,400 others like these"]
    news = health.news(0.0)[0]
    assert sum(item.count for item in news) == 71_500
    for number in range(71_500):
        health.end(MALFORMED, 1.0, f"junk{number}")
    assert held(health) == []
    gone = health.news(5.0)[0]
    assert all(item.resolved for item in gone)
    assert sum(item.count for item in gone) == 71_500
    assert health.news(5.0) == ([], None)
    assert not health.holds(MALFORMED)


def test_what_is_only_counted_holds_and_hides_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "SUBJECTS", 1)
    health = Health()
    health.begin("config-unusable", 0.0, "missing", "a")
    health.begin("config-unusable", 0.0, "missing", "b")
    health.end("config-unusable", 0.0, "a")
    assert health.holds("config-unusable")
    assert health.blocks_ready
    health.end("config-unusable", 0.0, "b")
    assert not health.blocks_ready


def test_who_is_only_counted_waits_for_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "SUBJECTS", 1)
    health = Health()
    health.set("kernel-refused", 0.0, dict.fromkeys("abc", "no"))
    news, due = health.news(0.4)
    assert (news, due) == ([], 0.5)
    assert [(item.active.text, item.count) for item in health.news(0.5)[0]] == [("no", 1), ("2 others like these", 2)]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_count_is_right_and_what_is_kept_bounded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "SUBJECTS", 5)
    dice, health, there, told, now = random.Random(seed), Health(), set[str](), 0, 0.0
    names: Sequence[str] = [*map(str, range(20)), *("x" * length for length in range(299, 310))]
    for _ in range(400):
        now += dice.uniform(0.0, 0.7)
        if dice.random() < 0.05:
            there = set(dice.sample(names, dice.randint(0, len(names))))
            health.set(MALFORMED, now, dict.fromkeys(there, "bad"))
        elif dice.random() < 0.6:
            there.add(name := dice.choice(names))
            health.begin(MALFORMED, now, "bad", name)
        else:
            there.discard(name := dice.choice(names))
            health.end(MALFORMED, now, name)
        told += sum(-item.count if item.resolved else item.count for item in health.news(now)[0])
        counted = sum(int(text.split()[0]) for text in rest(health))
        single = len(list(health)) - len(rest(health))
        assert single <= 5
        assert single + counted == len(there)
        assert health.holds(MALFORMED) == bool(there)
    health.set(MALFORMED, now, {})
    told += sum(-item.count if item.resolved else item.count for item in health.news(now + 9)[0])
    assert (told, held(health), health.news(now + 9)) == (0, [], ([], None))


def test_a_million_names_of_a_megabyte_are_few_bytes() -> None:
    health = Health()
    long = "\x1b" * 1_000_000
    tracemalloc.start()
    try:
        for number in range(300):
            health.begin(MALFORMED, 0.0, f"{number}{long}", f"{number}{long}")
        for number in range(200_000):
            health.begin(MALFORMED, 0.0, "bad", f"junk{number}")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000_000
    assert rest(health) == ["more than 100,000 others like these"]
