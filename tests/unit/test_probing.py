"""When is which peer asked, and what is made of what is heard? Hours of probing in a moment: time is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress

from flannelpy.agent.probes import JUDGED_PEERS, JUDGED_S
from flannelpy.core.probing import EVERY_S, GAP_S, SMALL, Probe, Schedule
from flannelpy.core.reachability import GRACE_S, UNASKED, Path, Probed, Target, Verdict, judge

Answers = Callable[[Probe, float], bool]


@pytest.fixture(autouse=True)
def _what_all_peers_share_stays_as_it_is() -> Iterator[None]:
    yield
    assert Path() == UNASKED


RTT_S = 0.0004
FULL = 1450


def target(number: int) -> Target:
    return Target(IPAddress(f"10.5.{number % 256}.0"), IPAddress(f"192.0.{number // 256}.{number % 256}"), FULL, "UDP 8472")


class Air:
    """A schedule, a clock, and who answers."""

    def __init__(self, peers: int, seed: int = 1) -> None:
        numbers = count(1)
        self.now = 1000.0
        self.schedule = Schedule(Random(seed), lambda: next(numbers))
        self.schedule.update({f"p{number}": target(number) for number in range(peers)}, self.now)
        self.answers: Answers = lambda _probe, _now: True
        self.sent: list[tuple[float, Probe]] = []
        self.judged_at = self.now
        self.judged: dict[str, Verdict] = {}

    def turn(self, seconds: float) -> Iterator[float]:
        """Let time pass; yields after each step."""
        end = self.now + seconds
        while self.now < end:
            probe, wake = self.schedule.step(self.now)
            if probe is not None:
                self.sent.append((self.now, probe))
                if self.answers(probe, self.now):
                    self.schedule.heard(probe.token, probe.address, probe.size, self.now + RTT_S)
            assert wake > self.now, "it would spin"
            if self.now >= self.judged_at + JUDGED_S * max(1.0, self.schedule.suspected / JUDGED_PEERS):
                self.judged = dict(self.schedule.suspects(self.now))
                self.judged_at = self.now
            yield self.now
            self.now = max(min(wake, end, self.now + JUDGED_S), self.now)

    def run(self, seconds: float) -> None:
        for _ in self.turn(seconds):
            pass

    def until(self, state: str, key: str = "p0", within: float = 600.0) -> float:
        """How long it takes until this is said of the peer, in seconds."""
        began = self.now
        for now in self.turn(within):
            verdict = self.schedule.verdict(key, now)
            if verdict is not None and verdict.state == state:
                return now - began
        raise AssertionError(f"not {state} within {within} s: {self.schedule.verdict(key, self.now)}")

    def why(self, key: str = "p0") -> str:
        verdict = self.schedule.verdict(key, self.now)
        assert verdict is not None
        return verdict.why


@settings(deadline=None, max_examples=25)
@given(
    peers=st.sampled_from([1, 2, 3, 50, 99, 100, 101, 500, 1000, 10_000]),
    deaf=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_never_more_than_ten_packets_a_second_and_every_peer_is_visited(peers: int, deaf: float, seed: int) -> None:
    """Whoever of them answers, a whole round; after a start, when all of them are due at once, and later."""
    air, chance = Air(peers, seed), Random(seed)
    dead = {target(number).through for number in range(peers) if chance.random() < deaf}
    dead |= {target(number).beside for number in range(peers) if target(number).through in dead}  # type: ignore[misc]
    air.answers = lambda probe, _now: probe.address not in dead
    air.run(max(2 * EVERY_S, 2.3 * peers * GAP_S))
    times = [at for at, _probe in air.sent]
    assert all(later - at > 1.0 for at, later in zip(times, times[10:], strict=False))
    asked = {probe.address for _at, probe in air.sent}
    assert {target(number).through for number in range(peers)} <= asked


def test_a_healthy_peer_gets_one_full_packet_in_ten_seconds_and_hardly_any_other() -> None:
    air = Air(50)
    air.run(30)
    air.sent.clear()
    air.run(600)
    sizes = [probe.size for _at, probe in air.sent]
    assert 50 * 60 <= len(sizes) < 50 * 60 * 1.15
    assert sizes.count(FULL) > 0.95 * len(sizes)


@pytest.mark.parametrize("peers", [1, 2, 10, 100])
@pytest.mark.parametrize("after", [0.0, 1.7, 5.0, 9.9])
def test_a_peer_that_fails_is_told_within_15_seconds(peers: int, after: float) -> None:
    air = Air(peers)
    air.run(60 + after)
    gone = {target(0).through, target(0).beside}
    air.answers = lambda probe, _now: probe.address not in gone
    assert air.until("unreachable") <= 15.0
    assert "host" in air.why()
    air.answers = lambda _probe, _now: True
    assert air.until("reachable") <= 10.0


def silence(numbers: Iterable[int], *, hosts: bool) -> Answers:
    """These peers do not answer through the overlay; nor do their hosts beside it."""
    gone = {target(number).through for number in numbers} | ({target(number).beside for number in numbers} if hosts else set())
    return lambda probe, _now: probe.address not in gone


@settings(deadline=None, max_examples=15)
@given(
    peers=st.one_of(st.integers(1, 100), st.just(100)),
    part=st.one_of(st.floats(0.0, 1.0), st.just(1.0)),
    dead_before=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    new=st.booleans(),
    hosts=st.booleans(),
    after=st.floats(0.0, 10.0),
    seed=st.integers(0, 1000),
)
@example(peers=100, part=1.0, dead_before=0.0, new=False, hosts=True, after=0.0, seed=1)
@example(peers=100, part=1.0, dead_before=0.0, new=True, hosts=True, after=0.0, seed=1)
@example(peers=100, part=0.02, dead_before=0.0, new=False, hosts=True, after=5.0, seed=1)
@example(peers=100, part=0.0, dead_before=0.9, new=False, hosts=True, after=0.0, seed=1)
@example(peers=52, part=50 / 52, dead_before=0.0, new=True, hosts=True, after=0.0, seed=1)
def test_however_many_fail_each_is_told_within_15_seconds_and_no_other(
    peers: int, part: float, dead_before: float, new: bool, hosts: bool, after: float, seed: int
) -> None:
    """Some of up to a hundred peers, at once, or never there since their leases came; others may be dead for long."""
    failing = max(1, round(peers * part))
    before = range(failing, failing + round((peers - failing) * dead_before))
    air = Air(peers, seed)
    if new:
        air.schedule.update({f"p{number}": None for number in range(failing)}, air.now)
    air.run(30)
    air.answers = silence(before, hosts=hosts)
    air.run(60 + after)
    air.answers = silence(range(before.stop), hosts=hosts)
    if new:
        air.schedule.update({f"p{number}": target(number) for number in range(failing)}, air.now)
    began, told = air.now, dict[str, float]()
    for now in air.turn(30):
        found = {key for key, verdict in air.judged.items() if verdict.state in ("unreachable", "silent")}
        assert found <= {f"p{number}" for number in range(before.stop)}, "a healthy one is accused"
        assert found >= told.keys(), "told, and taken back"
        told |= dict.fromkeys(found - told.keys(), now - began)
    assert told.keys() == {f"p{number}" for number in range(before.stop)}
    assert max(told.values()) <= 15.0
    air.answers = lambda _probe, _now: True
    air.run(90)
    assert {verdict.state for verdict in air.judged.values()} <= {"reachable"}


@pytest.mark.parametrize("lost", [0.01, 0.05])
def test_packets_lost_by_chance_among_a_hundred_are_no_failure_of_many(lost: float) -> None:
    air, chance = Air(100), Random(7)
    air.answers = lambda _probe, _now: chance.random() >= lost
    for _now in air.turn(600):
        assert all(verdict.state != "unreachable" for verdict in air.judged.values())


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (lambda probe: probe.address == target(0).through, "its host answers, but not through the overlay: UDP 8472 is dropped"),
        (lambda probe: probe.address in (target(0).through, target(0).beside), "it is down, or the network between"),
        (lambda probe: probe.address == target(0).through and probe.size > 1400, "packets of 1450 bytes are lost, small ones pass"),
    ],
    ids=["overlay closed", "host down", "black hole"],
)
def test_what_is_wrong_is_told_apart_and_what_it_turns_into(lost: Callable[[Probe], bool], words: str) -> None:
    air = Air(5)
    air.run(30)
    air.answers = lambda probe, _now: not lost(probe)
    assert air.until("unreachable") <= 15.0
    assert words in air.why()
    air.run(120)
    assert words in air.why()
    air.answers = lambda _probe, _now: True
    assert air.until("reachable") <= 10.0
    assert {verdict.state for _key, verdict in air.schedule.suspects(air.now)} <= {"reachable"}
    assert not list(air.schedule.suspects(air.now))


def test_a_black_hole_that_was_a_dead_host_before_is_told_as_what_it_is_now() -> None:
    air = Air(3)
    air.run(30)
    air.answers = lambda probe, _now: probe.address not in (target(0).through, target(0).beside)
    air.until("unreachable")
    air.answers = lambda probe, _now: probe.size <= 1400
    air.run(30)
    assert air.why().startswith("packets of 1450 bytes are lost")


@pytest.mark.parametrize("lost", [0.0, 0.01, 0.05])
def test_packets_lost_by_chance_are_no_news_in_a_day(lost: float) -> None:
    air, chance = Air(10), Random(7)
    air.answers = lambda _probe, _now: chance.random() >= lost
    for now in air.turn(86_400 / 4):
        assert all(verdict.state != "unreachable" for _key, verdict in air.schedule.suspects(now))


def test_a_silence_that_always_was_is_no_error() -> None:
    air = Air(3)
    air.answers = lambda probe, _now: probe.address not in (target(0).through, target(0).beside)
    assert GRACE_S <= air.until("silent") <= 20.0
    air.run(3600)
    assert air.schedule.verdict("p0", air.now).state == "silent"  # type: ignore[union-attr]
    assert not air.schedule.alone(air.now)


def test_a_public_address_that_is_silent_matters_to_nobody() -> None:
    air = Air(3)
    air.answers = lambda probe, _now: probe.address != target(0).beside
    for _now in air.turn(600):
        assert air.schedule.verdict("p0", air.now).state in ("unknown", "reachable")  # type: ignore[union-attr]
    assert air.schedule.verdict("p0", air.now).state == "reachable"  # type: ignore[union-attr]


def test_a_host_whose_overlay_is_closed_is_alone_although_hosts_answer() -> None:
    air = Air(3)
    air.run(60)
    air.answers = lambda probe, _now: probe.address in [target(number).beside for number in range(3)]
    air.run(26)
    assert air.schedule.alone(air.now)


@pytest.mark.parametrize("peers", [2, 3, 100, 1000])
def test_a_host_that_hears_from_nobody_is_alone_within_half_a_minute(peers: int) -> None:
    air = Air(peers)
    air.run(60)
    air.answers = lambda _probe, _now: False
    silent, told = air.now, 0.0
    for now in air.turn(60):
        told = told or (now if air.schedule.alone(now) else 0.0)
    assert 15.0 <= told - silent <= 26.0
    half = {target(number).through for number in range(0, peers, 2)}
    air.answers = lambda probe, _now: probe.address in half
    air.run(30.0)
    assert not air.schedule.alone(air.now)


def test_one_peer_is_no_proof_and_nobody_is_alone_who_never_was_not() -> None:
    one, never = Air(1), Air(5)
    one.run(30)
    one.answers = never.answers = lambda _probe, _now: False
    one.run(60)
    never.run(60)
    assert not one.schedule.alone(one.now)
    assert not never.schedule.alone(never.now)


def test_answers_that_nobody_asked_for_are_none() -> None:
    air = Air(1)
    air.answers = lambda _probe, _now: False
    air.run(1.0)
    (_at, probe), schedule = air.sent[0], air.schedule
    assert not schedule.heard(probe.token + 1, probe.address, probe.size, air.now)
    assert not schedule.heard(probe.token, IPAddress("192.0.2.66"), probe.size, air.now)
    assert not schedule.heard(probe.token, probe.address, probe.size - 1, air.now)
    assert schedule.heard(probe.token, probe.address, probe.size, air.now)
    assert not schedule.heard(probe.token, probe.address, probe.size, air.now)


def test_an_answer_that_is_late_is_welcome() -> None:
    air = Air(1)
    air.run(20)
    late: list[tuple[float, Probe]] = []
    air.answers = lambda probe, now: late.append((now, probe)) or False  # type: ignore[func-returns-value]
    for now in air.turn(120):
        while late and late[0][0] + 2.5 <= now:
            at, probe = late.pop(0)
            air.schedule.heard(probe.token, probe.address, probe.size, at + 2.5)
        assert air.schedule.verdict("p0", now).state == "reachable"  # type: ignore[union-attr]


def test_a_peer_that_cannot_be_sent_to_is_not_asked_and_not_judged() -> None:
    air = Air(2)
    air.run(20)
    before = len(air.sent)
    for _ in range(600):
        probe, _wake = air.schedule.step(air.now, lambda _key: False)
        assert probe is None
        air.now += 0.1
    assert len(air.sent) == before
    assert air.schedule.verdict("p0", air.now).state == "reachable"  # type: ignore[union-attr]


def test_a_known_path_mtu_is_no_black_hole() -> None:
    air = Air(1)
    air.answers = lambda _probe, _now: False
    air.run(1.0)
    air.schedule.too_large(air.sent[0][1].token, 1380, air.now)
    air.answers = lambda probe, _now: probe.size <= 1380
    air.run(60)
    seen = air.schedule.seen("p0")
    assert seen is not None
    assert (seen.path_mtu, judge(seen, air.now).state, seen.full.lost) == (1380, "reachable", 0)


def test_what_is_known_of_a_peer_goes_with_its_address_and_with_it() -> None:
    air = Air(2)
    air.run(30)
    kept = air.schedule.seen("p1")
    air.schedule.update({"p0": target(9), "p1": target(1)}, air.now)
    fresh = air.schedule.seen("p0")
    assert fresh is not None
    assert (fresh.heard, air.schedule.seen("p1")) == (None, kept)
    air.schedule.update({"p0": None}, air.now)
    air.sent.clear()
    air.run(60)
    assert {probe.address for _at, probe in air.sent} <= {target(1).through, target(1).beside}
    assert air.schedule.verdict("p0", air.now) is None


NOW = 1000.0
DEAD = Path(5, 980.0, 970.0)
NEVER = Path(5, 980.0)
WELL = Path(0, None, 999.0, 0.0004)


@pytest.mark.parametrize(
    ("small", "full", "beside", "inbound", "state", "words"),
    [
        (WELL, WELL, WELL, None, "reachable", ""),
        (Path(), WELL, Path(), None, "reachable", ""),
        (Path(), WELL, NEVER, None, "reachable", ""),
        (Path(), Path(2, 998.0, 990.0), Path(), None, "reachable", ""),
        (WELL, DEAD, WELL, None, "unreachable", "packets of 1450 bytes are lost, small ones pass"),
        (WELL, Path(4, 980.0), NEVER, None, "reachable", ""),
        (WELL, NEVER, NEVER, None, "unreachable", "packets of 1450 bytes are lost, small ones pass"),
        (DEAD, DEAD, WELL, None, "unreachable", "its host answers, but not through the overlay: UDP 8472"),
        (NEVER, NEVER, WELL, None, "unreachable", "its host answers, but not through the overlay: UDP 8472"),
        (DEAD, DEAD, WELL, 999.0, "unreachable", "one way only: its packets come, ours get no answer; UDP 8472"),
        (DEAD, DEAD, WELL, 900.0, "unreachable", "its host answers, but not"),
        (DEAD, DEAD, DEAD, None, "unreachable", "nor does its host answer beside the overlay"),
        (DEAD, DEAD, NEVER, None, "unreachable", "it answers no more, and 192.0.0.0 never has"),
        (DEAD, DEAD, NEVER, 999.0, "unreachable", "one way only"),
        (DEAD, DEAD, Path(), None, "unreachable", "nothing comes through the overlay"),
        (NEVER, NEVER, NEVER, None, "silent", "no answer to probes, ever"),
        (NEVER, NEVER, NEVER, 999.0, "silent", "no answer to probes, but its own packets come"),
        (NEVER, NEVER, Path(5, 980.0, error="nobody answers for it"), None, "unreachable", "nobody answers for it"),
        (DEAD, Path(5, 980.0, 970.0, error="cannot send"), WELL, None, "unreachable", "cannot send"),
        (Path(), Path(), Path(), None, "unknown", ""),
    ],
)
def test_what_was_heard_in_words(small: Path, full: Path, beside: Path, inbound: float | None, state: str, words: str) -> None:
    verdict = judge(Probed(target(0), NOW - 100, small, full, beside, inbound), NOW)
    assert verdict.state == state
    assert verdict.why.startswith(words) if words else not verdict.why


def test_where_nothing_is_encapsulated_there_is_nothing_beside() -> None:
    alone = Target(IPAddress("192.0.2.9"), None, 1500)
    assert judge(Probed(alone, NOW - 100, DEAD, DEAD), NOW).why == "its host does not answer: it is down, or the network between"
    air = Air(0)
    air.schedule.update({"p0": alone}, air.now)
    air.run(60)
    assert {(probe.address, probe.size) for _at, probe in air.sent} == {(alone.through, 1500)}
    air.answers = lambda _probe, _now: False
    assert air.until("unreachable") <= 15.0
    assert {probe.size for _at, probe in air.sent} == {1500, SMALL}


def test_loss_is_told_of_the_last_packets() -> None:
    seen = Probed(target(0), NOW)
    assert seen.loss == 0.0
    for number in range(64):
        seen.note(number >= 40)
    assert seen.loss == 8 / 32


def test_a_peer_that_was_not_asked_in_a_way_holds_nothing_of_it() -> None:
    seen, other = Probed(target(0), NOW), Probed(target(1), NOW)
    assert seen.small is other.beside is UNASKED
    seen.path("small").missed(NOW)
    assert (seen.small.lost, other.small.lost, seen.full.lost) == (1, 0, 0)
    assert seen.path("small") is seen.small
