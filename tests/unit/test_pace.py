"""Do hosts leave each other, and etcd, time enough, however many they are? And do few of them wait for nothing?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress

from flannelpy.agent.context import Timeouts
from flannelpy.agent.facts import Facts
from flannelpy.agent.offers import FIRST_RETRY_S
from flannelpy.agent.surroundings import UNKNOWN_S, Surroundings
from flannelpy.core.model import Lease
from flannelpy.core.pace import between_listings_s, spread_s
from flannelpy.registry import Offered, Snapshot
from flannelpy.registry.etcd.registry import FEW
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, vxlan_value
from tests.unit.virtual_time import run

SENT_US, CORES = 13.0, 8.0
"""What a change takes etcd for each host that watches, in microseconds, and what its members have for it."""
ASKED_US, COUNTED_US = 150.0, 0.3
"""What a question about an etcd lease takes its members, and what one takes in a list of all (measured: 100 and 0.25)."""
LISTED_US = 2.0
"""What a lease in a listing takes it."""


@pytest.mark.parametrize(
    ("hosts", "seconds"), [(0, 0.0), (1, 0.006), (3, 0.018), (500, 3.0), (1_000, 6.0), (2_000, 24.0), (10_000, 600.0)]
)
def test_what_all_hosts_do_at_one_event_is_spread(hosts: int, seconds: float) -> None:
    assert spread_s(hosts, 6.0) == pytest.approx(seconds)


@given(st.integers(1_000, 50_000))
def test_etcd_keeps_up_with_what_all_hosts_write_at_one_event(hosts: int) -> None:
    assert hosts * hosts * SENT_US / 1e6 <= spread_s(hosts, 6.0) * CORES


@given(st.integers(1, 50_000))
def test_etcd_keeps_up_with_what_all_hosts_ask_when_some_leave(hosts: int) -> None:
    """However many leave together: each host asks about a few, or has all counted."""
    each_us = max(FEW * ASKED_US, COUNTED_US * hosts)
    assert hosts * each_us / 1e6 <= spread_s(hosts, Timeouts().asked_s) * CORES


@given(st.integers(1, 10_000))
def test_that_somebody_left_is_known_soon(hosts: int) -> None:
    assert Timeouts().departure_s + spread_s(hosts, Timeouts().asked_s) <= 8.0


@given(st.integers(1, 50_000))
def test_listings_take_etcd_a_small_share(hosts: int) -> None:
    assert hosts * hosts * LISTED_US / 1e6 / between_listings_s(hosts, 300.0) <= 0.007 * max(1.0, hosts / 1_000)


@pytest.mark.parametrize(("hosts", "least", "most"), [(3, 240.0, 300.0), (1_000, 240.0, 300.0), (10_000, 2_400.0, 3_000.0)])
async def test_a_host_waits_by_chance_within_that(hosts: int, least: float, most: float, tmp_path: Path) -> None:
    context = replace(HostInMemory(MemoryStore(), tmp_path).context(), timeouts=Timeouts())
    waits = [context.relist_after(hosts) for _ in range(200)]
    assert least <= min(waits) < max(waits) <= most
    spread = [context.spread(hosts) for _ in range(200)]
    assert max(spread) <= spread_s(hosts, context.timeouts.spread_s)
    assert len({*spread}) > 150


async def listed_after_a_cut(folder: Path, monkeypatch: pytest.MonkeyPatch, *, reserved: bool) -> list[list[float]]:
    """When a host lists the leases after each of some cuts of the watch, in seconds."""
    peers, cuts = 200, 20
    host = HostInMemory(MemoryStore(), folder, probe=False)
    host.timeouts = Timeouts(relist_s=1e6)
    host.put_config(VXLAN)
    for number in range(peers):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"198.51.100.{number}", f"02:00:00:00:00:{number:02x}"))
    if reserved:
        host.put_peer("10.5.222.0-24", json.dumps({"PublicIP": "192.0.2.1"}))
    clock = asyncio.get_running_loop().time
    found: list[list[float]] = []
    async with host.run():
        await asyncio.sleep(30.0)
        listed = host.registry.snapshot

        async def snapshot() -> Snapshot:
            found[-1].append(clock() - began)
            return await listed()

        monkeypatch.setattr(host.registry, "snapshot", snapshot)
        for _ in range(cuts):
            found.append([])
            began = clock()
            host.store.drop_watches()
            await asyncio.sleep(30.0)
    return found


@pytest.mark.parametrize("reserved", [False, True])
def test_after_a_cut_each_host_lists_once_and_not_all_at_one_moment(
    reserved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that holds a reservation, too."""
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    found = run(listed_after_a_cut(tmp_path, monkeypatch, reserved=reserved))
    assert {len(each) for each in found} == {1}
    waits = sorted(each[0] for each in found)
    assert waits[-1] - waits[0] > spread_s(200, 6.0) / 2
    assert len({round(each, 3) for each in waits}) > 15


