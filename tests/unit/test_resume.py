"""With packets waiting in kept descriptors: does the agent begin by what it kept on disk, and does etcd have the last word?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from backends.udp import Udp
from flannelpy.core.backend import Backend, FdStore, Local
from flannelpy.core.model import Lease
from flannelpy.core.objects import Key, Link
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.host import view_file
from flannelpy.kernel.fake import FakeKernel
from flannelpy.registry import Snapshot, StoredConfig
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from tests.unit.agents import PREFIX, TIMEOUTS, VXLAN, HostInMemory, until, vxlan_value

UDP: dict[str, object] = {"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0", "Backend": {"Type": "udp", "Engine": "pump"}}
VXLAN_ROUTE = "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"
UDP_PEER = '{"PublicIP":"192.0.2.9","PublicIPv6":null}'


class ShelfInMemory:
    """What systemd would have kept, by name only."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.on_drop: Callable[[], None] = lambda: None

    def take(self, name: str) -> int | None:
        return None

    def keep(self, name: str, fd: int) -> None:
        self.names = (*self.names, name)

    async def drop(self, *names: str) -> None:
        if names:
            self.on_drop()
        self.names = tuple(name for name in self.names if name not in names)


class GatedRegistry(MemoryRegistry):
    """An etcd that takes its time: no question is answered until the gate is open."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.gate = asyncio.Event()
        self.asked = 0

    async def config(self) -> StoredConfig:
        await self._opened()
        return await super().config()

    async def snapshot(self) -> Snapshot:
        await self._opened()
        return await super().snapshot()

    async def _opened(self) -> None:
        self.asked += 1
        await self.gate.wait()


class PumpInMemory:
    """A pump that opens a device and remembers what it was told."""

    made: list[PumpInMemory]

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self.running = False
        self.peers: dict[str, Lease] = {}

    async def open(self, fd_store: FdStore) -> None:
        if self._kernel.get(Key("link", "flannel0")) is None:
            self._kernel.plant(Link("flannel0", "tun", mtu=1472, up=True))
        if not fd_store.names:
            fd_store.keep("udp-tun-0", 0)

    def update(self, peers: Mapping[str, Lease | None]) -> None:
        for key, lease in peers.items():
            self.peers.pop(key, None) if lease is None else self.peers.update({key: lease})

    def adopt(self, local: Local, backend: Backend | None = None) -> bool:
        return True

    async def run(self) -> None:
        self.running = True
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        self.running = False


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    """A host that has run the udp backend before, beside one peer; its descriptors were kept."""
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(UDP)
    made.put_peer("10.5.9.0-24", UDP_PEER)
    PumpInMemory.made = []

    def datapath(self: Udp, local: Local) -> PumpInMemory | None:
        if self.engine == "kernel":
            return None
        PumpInMemory.made.append(PumpInMemory(made.kernel))
        return PumpInMemory.made[-1]

    monkeypatch.setattr(Udp, "datapath", datapath)
    return made


async def first_life(host: HostInMemory) -> str:
    """Come up and go down; the lease."""
    host.fd_store = ShelfInMemory()
    async with host.run():
        await until(lambda: view_file.read(host.settings.state_dir, PREFIX) is not None)
        lease = host.lease
    PumpInMemory.made.clear()
    host.notes.sent.clear()
    return lease


async def some_turns() -> None:
    """Let everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


def gate(host: HostInMemory, offline_s: float = 60.0) -> GatedRegistry:
    """From now on etcd takes its time."""
    host.registry = made = GatedRegistry(host.store)
    host.timeouts = replace(TIMEOUTS, offline_s=offline_s)
    return made


async def test_packets_move_before_etcd_has_answered_and_ready_is_said_after(host: HostInMemory) -> None:
    lease = await first_life(host)
    assert host.fd_store.names == ("udp-tun-0",)
    registry = gate(host)
    async with host.run(ready=False):
        await until(lambda: PumpInMemory.made and PumpInMemory.made[0].running)
        await until(lambda: registry.asked)
        assert [str(peer.subnet) for peer in PumpInMemory.made[0].peers.values()] == ["10.5.9.0/24"]
        await until(lambda: host.holds("route 10.5.0.0/16 dev flannel0"))
        await some_turns()
        assert not host.ready
        assert "READY=1" not in host.notes.sent
        registry.gate.set()
        await until(lambda: host.ready)
        assert "READY=1" in host.notes.sent
        assert host.conditions() == {}
        assert host.lease == lease
        assert len(PumpInMemory.made) == 1  # the one that began goes on


async def test_an_etcd_that_stays_silent_is_done_without_as_at_any_start(host: HostInMemory) -> None:
    await first_life(host)
    registry = gate(host, offline_s=0.02)
    async with host.run():
        assert "view-stale" in host.conditions()
        assert PumpInMemory.made[0].running
        registry.gate.set()
        await until(lambda: host.conditions() == {})


async def test_where_nothing_was_kept_etcd_is_asked_first(host: HostInMemory) -> None:
    await first_life(host)
    host.fd_store = ShelfInMemory()
    registry = gate(host)
    async with host.run(ready=False):
        await until(lambda: registry.asked)
        await some_turns()
        assert PumpInMemory.made == []
        registry.gate.set()
        await until(lambda: host.ready)


