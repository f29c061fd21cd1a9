"""Is a look at everything a plan of what differs, and of nothing else, and does nobody wait for it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.sync import reconcile
from flannelpy.agent.sync.mirror import AT_ONCE, Mirror
from flannelpy.core.desired import Desired
from flannelpy.core.objects import FdbEntry, HostState, Key, Link, Neighbour, Object, Route
from flannelpy.core.plan import Plan, plan
from tests.unit.syncing import World, peer

PEERS = 60


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with made.alive():
        made.join(*(peer(number) for number in range(2, 2 + PEERS)))
        await made.quiet()
        yield made


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[Key], set[Key]]]:
    """Of each plan that is made, of what: keys that are desired, and that are there."""
    found = list[tuple[set[Key], set[Key]]]()

    def noted(desired: HostState, observed: HostState, *rest: object) -> Plan:
        found.append((keys(desired), keys(observed)))
        return plan(desired, observed, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reconcile, "plan", noted)
    return found


def keys(state: HostState) -> set[Key]:
    """But not of settings that nobody asked for, which have no absence to go back to."""
    return {item.key for item in state if item.noun != "sysctl"}


def of_kind(world: World, kind: str) -> Object:
    return next(item for item in world.reconciler.desired.state if item.key.kind == kind)


async def test_where_nothing_differs_nothing_is_planned(world: World, planned: list[tuple[set[Key], set[Key]]]) -> None:
    world.reconciler.resync()
    await world.quiet()
    assert planned == [(set(), set())]


async def silently(world: World, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Somebody does this, and no notice of it comes."""
    with monkeypatch.context() as patch:
        patch.setattr(world.reconciler, "hear", lambda _notice: None)
        change()
        for _ in range(50):
            await asyncio.sleep(0)


STRANGE: dict[str, Object] = {
    "route": Route(IPNetwork("10.5.222.0/24"), IPAddress("10.5.222.0"), "flannel.1", onlink=True),
    "neigh": Neighbour(IPAddress("10.5.222.0"), "02:00:00:00:00:77", "flannel.1"),
    "fdb": FdbEntry("02:00:00:00:00:77", IPAddress("192.0.2.222"), "flannel.1"),
}


@pytest.mark.parametrize("kind", ["route", "neigh", "fdb"])
@pytest.mark.parametrize("change", ["gone", "another", "one more"])
async def test_what_nobody_told_of_is_found_and_planned_alone(
    world: World, planned: list[tuple[set[Key], set[Key]]], monkeypatch: pytest.MonkeyPatch, kind: str, change: str
) -> None:
    before, item = await world.held(), of_kind(world, kind)
    others: dict[str, dict[str, object]] = {
        "route": {"via": IPAddress("10.5.3.0")},
        "neigh": {"mac": "02:00:00:00:00:77"},
        "fdb": {"dst": IPAddress("192.0.2.222")},
    }
    what: dict[str, Callable[[], None]] = {
        "gone": lambda: world.kernel.take(item.key),
        "another": lambda: world.kernel.plant(replace(item, **others[kind])),  # type: ignore[type-var]
        "one more": lambda: world.kernel.plant(STRANGE[kind]),
    }
    await silently(world, monkeypatch, what[change])
    assert await world.held() != before
    planned.clear()
    world.reconciler.resync()
    await world.quiet()
    wanted, there = planned[0]
    assert len(wanted | there) == 1
    assert await world.held() == before
    assert world.reconciler.settled


async def test_where_a_device_is_another_all_is_planned(
    world: World, planned: list[tuple[set[Key], set[Key]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = of_kind(world, "link")
    assert isinstance(link, Link)
    before = await world.held()
    await silently(world, monkeypatch, lambda: world.kernel.plant(replace(link, mtu=1300)))
    world.reconciler.resync()
    await world.quiet()
    assert len(planned[0][0]) > PEERS
    assert await world.held() == before


def neighbour(number: int, name: str) -> Neighbour:
    return Neighbour(IPAddress((10 << 24) + (number << 8), 4), f"02:00:00:00:00:0{name}", "flannel.1")


OBJECTS = st.dictionaries(st.integers(0, 40), st.sampled_from("abc"), max_size=40)


@given(OBJECTS, OBJECTS)
def test_what_differs_is_what_differs(wanted: dict[int, str], there: dict[int, str]) -> None:
    def made(one: dict[int, str]) -> dict[Key, Object]:
        return {item.key: item for item in (neighbour(number, name) for number, name in one.items())}

    desired, observed = Desired(), made(there)
    for number in wanted:
        desired.put(str(number), HostState(made({number: wanted[number]})), rank=number)
    target = made(wanted)
    differ = {key for key in desired.differing(observed) if key is not None}
    assert differ == {key for key in target.keys() | observed.keys() if target.get(key) != observed.get(key)}


def test_everything_is_taken_in_pieces_and_what_is_heard_meanwhile_is_stale() -> None:
    mirror = Mirror()
    items = [neighbour(number, "a") for number in range(3 * AT_ONCE)]
    state = HostState.from_iterable(items)
    pieces = 0
    for _ in mirror.take_full(state):
        pieces += 1
        if pieces == 2:
            assert mirror.objects == {}
            mirror.hear({items[0].key: None, items[1].key: items[1]})
    assert pieces == 3
    assert mirror.objects == state.objects
    assert mirror.stale == {items[0].key}
