"""What an agent notes of its life: who came and went, and what became of its lease, its network and its kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from netaddr import IPNetwork

from flannelpy.agent.events import Ring
from flannelpy.agent.sync.repairs import Repairs
from flannelpy.core.objects import Key, Route
from flannelpy.core.plan import Step
from flannelpy.explain.events import REPAIRED
from flannelpy.registry.memory import MemoryStore

from .agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value

ROUTE = "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


def noted(host: HostInMemory) -> list[str]:
    assert host.agent is not None
    return [event.text for event in host.agent.events.read().events]


def kinds_noted(host: HostInMemory) -> list[str]:
    assert host.agent is not None
    return [event.kind for event in host.agent.events.read().events]


async def test_peers_come_go_and_move(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: "peers at the start: 1" in noted(host))
        assert f"lease {host.lease.replace('-', '/')} at 192.0.2.1" in noted(host)
        host.put_peer("10.5.8.0-24", vxlan_value("192.0.2.8", "02:00:00:00:00:08"))
        await until(lambda: "peer 10.5.8.0/24 at 192.0.2.8 joined (vxlan)" in noted(host))
        host.put_peer("10.5.8.0-24", vxlan_value("192.0.2.88", "02:00:00:00:00:08"))
        await until(lambda: "peer 10.5.8.0/24 moved: PublicIP 192.0.2.8 -> 192.0.2.88" in noted(host))
        host.put_peer("10.5.8.0-24", '{"PublicIP":"192.0.2.88","BackendType":"udp"}')
        left = "peer 10.5.8.0/24 at 192.0.2.88 left: excluded: its backend is udp, ours is vxlan"
        await until(lambda: left in noted(host))
        # The key of one goes while its etcd lease lives on: somebody has deleted it.
        lease = host.store.grant(60)
        host.store.put(f"{PREFIX}/subnets/10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"), lease)
        host.delete("10.5.9.0-24")
        await until(lambda: "peer 10.5.9.0/24 at 192.0.2.9 left: its key was deleted" in noted(host))


async def test_a_peer_whose_lease_has_ended_says_so(host: HostInMemory) -> None:
    host.timeouts = type(host.timeouts)(departure_s=0.02, expired_s=0.02, offline_s=0.02)
    async with host.run():
        await until(lambda: "peers at the start: 0" in noted(host))
        lease = host.store.grant(60)
        host.store.put(f"{PREFIX}/subnets/10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"), lease)
        await until(lambda: host.holds(ROUTE))
        host.store.expire(f"{PREFIX}/subnets/10.5.9.0-24")
        await until(lambda: "peer 10.5.9.0/24 at 192.0.2.9 left: its lease has ended" in noted(host))


@pytest.mark.parametrize(("count", "more"), [(3, ""), (4, "1 more kernel object was"), (9, "6 more kernel objects were")])
async def test_of_many_repairs_of_one_round_the_rest_is_counted(count: int, more: str) -> None:
    ring, repairs = Ring(lambda: 0.0), Repairs()
    repairs.listener = lambda subject, text: ring.keep(REPAIRED, subject, text)
    repairs.note([Step("add", Route(IPNetwork(f"10.5.{number}.0/24"), dev="flannel.1")) for number in range(count)])
    told = [event.text for event in ring.read().events]
    assert told[:3] == [f"route add 10.5.{number}.0/24 dev flannel.1" for number in range(3)]
    assert told[3:] == ([f"{more} changed by somebody else, and repaired"] if more else [])


async def test_repairs_conditions_and_config_changes_are_noted(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: host.holds(ROUTE))
        host.kernel.take(Key("route", "10.5.9.0/24"))
        await until(lambda: ROUTE.replace("route", "route add") in noted(host))
        host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "MTU": 1400}})
        await until(lambda: any(text.endswith("Backend.MTU: absent -> 1400") for text in noted(host)))
        host.put_config("{")
        await until(lambda: any(text.startswith("the network config cannot be used: at ") for text in noted(host)))
        assert kinds_noted(host)[-1] == "condition"
        host.put_config(VXLAN)
        await until(lambda: "resolved" in kinds_noted(host))
