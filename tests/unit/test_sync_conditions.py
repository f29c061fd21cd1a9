"""Does what the loop says of the kernel begin when it is so, and end when it is not? Each of its conditions, and each alone."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.sync import reconcile
from flannelpy.agent.sync.drift import AT_ONCE, EVERY_S
from flannelpy.agent.sync.kernel_errors import PROTOCOLS, explain, in_the_way
from flannelpy.core.backend import Backend, Local, Path
from flannelpy.core.errors import KernelError
from flannelpy.core.model import Lease
from flannelpy.core.objects import Key, Route, Sysctl, XfrmPolicy
from flannelpy.core.plan import Step
from flannelpy.kernel import Notice
from flannelpy.kernel.fake import FakeKernel
from tests.unit.syncing import World, mac_of, peer

ACCEPT_RA = Sysctl("net/ipv6/conf/flannel.1/accept_ra", "0")
OWN_ADDRESS = Key("addr", "10.5.1.0/32 dev flannel.1")


class Odd:
    """A backend that raises whatever it likes for some peers."""

    def __init__(self, whole: Any, faults: dict[str, Exception]) -> None:
        self._whole = whole
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def path(self, lease: Lease, local: Local) -> Path:
        if lease.key in self._faults:
            raise self._faults[lease.key]
        found: Path = self._whole.path(lease, local)
        return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with made.alive():
        made.join(peer(2))
        await made.quiet()
        yield made


def route(number: int) -> Key:
    return Key("route", f"10.5.{number}.0/24")


async def has_route(world: World, number: int) -> bool:
    return f"route 10.5.{number}.0/24 via 10.5.{number}.0 dev flannel.1 onlink" in await world.held()


async def a_moment_later(world: World) -> None:
    """What is over is over for good: it has not come back for as long as it would take to tell of it."""
    world.clock.now += 1.0
    world.reconciler.look_at_silent()
    await world.quiet()


# ------------------------------------------------------------------------------------------------------ contested


async def test_what_is_contested_is_told_until_it_was_left_alone(world: World) -> None:
    for _ in range(AT_ONCE + 1):
        world.kernel.take(route(2))
        await world.quiet()
    assert world.conditions() == {
        f"kernel-contested {route(2)}": f"somebody else changes {route(2)} again and again; it is repaired with pauses"
    }
    assert not await has_route(world, 2)
    await world.later(EVERY_S)
    assert await has_route(world, 2)
    world.reconciler.look_at_silent()
    assert world.conditions() != {}, "it was repaired, and not yet left alone"
    world.clock.now += (AT_ONCE + 1) * EVERY_S
    world.reconciler.look_at_silent()
    assert world.conditions() == {}


def flush_addresses(kernel: FakeKernel) -> None:
    """``ip addr flush dev flannel.1``, as DHCP clients do: the last one takes routes and neighbours along without a word."""
    kernel.take(OWN_ADDRESS)


@pytest.mark.parametrize(("flush", "key"), [(flush_addresses, OWN_ADDRESS), (FakeKernel.flush_ruleset, Key("nft", "flannelpy"))])
@pytest.mark.parametrize("peers", [(), (2, 3)])
async def test_who_flushes_again_and_again_is_slowed_down_too(
    world: World, flush: Callable[[FakeKernel], None], key: Key, peers: tuple[int, ...]
) -> None:
    """Not all of what goes is told, so that everything is looked at: that is no reason to repair it without end."""
    world.join(*map(peer, peers))
    await world.quiet()
    for times in range(AT_ONCE + 1):
        flush(world.kernel)
        await world.quiet()
        assert (world.kernel.get(key) is None) == (times == AT_ONCE)
    assert f"kernel-contested {key}" in world.conditions()
    await world.later(EVERY_S)
    assert world.kernel.get(key) is not None
    await world.later((AT_ONCE + 1) * EVERY_S)
    world.reconciler.look_at_silent()
    assert world.conditions() == {}


# -------------------------------------------------------------------------------------------------------- refused


async def test_of_two_kinds_of_refusals_each_ends_by_itself(world: World) -> None:
    world.kernel.plant(Route(IPNetwork("10.5.3.0/24"), dev="eth1", proto=4))
    world.kernel.fail(route(4), errno.ENETUNREACH, times=2)
    world.join(peer(3), peer(4))
    await world.quiet()
    refused = {f"kernel-refused route {errno.EEXIST}", f"kernel-refused route {errno.ENETUNREACH}"}
    assert set(world.conditions()) == refused
    await world.later(5.0)
    await world.later(5.0)
    await a_moment_later(world)
    assert await has_route(world, 4)
    assert set(world.conditions()) == {f"kernel-refused route {errno.EEXIST}"}
    world.kernel.take(route(3))
    await world.quiet()
    assert await has_route(world, 3)
    await a_moment_later(world)
    assert world.conditions() == {}


async def test_a_setting_that_the_operator_makes_himself_is_no_refusal_any_more() -> None:
    """The remedy takes no step of ours: that it is so now has to be seen."""
    world = World()
    world.kernel.fail(ACCEPT_RA.key, errno.EROFS, times=1_000)
    async with world.alive():
        assert set(world.conditions()) == {f"kernel-refused sysctl {errno.EROFS}"}
        await a_moment_later(world)
        assert set(world.conditions()) == {f"kernel-refused sysctl {errno.EROFS}"}
        world.kernel.plant(ACCEPT_RA)
        world.reconciler.look_at_silent()
        await world.quiet()
        await a_moment_later(world)
        assert world.conditions() == {}
        assert not len(world.reconciler.retries)


@pytest.mark.parametrize(("number", "word"), [*PROTOCOLS.items(), (77, "77")])
async def test_who_is_in_the_way_is_said_as_ip_says_it_and_how_to_make_room(number: int, word: str) -> None:
    kernel, ours = FakeKernel(), Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.2"), "eth1")
    kernel.plant(Route(IPNetwork("10.5.9.0/24"), dev="eth1", proto=number))
    words = f"10.5.9.0/24 dev eth1 proto {word}"
    refused = Step("add", ours), KernelError("File exists", errno.EEXIST)
    said = await explain(*refused, (await in_the_way(kernel, [refused]))[ours.key])
    assert said == f"{words} is there and is not ours (to make room: ip route del {words})"


@pytest.mark.parametrize("numbers", [(9,), (9, 10)])
async def test_a_route_that_was_told_as_gone_and_is_there_is_no_refusal(numbers: tuple[int, ...]) -> None:
    """One beside it went, of the same destination (ip route append), or the kernel's dump had passed it by."""
    world = World()
    world.join(peer(9), peer(10))
    async with world.alive():
        told = []
        world.reporter.listeners.append(told.append)
        world.reconciler.hear(Notice({Key("route", f"10.5.{number}.0/24"): None for number in numbers}))
        await world.quiet()
        assert world.conditions() == {}
        assert told == []
        assert not len(world.reconciler.retries)
        assert all(world.reconciler.standing.in_sync(Key("route", f"10.5.{number}.0/24")) for number in numbers)


