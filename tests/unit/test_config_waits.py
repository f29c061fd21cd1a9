"""A config that cannot be followed yet, or not at all: does what is carried go on whole, and is the host followed meanwhile?"""

from __future__ import annotations

from contextlib import AsyncExitStack
from math import inf
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.lock import Claimant, Claims
from flannelpy.agent.making import Making
from flannelpy.core.errors import KernelError, RegistryRefusedError, RegistryUnavailableError
from flannelpy.core.objects import Key
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value

MOVED = {**VXLAN, "Network": "10.6.0.0/16", "SubnetMin": "10.6.200.0"}
PEER = "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"
V4 = {"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0", "Backend": {"Type": "vxlan"}}
DUAL = {**V4, "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}
USELESS = ("{", None, '{"Network": "10.5.0.0/16", "Backend": {"Type": "gone"}}')


async def spoil(host: HostInMemory, config: str | None) -> None:
    """The network config is no use any more, or gone."""
    if config is None:
        host.store.delete(f"{PREFIX}/config")
    else:
        host.put_config(config)
    await until(lambda: "config-changed" in host.conditions())


async def rounds(host: HostInMemory) -> None:
    """Everything was looked at several times: what would be done about it has been done."""
    assert host.agent is not None
    assert host.agent._network is not None
    for _ in range(3):
        host.agent._network.reconciler.resync()
        await host.agent._network.reconciler.after_round()


@pytest.mark.parametrize("error", [RegistryRefusedError("etcd takes no more writes"), RegistryUnavailableError("no answer")])
async def test_peers_stay_reached_until_there_is_a_lease_in_the_new_network(tmp_path: Path, error: Exception) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: host.holds(PEER))
        held = host.state()
        host.registry.fail("create", error, inf)
        host.put_config(MOVED)
        await until(lambda: "lease-lost" in host.conditions())
        await rounds(host)
        assert host.holds(PEER)
        assert host.state() == held


async def test_a_device_that_is_in_use_is_nobody_elses_while_the_next_one_waits_for_a_lease(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    async with host.run():
        await until(lambda: host.settled)
        assert "device flannel.1" in host.claims.names
        host.registry.fail("create", RegistryRefusedError("etcd takes no more writes"), inf)
        host.put_config({**MOVED, "Backend": {"Type": "vxlan", "VNI": 7}})
        await until(lambda: "lease-lost" in host.conditions())
        await rounds(host)
        assert host.holds("addr " + host.lease.replace("-24", "/32") + " dev flannel.1")
        assert {"device flannel.1", "device flannel.7"} <= host.claims.names
        host.registry.mend()
        await until(lambda: host.lease.startswith("10.6.") and host.settled)
        await until(lambda: "device flannel.1" not in host.claims.names)


async def test_what_is_kept_is_of_one_config(tmp_path: Path) -> None:
    """Another Network while etcd takes no writes, and then a restart while etcd is away: as before, from disk."""
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: host.holds(PEER) and host.settled)
        lease = host.lease
        host.registry.fail("create", RegistryRefusedError("etcd takes no more writes"), inf)
        assert host.agent is not None
        host.agent.audit()
        network = host.agent._network
        assert network is not None
        await until(lambda: not network.steering.changed.is_set())
        host.put_config(MOVED)
        await until(lambda: "lease-lost" in host.conditions())
    for call in ("snapshot", "config", "watch", "create", "renew", "keep_alive"):
        host.registry.fail(call, RegistryUnavailableError("no answer"), inf)
    host.settings.subnet_file.unlink()
    async with host.run():
        assert host.lease == lease
        await until(lambda: host.holds(PEER))


def way(host: HostInMemory, other: HostInMemory) -> str:
    return str(host.kernel.get(Key("route", other.lease.partition("&")[0].replace("-", "/"))))


async def test_hosts_without_ipv6_go_on_as_they_are_when_the_network_gets_it(tmp_path: Path) -> None:
    """They say so, keep their subnets, and reach each other as before; and they follow when they have it."""
    store = MemoryStore()
    hosts = one, two = HostInMemory(store, tmp_path, 1), HostInMemory(store, tmp_path, 2)
    one.put_config(V4)
    async with AsyncExitStack() as stack:
        for host in hosts:
            await stack.enter_async_context(host.run())
        await until(lambda: "flannel.1" in way(one, two) and "flannel.1" in way(two, one))
        leases = one.lease, two.lease
        one.put_config(DUAL)
        await until(lambda: all({"config-changed", "uplink-missing"} & set(host.conditions()) for host in hosts))
        await rounds(one)
        await rounds(two)
        assert (one.lease, two.lease) == leases
        assert sorted(one.published()) == sorted(leases)
        assert "flannel.1" in way(one, two)
        assert "flannel.1" in way(two, one)
        for number, host in enumerate(hosts, 1):
            held = (InterfaceAddress(IPAddress(f"192.0.2.{number}"), 24), InterfaceAddress(IPAddress(f"2001:db8::{number}"), 64))
            host.kernel.set_interface(Interface("eth1", 2, 1500, True, held))
        await until(lambda: all("&" in key for key in one.published()) and len(one.published()) == 2)
        await until(lambda: all(host.conditions() == {} for host in hosts))


@pytest.mark.parametrize("bad", USELESS)
async def test_another_address_is_followed_while_the_config_cannot_be_used(tmp_path: Path, bad: str | None) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    async with host.run():
        await spoil(host, bad)
        address = InterfaceAddress(IPAddress("192.0.2.77"), 24)
        host.kernel.set_interface(Interface("eth1", 2, 1500, True, (address,)))
        await until(lambda: "192.0.2.77" in host.published().values())
        assert "config-changed" in host.conditions()
        host.put_config(VXLAN)
        await until(lambda: "config-changed" not in host.conditions())


async def test_another_address_is_followed_while_another_agent_has_the_device_of_the_new_config(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    async with host.run():
        other = Claims(Claimant(), host.claims.directory)
        assert other.claim(["device flannel.7"]) is None
        host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "VNI": 7}})
        await until(lambda: "claimed" in host.conditions())
        address = InterfaceAddress(IPAddress("192.0.2.77"), 24)
        host.kernel.set_interface(Interface("eth1", 2, 1500, True, (address,)))
        await until(lambda: "192.0.2.77" in host.published().values())
        other.close()


@pytest.mark.parametrize("bad", USELESS)
@pytest.mark.parametrize("failures", [1, 3])
async def test_another_address_is_tried_again_where_the_first_try_failed(
    tmp_path: Path, bad: str | None, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    async with host.run():
        await spoil(host, bad)
        make, failed = Making.make, list[int]()

        async def failing(self: Making, *arguments: Any) -> Carriage:
            if len(failed) < failures:
                failed.append(1)
                raise KernelError("no buffer space available", 105)
            return await make(self, *arguments)

        monkeypatch.setattr(Making, "make", failing)
        address = InterfaceAddress(IPAddress("192.0.2.77"), 24)
        host.kernel.set_interface(Interface("eth1", 2, 1500, True, (address,)))
        await until(lambda: "192.0.2.77" in host.published().values())
        assert len(failed) == failures
