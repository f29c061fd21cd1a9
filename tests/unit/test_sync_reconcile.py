"""What waits keeps nobody else away: peers come and go on a device that refuses a change."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from flannelpy.core.backend import Backend
from flannelpy.core.objects import HostState, Key, Link, Vxlan
from tests.unit.syncing import World, peer, target

DEVICE = Key("link", "flannel.1")


class Broken:
    """A backend that cannot say what the host needs."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def host(self, _local: object) -> HostState:
        raise ValueError("a plugin's own fault")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with made.alive():
        made.join(peer(2))
        await made.quiet()
        yield made


async def has_route(world: World, number: int) -> bool:
    return f"route 10.5.{number}.0/24 via 10.5.{number}.0 dev flannel.1 onlink" in await world.held()


async def refuse_a_change(world: World) -> None:
    """The device has another MTU, and the kernel will not change it: its pause is running."""
    there = world.kernel.get(DEVICE)
    assert isinstance(there, Link)
    world.kernel.plant(replace(there, mtu=1300))
    world.kernel.fail(DEVICE, errno.EINVAL, times=1_000)
    await world.quiet()
    world.clock.now += 0.1
    assert "kernel-refused link 22" in world.conditions()


async def test_a_peer_comes_while_its_device_refuses_a_change(world: World) -> None:
    await refuse_a_change(world)
    world.join(peer(3))
    await world.quiet()
    assert await has_route(world, 3)
    assert world.kernel.get(DEVICE) is not None


async def test_a_peer_goes_while_its_device_refuses_a_change(world: World) -> None:
    await refuse_a_change(world)
    world.leave(peer(2))
    await world.quiet()
    assert not await has_route(world, 2)


async def test_a_peer_comes_while_the_uplink_has_another_name(world: World) -> None:
    """``ip link set eth1 name ens3``: the device works on, cannot be made anew, and takes new peers."""
    world.kernel.interfaces["ens3"] = replace(world.kernel.interfaces.pop("eth1"), name="ens3")
    there = world.kernel.get(DEVICE)
    assert isinstance(there, Link)
    assert isinstance(there.detail, Vxlan)
    world.kernel.plant(replace(there, detail=replace(there.detail, dev="ens3")))
    await world.quiet()
    world.clock.now += 0.1
    world.join(peer(3))
    await world.quiet()
    assert await has_route(world, 2)
    assert await has_route(world, 3)


async def test_what_the_host_needs_and_cannot_be_worked_out_costs_no_peer(world: World) -> None:
    before = await world.held()
    whole = world.target
    world.retarget(replace(whole, backend=cast(Backend, Broken(whole.backend))))
    world.join(peer(3))
    await world.quiet()
    assert before < await world.held()
    assert await has_route(world, 3)
    assert world.reconciler.standing.host_failed
    assert "host: ValueError: a plugin's own fault" in world.conditions()["backend-failed host"]
    world.retarget(whole)
    await world.quiet()
    assert world.conditions() == {}
    assert not world.reconciler.standing.host_failed


async def test_a_firewall_that_could_not_be_made_is_asked_for_again() -> None:
    world, whole, faults = World(), target(), [RuntimeError("once")]

    def firewall() -> HostState:
        if faults:
            raise faults.pop()
        return whole.firewall()

    async with world.alive(replace(whole, firewall=firewall)):
        world.reconciler.look_at_silent()
        await world.quiet()
        assert any(line.startswith("nft ") for line in await world.held())
        assert world.conditions() == {}
