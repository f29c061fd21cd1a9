"""Desired state as a sum: what each change touches, and who keeps a key that two claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.desired import Desired
from flannelpy.core.objects import FdbEntry, HostState, Key, Route


def route(number: int, via: str = "192.0.2.2") -> Route:
    return Route(IPNetwork(f"10.5.{number}.0/24"), via=IPAddress(via), dev="eth1")


def vtep(mac: str, outer: str) -> FdbEntry:
    return FdbEntry(mac, IPAddress(outer), "flannel.1")


def test_a_changed_fragment_touches_its_old_and_its_new_keys() -> None:
    desired = Desired()
    desired.put("b", HostState.of(route(9)))
    assert desired.put("b", HostState.of(route(10))) == {Key("route", "10.5.9.0/24"), Key("route", "10.5.10.0/24")}


def test_the_same_fragment_again_touches_nothing() -> None:
    desired = Desired()
    desired.put("b", HostState.of(route(9)), rank=3)
    assert desired.put("b", HostState.of(route(9)), rank=3) == set()


def test_another_rank_alone_touches_nothing_and_counts_when_somebody_else_comes() -> None:
    desired, mac = Desired(), "02:00:00:00:00:01"
    desired.put("left", HostState.of(vtep(mac, "192.0.2.2"), route(9)), rank=3)
    assert desired.put("left", HostState.of(vtep(mac, "192.0.2.2"), route(9)), rank=100) == set()
    desired.put("there", HostState.of(vtep(mac, "192.0.2.3"), route(10)), rank=50)
    assert set(desired.conflicts) == {"left"}


def test_a_dropped_fragment_is_gone_and_an_unknown_one_is_no_news() -> None:
    desired = Desired()
    desired.put("b", HostState.of(route(9)))
    assert desired.drop("b") == {Key("route", "10.5.9.0/24")}
    assert len(desired.state) == 0
    assert desired.drop("b") == set()


def test_of_two_leases_with_one_mac_the_older_is_kept_and_the_other_left_out_whole() -> None:
    desired = Desired()
    mac = "02:00:00:00:00:01"
    desired.put("young", HostState.of(vtep(mac, "192.0.2.3"), route(10)), rank=20)
    desired.put("old", HostState.of(vtep(mac, "192.0.2.2"), route(9)), rank=10)
    assert {str(item) for item in desired.state} == {str(vtep(mac, "192.0.2.2")), str(route(9))}
    assert desired.conflicts == {"young": ("old", Key("fdb", f"{mac} dev flannel.1"))}


def test_the_younger_comes_back_when_the_older_goes() -> None:
    desired = Desired()
    mac = "02:00:00:00:00:01"
    desired.put("old", HostState.of(vtep(mac, "192.0.2.2"), route(9)), rank=10)
    desired.put("young", HostState.of(vtep(mac, "192.0.2.3"), route(10)), rank=20)
    touched = desired.drop("old")
    assert Key("route", "10.5.10.0/24") in touched
    assert {str(item) for item in desired.state} == {str(vtep(mac, "192.0.2.3")), str(route(10))}
    assert desired.conflicts == {}


owners = st.sampled_from(["a", "b", "c", "d"])
states = st.lists(st.integers(0, 5), unique=True, max_size=3).map(lambda numbers: HostState.of(*map(route, numbers)))
changes = st.lists(st.tuples(owners, st.one_of(st.none(), st.tuples(states, st.integers(0, 3)))), max_size=25)


@given(changes)
def test_whatever_the_order_of_changes_the_sum_is_that_of_what_is_left(
    steps: list[tuple[str, tuple[HostState, int] | None]],
) -> None:
    walked, last = Desired(), {}
    for owner, change in steps:
        before = dict(walked.state.objects)
        touched = walked.drop(owner) if change is None else walked.put(owner, *change)
        after = dict(walked.state.objects)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert changed <= touched
        last[owner] = change
    fresh = Desired()
    for owner, change in last.items():
        if change is not None:
            fresh.put(owner, *change)
    assert walked.state == fresh.state
    assert walked.conflicts.keys() == fresh.conflicts.keys()
