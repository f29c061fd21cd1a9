"""The config changes, and what follows from it takes its time: is what others read of one config, never of two?"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Mapping
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from flannelpy.agent.cluster import Cluster
from flannelpy.core.errors import RegistryRefusedError, RegistryUnavailableError
from flannelpy.core.objects import Key
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry import StoredConfig
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory, until

BACKEND = {"Backend": {"Type": "vxlan"}}
V4 = {"Network": "10.5.0.0/16", **BACKEND}
DUAL = {**V4, "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}
V6 = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:5::/48", **BACKEND}
OTHER = {**V4, "Network": "10.6.0.0/16", "SubnetMin": "10.6.200.0"}
MOVED = {**VXLAN, "Network": "10.6.0.0/16", "SubnetMin": "10.6.200.0"}


def dual_eth1() -> Interface:
    held = (InterfaceAddress(IPAddress("192.0.2.1"), 24), InterfaceAddress(IPAddress("2001:db8::1"), 64))
    return Interface("eth1", 2, 1500, True, held, "52:54:00:00:00:01")


@pytest.mark.parametrize(("before", "after"), [(a, b) for a, b in product([V4, DUAL, V6], [V4, DUAL, V6, OTHER]) if a != b])
async def test_the_subnet_file_is_of_one_config(tmp_path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Of the one that is carried, until there is a lease of the other."""
    host = HostInMemory(MemoryStore(), tmp_path)
    host.kernel.set_interface(dual_eth1())
    host.put_config(before)
    async with host.run():
        written = host.settings.subnet_file.read_text()
        host.registry.fail("create", RegistryRefusedError("etcd takes no more writes"), inf)
        host.put_config(after)
        await until(lambda: "no-lease" in str(host.conditions()) or "refuse" in str(host.conditions()))
        assert host.agent is not None
        assert host.agent._network is not None
        reconciler = host.agent._network.reconciler
        for _ in range(3):
            reconciler.resync()
            await reconciler.after_round()
            await asyncio.sleep(0.05)
        assert host.settings.subnet_file.read_text() == written
        host.registry.mend()
        await until(lambda: host.settings.subnet_file.read_text() != written)


class Slow(MemoryRegistry):
    """The answer to a read of the config is on its way until ``late`` is set."""

    late: asyncio.Event | None = None

    async def config(self) -> StoredConfig:
        stored = await super().config()
        if self.late is not None:
            await self.late.wait()
        return stored


@pytest.mark.parametrize("writes", [1, 2])
@pytest.mark.parametrize("gone", [False, True])
async def test_a_config_that_was_read_before_the_watch_told_of_another_is_not_gone_back_to(
    tmp_path: Path, writes: int, gone: bool
) -> None:
    store = MemoryStore()
    host = HostInMemory(store, tmp_path)
    host.put_config(VXLAN)
    registry = Slow(store)
    cluster = Cluster(host.context(registry), lambda: None)
    tasks = [asyncio.create_task(cluster.follow()), asyncio.create_task(cluster.relist())]
    try:
        await cluster.listed.wait()
        await asyncio.sleep(0.05)
        registry.late = asyncio.Event()
        cluster.doubt()
        await asyncio.sleep(0.1)
        newest = None
        for number in range(writes):
            newest = json.dumps({**MOVED, "SubnetMax": f"10.6.25{number}.0"})
            store.put(f"{PREFIX}/config", newest)
        if gone:
            store.delete(f"{PREFIX}/config")
            newest = None
        await until(lambda: cluster.config_text == newest)
        registry.late.set()
        await asyncio.sleep(0.2)
        assert cluster.config_text == newest
        registry.late = None
        store.put(f"{PREFIX}/config", json.dumps(VXLAN))
        await until(lambda: cluster.config_text == json.dumps(VXLAN))
        cluster.doubt()
        await asyncio.sleep(0.2)
        assert cluster.config_text == json.dumps(VXLAN)  # and a later listing counts
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("backend", [{"Type": "vxlan", "VNI": 5}, {"Type": "alloc"}, {"Type": "vxlan", "Port": 4789, "VNI": 7}])
@pytest.mark.parametrize("failures", [1, 3])
async def test_a_device_that_the_kernel_does_not_let_go_at_once_is_still_ours(
    tmp_path: Path, backend: dict[str, object], failures: int
) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    old = Key("link", "flannel.1")
    async with host.run():
        await until(lambda: host.settled and host.kernel.get(old))
        host.kernel.fail(old, errno.EBUSY, times=failures)
        host.put_config({**VXLAN, "Backend": backend})
        await until(lambda: "kernel-refused link 16" in host.conditions())
        assert "device flannel.1" in host.claims.names
        await until(lambda: host.kernel.get(old) is None)
        await until(lambda: "device flannel.1" not in host.claims.names and host.conditions() == {})


async def test_on_exit_the_lease_is_given_back_though_what_peers_offer_was_still_waited_for(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path, release_on_exit=True)
    host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "Prefer": ["host-gw"]}})
    host.registry.fail("offers", RegistryUnavailableError("no answer"), inf)
    async with host.run(ready=False):
        await until(lambda: host.published())
    assert host.published() == {}


async def test_on_exit_the_lease_of_the_new_network_is_given_back(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path, release_on_exit=True)
    host.put_config(VXLAN)
    async with host.run():
        host.put_config(MOVED)
        await until(lambda: any(key.startswith("10.6") for key in host.published()))
    assert host.published() == {}
