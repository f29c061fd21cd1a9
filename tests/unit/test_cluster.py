"""Does a watch that lags behind a listing say nothing that the listing has overtaken?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flannelpy.agent.cluster import Cluster
from flannelpy.core.errors import WatchGapError
from flannelpy.registry import Batch, ConfigChanged, Deleted, Malformed, Snapshot
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value
from tests.unit.virtual_time import run as run_virtually


async def test_a_malformed_key_that_is_gone_by_the_listing_is_no_condition(tmp_path: Path) -> None:
    """A host that was cut off: it lists what there is, and only then hears of a key that came and went meanwhile."""
    store = MemoryStore()
    host = HostInMemory(store, tmp_path)
    host.put_config(VXLAN)
    context = host.context()
    cluster = Cluster(context, lambda: None)
    came = store.put(f"{PREFIX}/subnets/junk", "{").mod_revision
    store.delete(f"{PREFIX}/subnets/junk")
    await cluster.refresh()
    cluster._take(Malformed("junk", "no subnet key", came), came)
    cluster._take(Deleted("junk", came + 1), came + 1)
    assert list(context.reporter.health) == []
    # One that comes after the listing is told, until it goes.
    cluster._take(Malformed("junk", "no subnet key", store.revision + 1), store.revision + 1)
    assert context.reporter.health.holds("lease-malformed")
    cluster._take(Deleted("junk", store.revision + 2), store.revision + 2)
    assert list(context.reporter.health) == []


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("late", [1, 2])
async def test_a_watch_that_is_behind_what_was_read_does_not_bring_an_older_config_back(
    tmp_path: Path, late: int, ahead: int
) -> None:
    """It says at which revision etcd is, which may be far ahead of what it tells of."""
    store = MemoryStore()
    host = HostInMemory(store, tmp_path)
    woken: list[str | None] = []
    cluster = Cluster(host.context(), lambda: woken.append(cluster.config_text))
    written = [store.put(f"{PREFIX}/config", str(number)).mod_revision for number in range(3)]
    await cluster._list()
    assert cluster.config_text == "2"
    for number in range(late):
        cluster._take(ConfigChanged(str(number), written[number]), written[-1] + ahead)
    assert cluster.config_text == "2"
    newer = store.put(f"{PREFIX}/config", "3").mod_revision
    cluster._take(ConfigChanged("3", newer), newer + ahead)
    assert cluster.config_text == "3"
    # After a restore revisions begin anew.
    store.lose_data()
    cluster._take(ConfigChanged("4", store.put(f"{PREFIX}/config", "4").mod_revision), store.revision)
    await cluster._list()
    assert cluster.config_text == "4"
    assert woken == ["2", "3", "4"]


class Gappy(MemoryRegistry):
    """Every watch has a gap soon: etcd is compacted all the time. ``stands`` is for how long each stands before, or None where it
    does not even say that it stands. Counts the listings.
    """

    def __init__(self, store: MemoryStore, stands: float | None) -> None:
        super().__init__(store)
        self.stands = stands
        self.listings = 0

    async def snapshot(self) -> Snapshot:
        self.listings += 1
        return await super().snapshot()

    async def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        if self.stands is not None:
            yield Batch((), from_revision, connected=True)
            yield Batch((ConfigChanged(str(self.listings)),), from_revision)
            await asyncio.sleep(self.stands)
        raise WatchGapError(f"revision {from_revision} has been compacted")


@pytest.mark.parametrize("stands", [None, 0.0, 0.1])
@pytest.mark.parametrize("peers", [0, 3, 1000])
def test_where_each_watch_has_a_gap_listings_have_pauses(tmp_path: Path, peers: int, stands: float | None) -> None:
    async def follow() -> int:
        host = HostInMemory(MemoryStore(), tmp_path)
        for number in range(peers):
            host.put_peer(f"10.{5 + number // 256}.{number % 256}.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
        registry = Gappy(host.store, stands)
        cluster = Cluster(host.context(registry), lambda: None)
        task = asyncio.create_task(cluster.follow())
        await asyncio.sleep(60.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return registry.listings

    assert 5 <= run_virtually(follow()) <= 70, "one a second, but for the first few"


class Counting(MemoryRegistry):
    """Counts the listings."""

    listings = 0

    async def snapshot(self) -> Snapshot:
        self.listings += 1
        return await super().snapshot()


async def followed(store: MemoryStore, folder: Path) -> tuple[Counting, Cluster, asyncio.Task[None]]:
    host = HostInMemory(store, folder)
    host.put_config(VXLAN)
    for number in (2, 3):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:00:0{number}"))
    registry = Counting(store)
    cluster = Cluster(host.context(registry), lambda: None)
    task = asyncio.create_task(cluster.follow())
    await cluster.listed.wait()
    return registry, cluster, task


async def test_whoever_asks_first_has_the_listing_that_the_agent_began_with(tmp_path: Path) -> None:
    registry, cluster, task = await followed(MemoryStore(), tmp_path)
    assert {lease.key for lease in (await cluster.refresh()).leases} == {"10.5.2.0-24", "10.5.3.0-24"}
    assert registry.listings == 1
    await cluster.refresh()
    assert registry.listings == 2, "once only: whoever asks again has lost a race, and wants to know to whom"
    task.cancel()


async def test_a_first_listing_that_is_overtaken_is_read_again(tmp_path: Path) -> None:
    store = MemoryStore()
    registry, cluster, task = await followed(store, tmp_path)
    store.put(f"{PREFIX}/subnets/10.5.4.0-24", vxlan_value("192.0.2.4", "02:00:00:00:00:04"))
    cluster.revision = store.revision  # as the watch would have told it
    assert "10.5.4.0-24" in {lease.key for lease in (await cluster.refresh()).leases}
    assert registry.listings == 2
    task.cancel()


async def test_what_is_listed_again_is_not_held_twice(tmp_path: Path) -> None:
    store = MemoryStore()
    registry, cluster, task = await followed(store, tmp_path)
    before = dict(cluster.view.leases)
    store.put(f"{PREFIX}/subnets/10.5.3.0-24", store.records[f"{PREFIX}/subnets/10.5.3.0-24".encode()].value)  # a daily renewal
    await cluster.refresh()
    await cluster.refresh()
    assert registry.listings == 2
    same, renewed = cluster.view.leases["10.5.2.0-24"], cluster.view.leases["10.5.3.0-24"]
    assert same is before["10.5.2.0-24"]
    assert renewed.mod_revision > before["10.5.3.0-24"].mod_revision
    assert renewed.attrs is before["10.5.3.0-24"].attrs
    task.cancel()


@pytest.mark.parametrize("value", ["{junk", "[]", '{"PublicIP": 7}', ""])
@pytest.mark.parametrize("lists", [1, 2])
async def test_a_peer_whose_value_cannot_be_read_stays_by_the_watch_and_by_a_listing(
    tmp_path: Path, value: str, lists: int
) -> None:
    """Nobody has said that it is gone; when its key goes, it is."""
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    host.put_peer("10.5.2.0-24", vxlan_value("192.0.2.2", "02:00:00:00:00:02"))
    host.put_peer("10.5.3.0-24", vxlan_value("192.0.2.3", "02:00:00:00:00:03"))
    route, other = (f"route 10.5.{number}.0/24 via 10.5.{number}.0 dev flannel.1 onlink" for number in (2, 3))
    async with host.run():
        await until(lambda: host.holds(route) and host.holds(other))
        assert host.agent is not None
        assert host.agent._network is not None
        cluster = host.agent._network.cluster
        host.put_peer("10.5.2.0-24", value)
        await until(lambda: "lease-malformed" in str(host.conditions()))
        for _ in range(lists):
            cluster.doubt()
            before = cluster._last.floor
            host.store.put(f"{PREFIX}/subnets/10.5.4.0-24", "{")
            host.store.delete(f"{PREFIX}/subnets/10.5.4.0-24")
            await until(lambda before=before: cluster._last.floor > before)  # type: ignore[misc]
        assert cluster.departures.kept == {}
        assert host.holds(route)
        host.store.delete(f"{PREFIX}/subnets/10.5.2.0-24")
        await until(lambda: not host.holds(route))
        assert host.holds(other)
