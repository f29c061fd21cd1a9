"""Types change while another change is under way: does nobody wait for somebody who waits for him?"""

from __future__ import annotations

import pytest
from netaddr import IPAddress

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.steering import Steering
from flannelpy.core.model import Lease
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
