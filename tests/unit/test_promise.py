"""Does a host find its lease again whose last life ended between writing its new address and keeping it?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from netaddr import IPAddress

from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory import MemoryRegistry
from flannelpy.registry.memory_store import MemoryStore
from tests.unit.agents import HostInMemory, until


class Deaf(MemoryRegistry):
    """What it renews it never answers for, from when it is told so."""

    deaf = False

    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int) -> Lease:
        renewed = await super().renew(lease, attrs, ttl_s=ttl_s)
        if self.deaf:
            await asyncio.Event().wait()
        return renewed


def eth1(address: str) -> Interface:
    return Interface("eth1", 2, 1500, True, (InterfaceAddress(IPAddress(address), 24),))


@pytest.mark.parametrize("type_", ["host-gw", "alloc", "udp", "vxlan"])
@pytest.mark.parametrize("moves", [["192.0.2.55"], ["192.0.2.55", "192.0.2.56", "192.0.2.57"]])
async def test_a_host_keeps_its_lease_whenever_its_agent_is_killed(type_: str, moves: list[str], tmp_path: Path) -> None:
    store = MemoryStore()
    host = HostInMemory(store, tmp_path)
    host.registry = registry = Deaf(store)
    host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": type_, **({"Engine": "kernel"} if type_ == "udp" else {})}})
    async with host.run():
        (key,) = host.published()
        await until(lambda: (tmp_path / "1" / "state" / "cluster.json").exists())
    for address in moves:
        registry.deaf = False
        async with host.run():
            registry.deaf = True
            host.kernel.set_interface(eth1(address))
            await until(lambda address=address: host.published() == {key: address})
    registry.deaf = False
    host.kernel.set_interface(eth1("192.0.2.99"))
    async with host.run():
        assert host.published() == {key: "192.0.2.99"}
