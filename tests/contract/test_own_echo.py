"""Who is told of what an agent sets itself? Everybody but the agent, to which it was acknowledged; of what others do it is told."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from random import Random

import pytest
from netaddr import IPNetwork

from flannelpy.core.backend import Guard, GuardedPort
from flannelpy.core.guard import Side, guard_sets
from flannelpy.core.nexthops import by_nexthops
from flannelpy.core.objects import HostState, Key, NftElement, NftTable, Route
from flannelpy.core.plan import Step, plan
from flannelpy.kernel.channel import netlink_socket
from flannelpy.kernel.netlink import NetlinkKernel
from flannelpy.kernel.ports import Ports

from .kernel_support import ADDRESS, HOST, LINK, SCOPE, RealHost, hear, ip, peer, real_only

ROUTE, OTHERS = Key("route", "10.5.9.0/24"), Key("route", "10.5.10.0/24")
GUARD = Guard(GuardedPort("vxlan", 8472, inner=30, ethertype=28, vni=1), "default", (4,))
SIDES = [Side(IPNetwork("10.5.0.0/16"), IPNetwork("10.5.72.0/24"), 24)]
NOTED = ("route", "neigh", "nexthop")


@pytest.fixture
async def quiet(real: RealHost) -> AsyncIterator[NetlinkKernel]:
    """An agent's kernel, which does not hear itself."""
    kernel = NetlinkKernel(own_echo=False)
    yield kernel
    await kernel.close()


async def reach(kernel: NetlinkKernel, desired: HostState) -> None:
    results = await kernel.apply(plan(desired, await kernel.observe(SCOPE), SCOPE))
    assert [f"{result.step}: {result.error}" for result in results if result.error] == []


def carried(number: int) -> HostState:
    return by_nexthops(peer(number), {"flannel.1"}, ())


@real_only
async def test_what_it_sets_is_told_to_others_only(quiet: NetlinkKernel, real: RealHost) -> None:
    await reach(quiet, HOST)
    own, others = quiet.notices(SCOPE), real.kernel.notices(SCOPE)
    await reach(quiet, HOST | carried(9))
    await reach(quiet, HOST | peer(9))
    told = await hear(others, lambda heard: ROUTE in heard.objects)
    assert {key.kind for key in told.objects} >= set(NOTED)
    ip("route add 10.5.10.0/24 dev flannel.1 proto 102")
    heard = await hear(own, lambda heard: OTHERS in heard.objects)
    assert [key for key in heard.objects if key.kind in NOTED] == [OTHERS]


@real_only
async def test_of_devices_and_addresses_it_is_told(quiet: NetlinkKernel) -> None:
    """What follows from them is the kernel's doing, and by their messages it is known which device is which."""
    notices = quiet.notices(SCOPE)
    await reach(quiet, HOST | peer(9))
    heard = await hear(notices, lambda heard: ADDRESS.key in heard.objects and LINK.key in heard.objects)
    assert heard.objects[ADDRESS.key] == ADDRESS
    ip("route add 10.5.10.0/24 dev flannel.1 proto 102")
    heard = await hear(notices, lambda heard: OTHERS in heard.objects)
    assert isinstance(heard.objects[OTHERS], Route)
    ip("route del 10.5.9.0/24")
    heard = await hear(notices, lambda heard: ROUTE in heard.objects)
    assert heard.objects[ROUTE] is None


@real_only
async def test_of_elements_neither(quiet: NetlinkKernel, real: RealHost) -> None:
    sets = HostState.of(NftTable("flannelpy", "")) | guard_sets(GUARD, "flannelpy", SIDES)
    await quiet.apply([Step("add", item) for item in sets])
    own, others = quiet.notices(SCOPE), real.kernel.notices(SCOPE)
    mine, his = (NftElement("flannelpy", "hosts4", bytes([192, 0, 2, number])) for number in (9, 10))
    assert [result.error for result in await quiet.apply([Step("add", mine)])] == [None]
    assert [result.error for result in await real.kernel.apply([Step("add", his)])] == [None]
    assert (await hear(others, lambda heard: mine.key in heard.objects)).objects[mine.key] == mine
    heard = await hear(own, lambda heard: his.key in heard.objects)
    assert mine.key not in heard.objects


@real_only
async def test_two_agents_hear_each_other(quiet: NetlinkKernel) -> None:
    other = NetlinkKernel(own_echo=False)
    try:
        await reach(quiet, HOST)
        notices = quiet.notices(SCOPE)
        await other.apply([Step("add", item) for item in peer(9)])
        assert ROUTE in (await hear(notices, lambda heard: ROUTE in heard.objects)).objects
    finally:
        await other.close()


def test_a_port_that_somebody_has_is_passed_over() -> None:
    with Ports(Random(7)).open() as one:
        first = one.port
    taken = netlink_socket(socket.NETLINK_ROUTE, 1 << 16, first)
    with Ports(Random(7)).open() as another, Ports(Random(8)).open() as other:
        assert another.port == first + 1
        assert other.port >> 8 != first >> 8
    taken.close()
