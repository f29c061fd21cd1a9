"""When do the neighbours hear of us? A few times after the uplink is another card, and never else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from netaddr import IPAddress

from flannelpy.agent.introduction import AFTER_S
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory_store import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, until

ETH1 = Interface("eth1", 2, 1500, True, (InterfaceAddress(IPAddress("192.0.2.1"), 24),), "52:54:00:00:00:01")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    monkeypatch.setattr("flannelpy.agent.introduction.AFTER_S", [0.01 for _ in AFTER_S])
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    made.kernel.set_interface(ETH1)
    return made


@pytest.mark.parametrize("index", [2, 7])
@pytest.mark.parametrize("mac", ["52:54:00:00:00:01", "52:54:00:00:00:02"])
async def test_another_card_is_introduced(host: HostInMemory, index: int, mac: str) -> None:
    async with host.run():
        if index != ETH1.index:
            host.kernel.take_interface("eth1")
        host.kernel.set_interface(replace(ETH1, index=index, mac=mac))
        await until(lambda: host.agent is not None and host.settled)
        if (index, mac) == (2, ETH1.mac):
            assert host.kernel.reintroduced == []
        else:
            await until(lambda: host.kernel.reintroduced == [index] * len(AFTER_S))


@pytest.mark.parametrize("change", [{"mtu": 1400}, {"addresses": (InterfaceAddress(IPAddress("192.0.2.9"), 24),)}])
async def test_another_address_or_mtu_is_none(host: HostInMemory, change: dict[str, object]) -> None:
    async with host.run():
        host.kernel.set_interface(replace(ETH1, **change))
        await until(lambda: host.published() == {host.lease: str(change.get("addresses", ETH1.addresses)[0].address)})
        await until(lambda: host.settled)
        assert host.kernel.reintroduced == []
