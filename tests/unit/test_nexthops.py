"""When do routes go by nexthop objects, and what becomes of them? Above so many peers, on devices of ours, by numbers of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core import nexthops
from flannelpy.core.desired import Desired
from flannelpy.core.dialect import typed
from flannelpy.core.nexthops import FEW, MANY, by_nexthops, pays, routes_by, without
from flannelpy.core.objects import HostState, Key, Nexthop, Route
from flannelpy.core.plan import Step, plan, text
from tests.unit.syncing import World, peer

NUMBER = 0x0A050900
PLAIN = Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True)
CARRIED = replace(PLAIN, nhid=NUMBER)
CARRIER = Nexthop(NUMBER, IPAddress("10.5.9.0"), "flannel.1", onlink=True)
DEVICES = {"flannel.1"}


# ------------------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("peers", "used", "then"),
    [(MANY - 1, False, False), (MANY, False, True), (MANY - 1, True, True), (FEW, True, True), (FEW - 1, True, False)],
)
def test_a_cluster_around_the_number_does_not_flap(peers: int, used: bool, then: bool) -> None:
    assert pays(peers, used=used) is then


def test_a_route_is_told_as_one_types_it() -> None:
    steps = [Step("add", CARRIER), Step("change", CARRIED, PLAIN), Step("remove", CARRIER, CARRIER)]
    assert [typed(step) for step in steps] == [
        f"ip nexthop add id {NUMBER} via 10.5.9.0 dev flannel.1 onlink proto 102",
        f"ip route replace 10.5.9.0/24 nhid {NUMBER} proto 102",
        f"ip nexthop del id {NUMBER}",
    ]
    assert str(replace(CARRIER, proto=4)) == f"id {NUMBER} via 10.5.9.0 dev flannel.1 onlink proto 4"


def test_a_route_by_way_of_a_gateway_is_carried_by_the_number_of_its_destination() -> None:
    assert list(by_nexthops(HostState.of(PLAIN), DEVICES, ())) == [CARRIER, CARRIED]


@pytest.mark.parametrize(
    "route",
    [
        replace(PLAIN, dev="eth1"),
        replace(PLAIN, via=None),
        Route(IPNetwork("fd05:0:0:9::/64"), IPAddress("fd05:0:0:9::"), "flannel.1", onlink=True),
        Route(IPNetwork("10.5.9.0/24"), kind="unreachable"),
        replace(PLAIN, metric=7),
        replace(PLAIN, proto=3),
        replace(PLAIN, dst=IPNetwork("0.0.0.0/0")),
    ],
    ids=str,
)
def test_other_routes_stay_as_they_are(route: Route) -> None:
    assert list(by_nexthops(HostState.of(route), DEVICES, ())) == [route]


def test_of_two_routes_with_one_number_the_first_has_it() -> None:
    wider = replace(PLAIN, dst=IPNetwork("10.5.9.0/25"))
    assert list(by_nexthops(HostState.of(PLAIN, wider), DEVICES, ())) == [CARRIER, CARRIED, wider]


def test_a_number_that_somebody_else_has_is_not_used() -> None:
    other = replace(PLAIN, dst=IPNetwork("10.5.8.0/24"), via=IPAddress("10.5.8.0"))
    state = by_nexthops(HostState.of(PLAIN, other), DEVICES, {NUMBER})
    assert [item.noun for item in state] == ["route", "nexthop", "route"]
    assert state.get(PLAIN.key) == PLAIN
    both = by_nexthops(HostState.of(PLAIN, other), DEVICES, ())
    assert without(both, {NUMBER}) == state


def test_what_went_with_a_nexthop_object_is_found_by_its_owner() -> None:
    desired = Desired()
    desired.put("one", HostState.of(CARRIER, CARRIED))
    desired.put("other", HostState.of(replace(PLAIN, dst=IPNetwork("10.5.8.0/24"))))
    assert list(routes_by({CARRIER.key: None, Key("nexthop", "7"): None}, desired)) == [CARRIED.key]
    assert list(routes_by({CARRIER.key: CARRIER}, desired)) == []


def test_the_order() -> None:
    up = plan(HostState.of(CARRIER, CARRIED), HostState.of(PLAIN))
    assert text(up).splitlines() == [
        f"nexthop add id {NUMBER} via 10.5.9.0 dev flannel.1 onlink",
        f"route replace 10.5.9.0/24 nhid {NUMBER}",
    ]
    down = plan(HostState.of(PLAIN), HostState.of(CARRIER, CARRIED))
    assert [(step.op, step.key.kind) for step in down] == [("change", "route"), ("remove", "nexthop")]
    gone = plan(HostState(), HostState.of(CARRIER, CARRIED))
    assert [(step.op, step.key.kind) for step in gone] == [("remove", "route"), ("remove", "nexthop")]


def test_a_route_waits_for_its_nexthop_object() -> None:
    desired = HostState.of(CARRIER, CARRIED)
    assert plan(desired, HostState(), held=[CARRIER.key]) == ()
    moved = replace(CARRIER, onlink=False)
    assert [step.item for step in plan(desired, HostState.of(moved), held=[CARRIER.key])] == [CARRIED]


# ---------------------------------------------------------------------------------------------------------- the loop


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nexthops, "MANY", 4)
    monkeypatch.setattr(nexthops, "FEW", 3)


@pytest.fixture
async def world(few: None) -> AsyncIterator[World]:
    made = World()
    async with made.alive():
        yield made


def carriers(world: World) -> list[str]:
    """The nexthop objects that there are."""
    return [key.id for key in world.kernel.planted() if key.kind == "nexthop"]


def carried(world: World, *numbers: int) -> list[int]:
    """By which nexthop objects the kernel's routes to these peers go."""
    routes = [world.kernel.get(Key("route", f"10.5.{number}.0/24")) for number in numbers]
    assert all(isinstance(route, Route) for route in routes)
    return [route.nhid for route in routes if isinstance(route, Route)]


