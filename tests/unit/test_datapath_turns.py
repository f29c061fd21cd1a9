"""Types change while another change is under way: does nobody wait for somebody who waits for him?"""

from __future__ import annotations

import asyncio

import pytest
from netaddr import IPAddress

from flannelpy.agent import datapath
from flannelpy.agent.carriage import Carriage
from flannelpy.agent.steering import Steering
from flannelpy.agent.sync import retries
from flannelpy.core.backend import FdStore
from flannelpy.core.errors import BackendError
from flannelpy.core.model import Lease
from flannelpy.core.objects import Key, Link
from flannelpy.core.uplink import Interface, InterfaceAddress
from tests.unit.agents import HostInMemory, until
from tests.unit.test_resume import UDP, PumpInMemory, ShelfInMemory
from tests.unit.test_resume import host as host  # a fixture

MOVED = {**UDP, "Network": "10.6.0.0/16", "SubnetMin": "10.6.200.0"}


@pytest.mark.parametrize("backend", [{"Type": "host-gw"}, {"Type": "vxlan"}])
@pytest.mark.parametrize("mtu", [1400, None])
async def test_a_pump_that_is_wanted_again_while_it_is_let_go_comes(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch, backend: dict[str, object], mtu: int | None
) -> None:
    """At the end of a move to another Type; in that moment the uplink has another MTU, or not, and the config is put back."""
    host.fd_store = ShelfInMemory()
    swap, turned = Steering._swap, list[bool]()

    async def swapped(self: Steering, carriage: Carriage, lease: Lease) -> None:
        if carriage.backend.name == backend["Type"] and not turned:
            turned.append(True)
            if mtu is not None:
                held = (InterfaceAddress(IPAddress("192.0.2.1"), 24),)
                host.kernel.set_interface(Interface("eth1", 2, mtu, True, held))
            host.put_config(MOVED)
        await swap(self, carriage, lease)

    monkeypatch.setattr(Steering, "_swap", swapped)
    async with host.run():
        await until(lambda: bool(PumpInMemory.made) and PumpInMemory.made[-1].running)
        host.put_config({**MOVED, "Backend": backend})
        await until(lambda: bool(turned))
        assert host.agent is not None
        assert host.agent._network is not None
        network = host.agent._network
        await until(lambda: any(pump.running for pump in PumpInMemory.made[1:]) and not network.steering._lock.locked())
        await network.reconciler.after_round()
        carried = network.steering.carried
        assert carried is not None
        assert (carried[0].backend.name, carried[0].uplink.mtu) == ("udp", mtu or 1500)


@pytest.mark.parametrize("failures", [1, 3])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("mtu", [1472, 1500])
async def test_what_has_waited_for_the_device_comes_with_it(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch, failures: int, up: bool, mtu: int
) -> None:
    """Its port was taken for a while. The device is brought up and has its route as soon as it is there."""
    for name in ("FIRST_RETRY_S", "LAST_RETRY_S", "LAST_LINK_S"):
        monkeypatch.setattr(retries, name, 1000.0)
    monkeypatch.setattr(datapath, "LAST_RETRY_S", 0.01)
    freed, attempts = asyncio.Event(), list[bool]()

    async def open_later(self: PumpInMemory, _fd_store: FdStore) -> None:
        attempts.append(freed.is_set())
        if not freed.is_set() or attempts.count(True) < failures:
            raise BackendError("UDP 192.0.2.1:8285: taken")
        self._kernel.plant(Link("flannel0", "tun", mtu=mtu, up=up))

    monkeypatch.setattr(PumpInMemory, "open", open_later)
    async with host.run(ready=False):
        await until(lambda: host.agent is not None and host.agent._network is not None and host.retries)
        freed.set()
        await until(lambda: host.ready)
        assert host.kernel.get(Key("link", "flannel0")) == Link("flannel0", "tun", mtu=1472, up=True)
        assert host.holds("route 10.5.0.0/16 dev flannel0")