async def moved(folder: Path, number: int, peers: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, int]:
    """When a host among some takes a lease of another network, in seconds after the config; and how often it writes it."""
    host = HostInMemory(MemoryStore(), folder, number, probe=False)
    host.timeouts = Timeouts(relist_s=1e6)
    host.put_config(VXLAN)
    for peer in range(peers):
        host.put_peer(f"10.5.{peer}.0-24", vxlan_value(f"198.51.100.{peer}", f"02:00:00:00:00:{peer:02x}"))
    clock, create, taken = asyncio.get_running_loop().time, host.registry.create, list[float]()

    async def take(*args: Any, **how: Any) -> Lease:
        taken.append(clock())
        return await create(*args, **how)

    async with host.run():
        await asyncio.sleep(5.0)
        monkeypatch.setattr(host.registry, "create", take)
        began, revision = clock(), host.store.revision
        host.put_config({**VXLAN, "Network": "10.6.0.0/16", "SubnetMin": "10.6.0.0", "Backend": {"Type": "vxlan", "VNI": 7}})
        await asyncio.sleep(10.0)
        assert host.lease.startswith("10.6.")
        ours = [item for item in host.store.history if item.mod_revision > revision and b"/subnets/10.6." in item.key]
        return taken[0] - began, len(ours)


@pytest.mark.parametrize("peers", [40, 100])
def test_hosts_whose_network_is_another_now_do_not_all_take_leases_at_one_moment(
    peers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lists all there is for it, and what it writes is told to all."""
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    found = [run(moved(tmp_path, number, peers, monkeypatch)) for number in range(1, 9)]
    waits = [wait for wait, _ in found]
    assert spread_s(peers, 6.0) / 5 < max(waits) - min(waits)
    assert max(waits) < spread_s(peers, 6.0) + 0.5
    assert {writes for _, writes in found} == {1}  # with what is new in it


async def heard_after_a_cut(folder: Path, peers: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a host lists what stands beside the leases after each of some cuts of its watch, in seconds."""
    host = HostInMemory(MemoryStore(), folder, probe=False)
    host.timeouts = Timeouts(relist_s=1e6)
    host.put_config(VXLAN)
    for peer in range(peers):
        host.put_peer(f"10.5.{peer}.0-24", vxlan_value(f"198.51.100.{peer}", f"02:00:00:00:00:{peer:02x}"))
    clock, offers, found = asyncio.get_running_loop().time, host.registry.offers, list[float]()

    def listen() -> AsyncIterator[Offered]:
        found.append(clock() - began)
        return offers()

    async with host.run():
        await asyncio.sleep(5.0)
        monkeypatch.setattr(host.registry, "offers", listen)
        for _ in range(15):
            began = clock()
            host.store.drop_watches()
            await asyncio.sleep(5.0)
    return found


@pytest.mark.parametrize("peers", [3, 150])
def test_after_a_gap_not_all_hosts_list_at_one_moment_what_stands_beside_the_leases(
    peers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    found = run(heard_after_a_cut(tmp_path, peers, monkeypatch))
    assert len(found) == 15
    assert spread_s(peers, 6.0) / 2 < max(found) - min(found) <= spread_s(peers, 6.0) + FIRST_RETRY_S


@pytest.mark.parametrize("known", [True, False])
def test_hosts_that_were_switched_on_together_do_not_ask_the_resolver_together(known: bool, tmp_path: Path) -> None:
    async def scene() -> None:
        clock, asked = asyncio.get_running_loop().time, [list[float]() for _ in range(10)]

        def around(times: list[float]) -> Surroundings:
            host = HostInMemory(MemoryStore(), tmp_path)

            async def addresses() -> frozenset[IPAddress]:
                times.append(clock())
                return frozenset({IPAddress("192.0.2.7")} if known else ())

            host.registry.addresses = addresses  # type: ignore[method-assign]
            context = replace(host.context(), timeouts=Timeouts())
            return Surroundings(context, Facts(host.kernel, context.wish, context.reporter), lambda: None)

        tasks = [asyncio.create_task(around(times).run()) for times in asked]
        await asyncio.sleep(3600.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len({round(times[10], 3) for times in asked}) == 10
        longest = 300.0 if known else UNKNOWN_S
        assert all(0.799 * longest < later - sooner < 1.001 * longest for times in asked for sooner, later in pairwise(times))

    run(scene())


async def offered(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a host among 100 others writes its offer after the network has begun, and ceased, to prefer something, in seconds."""
    host = HostInMemory(MemoryStore(), folder, number, probe=False, hostname="h1")
    host.timeouts = Timeouts(relist_s=1e6)
    host.put_config(VXLAN)
    for peer in range(100):
        host.put_peer(f"10.5.{peer}.0-24", vxlan_value(f"198.51.100.{peer}", f"02:00:00:00:00:{peer:02x}"))
    clock, offer, found = asyncio.get_running_loop().time, host.registry.offer, list[float]()

    async def write(*args: Any) -> None:
        found.append(clock() - began)
        await offer(*args)

    async with host.run():
        await asyncio.sleep(5.0)
        monkeypatch.setattr(host.registry, "offer", write)
        for config in ({**VXLAN, "Backend": {"Type": "vxlan", "Prefer": ["host-gw"]}}, VXLAN):
            began = clock()
            host.put_config(config)
            await asyncio.sleep(5.0)
    return found


def test_what_all_hosts_begin_to_offer_at_one_moment_is_spread_and_what_they_take_back_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    found = [run(offered(tmp_path, number, monkeypatch)) for number in range(1, 8)]
    begun = [each[0] for each in found]
    assert spread_s(100, 6.0) / 20 < max(begun) - min(begun) <= spread_s(100, 6.0)
    assert all(len(each) == 2 and each[1] < 0.01 for each in found)
