"""The reconciler's books, each by itself: what waits, what is damped, what the mirror believes, what is said of a refusal."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.sync.drift import AT_ONCE, EVERY_S, Damping
from flannelpy.agent.sync.kernel_errors import Refusal, conditions, explain, in_the_way, links
from flannelpy.agent.sync.mirror import Mirror
from flannelpy.agent.sync.retries import FIRST_RETRY_S, LAST_RETRY_S, Retries
from flannelpy.core.desired import Desired
from flannelpy.core.errors import KernelError
from flannelpy.core.objects import FdbEntry, HostState, Key, Link, Neighbour, Object, Route
from flannelpy.core.plan import Step
from flannelpy.kernel.fake import FakeKernel

A, B = Key("route", "10.5.9.0/24"), Key("route", "10.5.10.0/24")

# ---------------------------------------------------------------------------------------------------------- retries


def test_each_refusal_doubles_the_wait() -> None:
    retries, now, waits = Retries(), 0.0, []
    for _ in range(12):
        retries.refused(A, now)
        due = retries.next_due
        assert due is not None
        waits.append(due - now)
        now = due
    assert waits[:4] == pytest.approx([0.4, 0.8, 1.6, 3.2])
    assert waits[-1] == LAST_RETRY_S


def test_what_is_over_waits_no_longer() -> None:
    retries = Retries()
    retries.refused(A, 0.0)
    retries.done(A)
    assert retries.next_due is None
    assert not retries.waiting(A, 0.0)


EVENTS = st.lists(st.tuples(st.sampled_from(["refused", "done", "hasten"]), st.sampled_from([A, B]), st.floats(0, 10)), max_size=60)


@given(EVENTS)
def test_whatever_happens_there_is_one_time_a_key_and_never_a_tight_loop(events: list[tuple[str, Key, float]]) -> None:
    retries, now = Retries(), 0.0
    attempts = 0
    for kind, key, pause in events:
        if kind == "refused":
            retries.refused(key, now)
            attempts += 1
            assert retries.waiting(key, now + FIRST_RETRY_S / 2)
        elif kind == "done":
            retries.done(key)
        else:
            retries.hasten([key], now)
            assert not retries.waiting(key, now)
        assert len(retries) <= 2
        now += pause
    assert retries.attempts == attempts


# ------------------------------------------------------------------------------------------------------------ drift


@pytest.mark.parametrize("every_s", [EVERY_S, 5.0, 60.0])
def test_what_is_changed_now_and_then_is_repaired_at_once_every_time(every_s: float) -> None:
    """A bad cable, twenty times: each repair as quick as the first."""
    damping = Damping()
    assert [damping.suppress([A], number * every_s) for number in range(20)] == [set()] * 20
    assert damping.contested() == []


def test_two_who_fight_are_slowed_down_and_it_ends_when_one_gives_up() -> None:
    damping, now, repaired = Damping(), 0.0, 0
    for _ in range(600):
        repaired += not damping.suppress([A], now)
        now += 0.1
    assert AT_ONCE + 60 / EVERY_S - 2 <= repaired <= AT_ONCE + 60 / EVERY_S + 1
    assert damping.contested() == [A]
    assert damping.next_due([A]) is not None
    damping.settle(now + AT_ONCE * EVERY_S + EVERY_S)
    assert damping.contested() == []
    assert len(damping) == 0


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.floats(0, 30)), max_size=80))
def test_the_book_of_repairs_is_empty_some_time_after_the_last(steps: list[tuple[Key, float]]) -> None:
    damping, now = Damping(), 0.0
    for key, pause in steps:
        damping.suppress([key], now)
        now += pause
    damping.settle(now + (AT_ONCE + 1) * EVERY_S)
    assert len(damping) == 0


# ----------------------------------------------------------------------------------------------------------- mirror

ROUTE = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.2"), "eth1")
OTHER = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.3"), "eth1")


@pytest.mark.parametrize("heard", [None, OTHER])
def test_what_changes_while_we_look_is_asked_for_again(heard: Object | None) -> None:
    mirror = Mirror()
    mirror.listen()
    mirror.hear({ROUTE.key: heard})
    list(mirror.take_full(HostState.of(ROUTE)))
    assert mirror.stale == {ROUTE.key}
    mirror.listen()
    mirror.take_part([ROUTE.key], HostState.of(ROUTE))
    assert mirror.stale == set()
    assert mirror.get(ROUTE.key) == ROUTE


@pytest.mark.parametrize("heard", [None, OTHER])
def test_an_acknowledgement_is_not_believed_where_somebody_else_was_at_it(heard: Object | None) -> None:
    mirror = Mirror()
    mirror.listen()
    mirror.hear({ROUTE.key: heard})
    mirror.learn(ROUTE.key, ROUTE)
    assert mirror.stale == {ROUTE.key}
    mirror.listen()
    mirror.hear({ROUTE.key: ROUTE})  # our own change, told
    mirror.learn(ROUTE.key, ROUTE)
    assert mirror.get(ROUTE.key) == ROUTE


# ---------------------------------------------------------------------------------------------------- kernel errors


def refusal(item: Object, code: int = errno.ENODEV) -> Refusal:
    return Refusal(Step("add", item), KernelError("No such device", code), "No such device")


DEVICE = Link("flannel.1", "vxlan", 1450)
ON_IT = (
    Neighbour(IPAddress("10.5.9.0"), "02:00:00:00:00:09", "flannel.1"),
    FdbEntry("02:00:00:00:00:09", IPAddress("192.0.2.9"), "flannel.1"),
    Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True),
)


def test_one_fault_is_one_condition() -> None:
    """The port is taken: the device cannot be made, and nothing that lives on it."""
    failed = [refusal(DEVICE, errno.EADDRINUSE), *map(refusal, ON_IT)]
    assert list(conditions(failed, links(one.step.key for one in failed))) == [f"link {errno.EADDRINUSE}"]


def test_what_fails_by_itself_is_told_with_how_many_like_it() -> None:
    failed = [refusal(Route(IPNetwork(f"10.5.{n}.0/24"), IPAddress("192.0.2.9"), "eth1"), errno.ENETUNREACH) for n in range(1, 4)]
    (text,) = conditions(failed, set()).values()
    assert text == "route add 10.5.1.0/24 via 192.0.2.9 dev eth1: No such device, and 2 more; trying again"


async def test_a_look_at_what_is_in_the_way_that_fails_costs_only_the_words() -> None:
    kernel = FakeKernel()
    kernel.fail_call("routes_at", KernelError("netlink: no answer"))
    refused = Step("add", ROUTE), KernelError("File exists", errno.EEXIST)
    assert await in_the_way(kernel, [refused]) == {}
    assert await explain(*refused, ()) == "File exists"


# ------------------------------------------------------------------------------------------------- who is left out

OBJECTS = [Route(IPNetwork(f"10.5.{number}.0/24"), dev="eth1") for number in range(4)]
FRAGMENTS = st.none() | st.tuples(st.integers(1, 9), st.sets(st.integers(0, 3), min_size=1))


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.tuples(st.integers(1, 9), st.sets(st.integers(0, 3), min_size=1))))
)
def test_who_is_left_out_follows_from_what_there_is_and_not_from_its_history(
    steps: list[tuple[str, tuple[int, set[int]] | None]],
) -> None:
    desired, there = Desired(), dict[str, tuple[int, set[int]]]()
    for owner, fragment in steps:
        if fragment is None:
            desired.drop(owner)
            there.pop(owner, None)
        else:
            rank, keys = fragment
            desired.put(owner, HostState.of(*(OBJECTS[key] for key in sorted(keys))), rank)
            there[owner] = fragment
    kept, taken = set[str](), set[int]()
    for owner, (_rank, keys) in sorted(there.items(), key=lambda one: (one[1][0], one[0])):
        if not keys & taken:  # nobody older that is kept has one of its keys
            kept.add(owner)
            taken |= keys
    assert set(desired.conflicts) == set(there) - kept
    assert {item.key for item in desired.state} == {OBJECTS[key].key for key in taken}