async def test_peers_that_came_and_went_meanwhile_are_put_right(host: HostInMemory) -> None:
    host.put_peer("10.5.10.0-24", UDP_PEER.replace("2.9", "2.10"))
    await first_life(host)
    registry = gate(host)
    host.delete("10.5.10.0-24")
    host.put_peer("10.5.11.0-24", UDP_PEER.replace("2.9", "2.11"))
    async with host.run(ready=False):
        await until(lambda: PumpInMemory.made and PumpInMemory.made[0].running)
        pump = PumpInMemory.made[0]
        assert sorted(str(peer.subnet) for peer in pump.peers.values()) == ["10.5.10.0/24", "10.5.9.0/24"]
        registry.gate.set()
        await until(lambda: sorted(str(peer.subnet) for peer in pump.peers.values()) == ["10.5.11.0/24", "10.5.9.0/24"])


async def test_a_config_of_another_backend_is_followed_and_what_was_kept_is_dropped(host: HostInMemory) -> None:
    lease = await first_life(host)
    registry = gate(host)
    host.put_config(VXLAN)
    async with host.run(ready=False):
        await until(lambda: PumpInMemory.made and PumpInMemory.made[0].running)
        assert "READY=1" not in host.notes.sent
        registry.gate.set()
        await until(lambda: host.ready)
        await until(lambda: host.kernel.get(Key("link", "flannel.1")))
        host.put_peer("10.5.9.0-24", '{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:09"}}')
        await until(lambda: host.fd_store.names == ())  # once nobody sends by it any more
        assert not PumpInMemory.made[0].running
        assert host.lease == lease


async def test_a_host_with_another_address_goes_on_with_what_it_kept_and_takes_its_lease_over(host: HostInMemory) -> None:
    lease = await first_life(host)
    registry = gate(host)
    host.kernel.set_interface(Interface("eth1", 2, 1500, True, (InterfaceAddress(IPAddress("192.0.2.77"), 24),)))
    async with host.run(ready=False):
        await until(lambda: PumpInMemory.made and PumpInMemory.made[0].running)
        registry.gate.set()
        await until(lambda: host.ready)
        assert host.lease == lease
        await until(lambda: host.published()[lease] == "192.0.2.77")


async def test_an_old_view_takes_nothing_away_that_it_does_not_know(host: HostInMemory) -> None:
    """Killed before the newest peer was written down; another backend, whose peers are in the kernel."""
    host.put_config(VXLAN)
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    host.fd_store = ShelfInMemory()
    async with host.run():
        await until(lambda: host.holds(VXLAN_ROUTE))
    kept = view_file.read(host.settings.state_dir, PREFIX)
    assert kept is not None
    older = [lease for lease in kept.leases if lease.subnet != IPNetwork("10.5.9.0/24")]
    view_file.write(host.settings.state_dir, replace(kept, leases=tuple(older), revision=kept.revision - 1))
    host.fd_store = ShelfInMemory("somebody's")
    registry = gate(host)
    steps = len(host.kernel.applied)
    async with host.run(ready=False):
        await until(lambda: registry.asked)
        await until(lambda: host.kernel.calls["observe"] > 0)
        await some_turns()
        assert host.holds(VXLAN_ROUTE)
        registry.gate.set()
        await until(lambda: host.ready)
        assert host.holds(VXLAN_ROUTE)
    assert [str(step) for step in host.kernel.applied[steps:] if step.op == "remove"] == []


async def test_an_engine_that_is_the_kernels_now_gets_the_port(host: HostInMemory) -> None:
    """fou was not there at the first start; auto takes it when it is."""
    host.put_config({**UDP, "Backend": {"Type": "udp"}})
    host.kernel.unknown = {"fou"}
    await first_life(host)
    assert host.fd_store.names == ("udp-tun-0",)
    host.kernel.unknown = set()
    host.kernel.take(Key("link", "flannel0"))  # as it goes with its last descriptor
    tried: list[bool] = []
    fd_store = host.fd_store = ShelfInMemory(*host.fd_store.names)
    fd_store.on_drop = lambda: tried.append(host.kernel.get(Key("fou", "8285")) is not None)
    async with host.run():
        assert tried == [False]  # before the kernel was asked for the port that a kept socket has
        assert fd_store.names == ()
        assert host.kernel.get(Key("fou", "8285")) is not None


async def test_who_gives_its_lease_back_keeps_nothing(host: HostInMemory) -> None:
    host.settings = replace(host.settings, release_on_exit=True)
    await first_life(host)
    assert host.fd_store.names == ()


async def test_what_a_datapath_does_not_expect_costs_only_itself(host: HostInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported, and another one is opened; the agent goes on."""
    broken = [True]

    async def run(self: PumpInMemory) -> None:
        if broken:
            broken.clear()
            raise ZeroDivisionError
        self.running = True
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(PumpInMemory, "run", run)
    async with host.run(ready=False):
        await until(lambda: "task-failed datapath" in host.conditions())
        await until(lambda: any(pump.running and pump.peers for pump in PumpInMemory.made))
        assert not host.over
        assert host.ready