@pytest.mark.parametrize("count", [1, 7, 250])
async def test_however_many_routes_are_in_the_way_is_one_look(count: int) -> None:
    """Each would be a dump of all: of thousands, as another overlay leaves them, the loop would not turn for minutes."""
    world = World()
    leases = [peer(number + 2, at=f"198.18.0.{number + 1}") for number in range(count)]
    others = [Route(lease.subnet, IPAddress("192.0.2.9"), "eth1", proto=12) for lease in leases]
    for other in others:
        world.kernel.plant(other)
    world.join(*leases)
    async with world.alive():
        assert world.kernel.calls["routes_at"] == 1
        await world.later(5.0)
        assert world.kernel.calls["routes_at"] == 1  # it is no news
        (text,) = world.conditions().values()
        assert f"{others[0]} is there and is not ours".replace("proto 12", "proto bird") in text
        for lease, other in zip(leases, others, strict=True):
            assert str(other).replace("proto 12", "proto bird") in str(world.reconciler.standing.why_not(lease.key))


async def test_a_policy_in_the_way_is_named_with_what_removes_it() -> None:
    ours = XfrmPolicy("out", IPNetwork("10.5.72.0/24"), IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.1"), IPAddress("192.0.2.9"))
    said = await explain(Step("add", ours), KernelError("File exists", errno.EEXIST), ())
    remedy = "ip xfrm policy delete src 10.5.72.0/24 dst 10.5.9.0/24 dir out"
    assert said == f"a policy of somebody else's is there (to make room: {remedy})"


# ----------------------------------------------------------------------------------------------------- unreadable


async def test_a_kernel_that_cannot_be_read_is_told_until_it_can(world: World) -> None:
    with patch.object(reconcile, "UNREADABLE_S", 0.0):
        world.failing.fails = lambda: True
        world.failing.failed = 0
        world.reconciler.resync()
        await world.round()
        assert world.conditions() == {
            "kernel-unreadable": "the kernel's state cannot be read: netlink: Too many open files; trying again"
        }
        world.failing.fails = lambda: False
        await world.quiet()
        assert world.conditions() == {}


# ---------------------------------------------------------------------------------------------------------- peers


async def test_of_two_leases_that_claim_one_thing_the_younger_is_told_until_the_older_goes(world: World) -> None:
    world.join(peer(3, mac=mac_of(2)))
    await world.quiet()
    (said,) = world.conditions().items()
    assert said[0] == "peer-conflict 10.5.3.0-24"
    assert "10.5.3.0/24 at 192.0.2.3 claims fdb " in said[1]
    assert "which is held by 10.5.2.0/24 at 192.0.2.2" in said[1]
    assert not await has_route(world, 3)
    world.leave(peer(2))
    await world.quiet()
    assert await has_route(world, 3)
    assert world.conditions() == {}


FAULTS: list[Exception] = [ValueError("odd"), KeyError("VtepMAC"), ZeroDivisionError(), RecursionError("deep"), KernelError("no")]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.integers(2, 9), st.sampled_from(FAULTS), max_size=4))
async def test_whatever_a_backend_raises_for_a_peer_costs_that_peer_alone(faulty: dict[int, Exception]) -> None:
    world = World()
    faults = {f"10.5.{number}.0-24": fault for number, fault in faulty.items()}
    whole = world.target
    async with world.alive(replace(whole, backend=cast(Backend, Odd(whole.backend, faults)))):
        world.join(*map(peer, range(2, 10)))
        await world.quiet()
        assert [number for number in range(2, 10) if not await has_route(world, number)] == sorted(faulty)
        assert set(world.conditions()) == {f"peer-unreadable {key}" for key in faults}
        for number, fault in faulty.items():
            words = world.conditions()[f"peer-unreadable 10.5.{number}.0-24"]
            assert f"10.5.{number}.0/24 at 192.0.2.{number}: " in words
            assert str(fault) in words
        assert not world.reconciler.standing.host_failed
        world.retarget(whole)
        await world.quiet()
        assert world.conditions() == {}


async def test_one_peer_that_cannot_be_read_is_said_in_a_line(world: World) -> None:
    lease = peer(3)
    world.join(replace(lease, attrs=replace(lease.attrs, backend_data=json.loads('{"VtepMAC": "x\\u001b[2J\\ny"}'))))
    await world.quiet()
    (text,) = world.conditions().values()
    assert text.startswith("a peer's lease does not say how to reach it: 10.5.3.0/24 at 192.0.2.3: BackendData.VtepMAC ")
    assert text.isprintable()
    world.join(lease)
    await world.quiet()
    assert world.conditions() == {}
