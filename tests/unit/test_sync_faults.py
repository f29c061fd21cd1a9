"""Whatever fails, whenever: does the loop live on, and come to what a fresh start gives, with nothing left to complain about?"""

from __future__ import annotations

import asyncio
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.sync import reconcile
from flannelpy.core.objects import FdbEntry, Key, Neighbour, Route
from flannelpy.kernel.fake import FakeKernel
from tests.unit.syncing import World, eth1, mac_of, peer, sometimes, target

BACKENDS = (
    {"Type": "vxlan"},
    {"Type": "vxlan", "MTU": 1400},
    {"Type": "vxlan", "Port": 4789},
    {"Type": "vxlan", "VNI": 2},
    {"Type": "vxlan", "DirectRouting": True},
    {"Type": "host-gw"},
)

numbers = st.integers(2, 6)
happenings = st.one_of(
    st.tuples(st.sampled_from(["join", "leave", "moved", "cloned"]), numbers),
    st.tuples(st.just("retarget"), st.integers(0, len(BACKENDS) - 1)),
    st.tuples(st.just("taken"), st.integers(0, 30)),
    st.tuples(st.sampled_from(["stranger", "down", "up", "device down", "device gone", "overflow"]), st.just(0)),
    st.tuples(st.sampled_from(["sweep", "no sweep", "reroute", "hasten", "audit", "round", "rounds"]), st.just(0)),
    st.tuples(st.just("later"), st.sampled_from([0.1, 0.5, 3.0, 40.0])),
)


def plant_strangers(kernel: FakeKernel, device: Key) -> None:
    """Somebody uses our device for a peer of his own."""
    if kernel.get(device) is not None:
        kernel.plant(Neighbour(IPAddress("10.5.99.0"), mac_of(99), device.id))
        kernel.plant(FdbEntry(mac_of(99), IPAddress("192.0.2.99"), device.id))
        kernel.plant(Route(IPNetwork("10.5.99.0/24"), IPAddress("10.5.99.0"), device.id, onlink=True))


async def befall(world: World, what: str, which: float) -> None:
    number = int(which)
    kernel, reconciler = world.kernel, world.reconciler
    match what:
        case "join":
            world.join(peer(number))
        case "leave":
            world.leave(peer(number))
        case "moved":
            world.join(peer(number, at=f"198.51.100.{number}", mac=mac_of(number + 100)))
        case "cloned":
            world.join(peer(number, mac=mac_of(2)))
        case "retarget":
            world.retarget(target(BACKENDS[number], world.target.scope))
        case "taken":
            keys = sorted(reconciler.desired.state.objects)
            if keys:
                kernel.take(keys[number % len(keys)])
        case "stranger":
            for key in reconciler.desired.kinds({"link"}):
                plant_strangers(kernel, key)
        case "down":
            kernel.set_down("eth1")
        case "up":
            kernel.set_interface(eth1())
            reconciler.hasten()
        case "device down":
            for key in reconciler.desired.kinds({"link"}):
                if kernel.get(key) is not None:
                    kernel.set_down(key.id)
        case "device gone":
            for key in reconciler.desired.kinds({"link"}):
                kernel.take(key)
        case "overflow":
            kernel.overflow()
        case "sweep" | "no sweep":
            reconciler.allow_sweep(what == "sweep")
        case "reroute":
            reconciler.reroute((4, 6))
        case "hasten":
            reconciler.hasten()
        case "audit":
            reconciler.resync()
            reconciler.look_at_silent()
        case "round":
            await world.round()
        case "rounds":
            for _ in range(4):
                await world.round()
        case "later":
            world.clock.now += which
    await asyncio.sleep(0)


async def run_trial(steps: list[tuple[str, float]], seed: int, probability: float) -> None:
    world = World()
    async with world.alive():
        world.failing.fails = sometimes(seed, probability)
        for what, which in steps:
            await befall(world, what, which)
        world.kernel.set_interface(eth1())
        await world.recover()
        fresh = World()
        fresh.join(*world.peers.current.values())
        async with fresh.alive(world.target):
            assert await world.held() == await fresh.held()
            assert world.conditions() == fresh.conditions()
            assert world.reconciler.standing.count() == fresh.reconciler.standing.count()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(happenings, max_size=25), st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.3, 0.7]))
def test_faults_at_any_moment_end_in_what_a_fresh_start_gives(
    steps: list[tuple[str, float]], seed: int, probability: float
) -> None:
    with patch.object(reconcile, "UNREADABLE_S", 0.0):
        asyncio.run(run_trial(steps, seed, probability))