def ids(numbers: Sequence[int]) -> list[int]:
    return [0x0A050000 + (number << 8) for number in numbers]


async def test_the_fourth_peer_brings_nexthop_objects_and_the_second_last_takes_them(world: World) -> None:
    world.join(*map(peer, (11, 12, 13)))
    await world.quiet()
    assert carriers(world) == []
    world.join(peer(14))
    await world.quiet()
    world.join(peer(15))  # how many there are is looked at before each round's own
    await world.quiet()
    assert carried(world, 11, 12, 13, 14, 15) == ids((11, 12, 13, 14, 15))
    before = world.steps
    world.leave(peer(15), peer(14))
    await world.quiet()
    assert carried(world, 11, 12, 13) == ids((11, 12, 13))
    world.leave(peer(13))
    await world.quiet()
    world.join(peer(14))
    await world.quiet()
    assert carried(world, 11, 12, 14) == [0, 0, 0]
    assert carriers(world) == []
    assert world.conditions() == {}
    changed = [line for line in world.text(before) if "10.5.11.0/24" in line]
    assert changed == ["route replace 10.5.11.0/24 via 10.5.11.0 dev flannel.1 onlink"]  # in place: it never went


async def test_a_start_among_many_begins_with_them_and_the_next_finds_them(few: None) -> None:
    first = World()
    first.join(*map(peer, range(11, 20)))
    async with first.alive():
        assert carried(first, *range(11, 20)) == ids(range(11, 20))
    again = World(first.kernel)
    again.join(*map(peer, range(11, 20)))
    before = again.steps
    async with again.alive():
        assert again.text(before) == []


async def test_what_a_killed_agent_left_is_swept(few: None) -> None:
    first = World()
    first.join(*map(peer, range(11, 20)))
    async with first.alive():
        pass
    again = World(first.kernel)
    again.join(*map(peer, (11, 12)))
    async with again.alive():
        assert carried(again, 11, 12) == [0, 0]
        assert carriers(again) == []
        assert again.kernel.get(Key("route", "10.5.13.0/24")) is None


async def test_a_peer_that_leaves_takes_its_nexthop_object(world: World) -> None:
    world.join(*map(peer, range(11, 20)))
    await world.quiet()
    world.join(peer(20))
    await world.quiet()
    world.leave(peer(12))
    await world.quiet()
    assert str(ids([12])[0]) not in carriers(world)
    assert len(carriers(world)) == 9


