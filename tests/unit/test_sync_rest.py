"""Does the loop come to rest, and does it notice in every moment what the kernel takes along without a word?"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.sync import fragments
from flannelpy.core import nexthops
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import BOOT_PROTOCOL, HostState, Key, Route, Scope
from tests.unit.syncing import World, mac_of, peer, target

REFUSALS = (errno.ENOBUFS, errno.ENETUNREACH, errno.EINVAL, errno.EPERM)


@pytest.mark.parametrize(("kind", "moved"), [("fdb", peer(9, at="192.0.2.99")), ("neigh", peer(9, mac=mac_of(99)))])
@pytest.mark.parametrize("code", REFUSALS)
async def test_what_was_refused_and_is_wanted_no_more_is_not_tried_before_anything_may_be_removed(
    kind: str, moved: Lease, code: int
) -> None:
    """From disk, or etcd takes no writes: a peer is another one now, the kernel refuses the change, the peer goes."""
    world = World()
    listening = asyncio.create_task(world._listen())
    await asyncio.sleep(0)
    world.retarget(world.target)
    await world.quiet()
    world.join(peer(9))
    await world.quiet()
    (key,) = world.reconciler.desired.kinds({kind})
    world.kernel.fail(key, code, 1000)
    world.join(moved)
    await world.quiet()
    assert list(world.reconciler.retries) == [key]
    world.leave(moved)
    await world.quiet()
    await world.later(31.0)
    assert list(world.reconciler.retries) == []
    assert "kernel-refused" not in str(world.conditions())
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_route_of_somebody_elses_that_could_not_be_replaced_is_let_be_when_the_peer_goes(code: int) -> None:
    """host-gw: flanneld's route to a peer's subnet, in whose place the kernel refuses ours."""
    world = World()
    foreign = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.8"), "eth1", proto=BOOT_PROTOCOL)
    world.kernel.plant(foreign)
    async with world.alive(target({"Type": "host-gw"})):
        attrs = LeaseAttrs(IPAddress("198.51.100.9"), None, "host-gw")
        lease = Lease(IPNetwork("10.5.9.0/24"), attrs, etcd_lease=7, create_revision=9)
        world.kernel.fail(foreign.key, code, 1000)
        world.join(lease)
        await world.quiet()
        assert list(world.reconciler.retries) == [foreign.key]
        world.leave(lease)
        await world.quiet()
        await world.later(31.0)
        assert list(world.reconciler.retries) == []
        assert world.kernel.get(foreign.key) == foreign
        assert "kernel-refused" not in str(world.conditions())


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("peers", [1, 5])
async def test_a_route_that_goes_with_its_nexthop_object_during_a_look_is_put_back(
    monkeypatch: pytest.MonkeyPatch, full: bool, peers: int
) -> None:
    """The routes were dumped already, sets are still being listed: ``ip nexthop del``, of which alone the kernel tells."""
    monkeypatch.setattr(nexthops, "MANY", 1)
    monkeypatch.setattr(nexthops, "FEW", 1)
    world = World()
    for number in range(9, 9 + peers):
        world.join(peer(number))
    async with world.alive():
        hops = list(world.reconciler.desired.kinds({"nexthop"}))
        routes = [Key("route", f"10.5.{number}.0/24") for number in range(9, 9 + peers)]
        assert len(hops) == peers
        observe, disturbed = world.failing.observe, list[bool]()

        async def observing(scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
            found = await observe(scope, keys)
            if not disturbed:
                disturbed.append(True)
                for hop in hops:
                    world.kernel.take(hop)
                for _ in range(8):
                    await asyncio.sleep(0)
            return found

        monkeypatch.setattr(world.failing, "observe", observing)
        if full:
            world.reconciler.resync()
        else:
            world.reconciler._mirror.stale.add(routes[0])
            world.reconciler.dirty.add([routes[0]])
        await world.quiet()
        await world.later(10.0)
        assert disturbed
        assert [key for key in (*hops, *routes) if world.kernel.get(key) is None] == []


async def test_who_went_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is reached without a gateway is asked once a peer."""
    monkeypatch.setattr(fragments, "AT_ONCE", 20)
    world = World()
    async with world.alive(target({"Type": "vxlan", "DirectRouting": True})):
        stays = peer(200, at="192.0.2.200")
        world.join(stays)
        for number in range(2, 190):
            one = peer(number, at=f"192.0.2.{number}")
            world.join(one)
            await world.quiet()
            world.leave(one)
            await world.quiet()
        known = world.reconciler.fragments._facts.on_link
        assert len(known) < 30
        assert IPAddress("192.0.2.200") in known


@pytest.mark.parametrize("peers", [1, 5])
async def test_a_peer_that_came_while_a_look_failed_was_changed_by_nobody(peers: int) -> None:
    world = World()
    async with world.alive():
        world.join(peer(30))
        await world.quiet()
        failures = [True]
        world.failing.fails = lambda: bool(failures and failures.pop())
        for number in range(2, 2 + peers):
            world.join(peer(number))
        world.reconciler.resync()
        await world.quiet()
        assert "route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink" in await world.held()
        assert world.reconciler.repairs.count == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_what_the_kernel_took_itself_is_put_back_at_once_though_the_look_at_it_failed(fails: bool) -> None:
    """A link that flaps takes the routes with it each time: nobody to blame, nothing to wait for."""
    world = World()
    async with world.alive():
        world.join(peer(30))
        await world.quiet()
        (key,) = (key for key in world.reconciler.desired.state.objects if key.kind == "route" and "30" in key.id)
        for _ in range(10):
            world.clock.now += 1.0
            failures = [fails]
            world.failing.fails = lambda: bool(failures and failures.pop())  # noqa: B023
            for dst in [dst for dst in world.kernel._routes if str(dst) == key.id]:
                del world.kernel._routes[dst]
            world.kernel.overflow()
            await world.quiet()
            assert world.kernel.get(key) is not None
        assert "kernel-contested" not in str(world.conditions())