async def grown(world: World) -> None:
    """Among ten peers, all by nexthop objects."""
    world.join(*map(peer, range(11, 20)))
    await world.quiet()
    world.join(peer(20))
    await world.quiet()
    assert carried(world, *range(11, 21)) == ids(range(11, 21))


async def test_a_nexthop_object_that_somebody_deletes_comes_back_with_its_route(world: World) -> None:
    await grown(world)
    world.kernel.take(Key("nexthop", str(ids([12])[0])))
    assert world.kernel.get(Key("route", "10.5.12.0/24")) is None
    before, looks = world.steps, world.kernel.calls["observe"]
    await world.quiet()
    assert carried(world, *range(11, 21)) == ids(range(11, 21))
    assert [line.split(" via")[0] for line in world.text(before)] == [
        f"nexthop add id {ids([12])[0]}",
        f"route add 10.5.12.0/24 nhid {ids([12])[0]}",
    ]
    assert world.kernel.calls["observe"] == looks + 1


async def test_all_of_them_deleted_and_one_made_anew_at_once_is_repaired(world: World) -> None:
    await grown(world)
    for number in range(11, 21):
        world.kernel.take(Key("nexthop", str(ids([number])[0])))
    world.kernel.plant(Nexthop(ids([13])[0], IPAddress("10.5.13.0"), "flannel.1", onlink=True))  # and its route is gone
    await world.quiet()
    assert carried(world, *range(11, 21)) == ids(range(11, 21))


async def test_one_that_somebody_makes_his_own_is_left_to_him(world: World) -> None:
    await grown(world)
    his = Nexthop(ids([12])[0], IPAddress("192.0.2.254"), "eth1", proto=4)
    world.kernel.plant(his)
    await world.quiet()
    assert world.kernel.get(his.key) == his
    assert carried(world, 11, 12, 13) == [*ids([11]), 0, *ids([13])]
    route = world.kernel.get(Key("route", "10.5.12.0/24"))
    assert isinstance(route, Route)
    assert route.dev == "flannel.1"
    assert world.conditions() == {}


async def test_a_number_that_is_somebody_elses_from_the_start_is_left_to_him(few: None) -> None:
    world = World()
    his = Nexthop(ids([12])[0], IPAddress("192.0.2.254"), "eth1", proto=4)
    world.kernel.plant(his)
    world.join(*map(peer, range(11, 20)))
    async with world.alive():
        assert carried(world, 11, 12, 13) == [*ids([11]), 0, *ids([13])]
        assert world.kernel.get(his.key) == his
        assert world.conditions() == {}
        before = world.steps
        world.join(peer(12, at="192.0.2.112"))  # it moves, and goes without still
        await world.quiet()
        assert carried(world, 12) == [0]
        assert [line.split()[0] for line in world.text(before)] == ["fdb"]


async def test_a_kernel_without_them_is_asked_once(few: None) -> None:
    world = World()
    world.kernel.unknown.add("nexthop")
    world.join(*map(peer, range(11, 20)))
    async with world.alive():
        world.join(peer(20))
        await world.quiet()
        assert carried(world, *range(11, 21)) == [0] * 10
        assert world.kernel.calls["nexthops"] == 1


async def test_few_peers_do_not_ask_for_them() -> None:
    world = World()
    world.join(peer(11))
    async with world.alive():
        assert world.kernel.calls["nexthops"] == 0


async def test_a_device_that_was_taken_down_comes_back_with_all(world: World) -> None:
    await grown(world)
    world.kernel.set_down("flannel.1")
    assert carriers(world) == []
    await world.quiet()
    assert carried(world, *range(11, 21)) == ids(range(11, 21))


async def test_a_refusal_of_another_kind_is_tried_again(world: World) -> None:
    await grown(world)
    number = ids([30])[0]
    world.kernel.fail(Key("nexthop", str(number)), 12, times=2)
    world.join(peer(30))
    await world.quiet()
    assert [code for code in world.conditions() if code.startswith("kernel-refused")]
    await world.recover()
    assert carried(world, 30) == [number]
    assert world.conditions() == {}
