"""Is this host cut off by nothing that is leased? In memory: what it needs lies inside Network."""

from __future__ import annotations

from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import BOOT_PROTOCOL, Key, Route
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory import MemoryStore

from .agents import HostInMemory, until, vxlan_value

CONFIG: dict[str, object] = {"Network": "192.0.0.0/16", "SubnetMin": "192.0.200.0", "Backend": {"Type": "vxlan"}}
ETCD = IPAddress("192.0.7.9")


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.store.addresses.add(ETCD)
    made.put_config(CONFIG)
    return made


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


async def test_what_is_around_is_told_and_no_lease_covers_it(host: HostInMemory) -> None:
    (host.settings.resolver_file).write_text("nameserver 192.0.53.53\nnameserver 127.0.0.53\n")
    names = ("192.0.7.0-24", "192.0.2.0-25", "192.0.53.52-31")
    for number, name in enumerate((*names, "192.0.8.0-24")):
        host.put_peer(name, vxlan_value("192.0.2.9" if number == 3 else "192.0.2.66", mac(number)))
    async with host.run():
        await until(lambda: host.holds("route 192.0.8.0/24 via 192.0.8.0 dev flannel.1 onlink"))
        found = host.conditions()
        assert found.pop("network-overlap") == (
            "Network overlaps what this host needs outside of it: 192.0.0.0/16 and 192.0.2.0/24 on eth1, 192.0.7.9, etcd, "
            "192.0.53.53, the resolver"
        )
        assert set(found) == {f"peer-unusable {name}" for name in names}
        assert "would take 192.0.7.9, etcd into the overlay" in found["peer-unusable 192.0.7.0-24"]
        assert [line for line in host.state() if line.startswith("route")] == [
            "route 192.0.8.0/24 via 192.0.8.0 dev flannel.1 onlink"
        ]


async def test_an_address_that_comes_takes_a_route_away_and_gives_it_back(host: HostInMemory) -> None:
    host.put_peer("192.0.8.0-24", vxlan_value("192.0.2.9", mac(1)))
    async with host.run():
        key = Key("route", "192.0.8.0/24")
        await until(lambda: host.kernel.get(key))
        host.kernel.set_interface(Interface("eth2", 9, 1500, True, (InterfaceAddress(IPAddress("192.0.8.8"), 32),)))
        await until(lambda: "peer-unusable 192.0.8.0-24" in host.conditions() and not host.kernel.get(key))
        assert host.ready
        host.kernel.take_interface("eth2")
        await until(lambda: "peer-unusable 192.0.8.0-24" not in host.conditions() and host.kernel.get(key))


async def test_a_start_first_takes_away_what_covers_the_way_to_etcd(host: HostInMemory) -> None:
    """etcd is out of reach until then: from what was kept, and the same where nothing but the names of our devices was."""
    host.store.addresses.clear()
    host.put_peer("192.0.7.0-24", vxlan_value("192.0.2.66", mac(1)))
    covering = Key("route", "192.0.7.0/24")
    async with host.run():
        await until(lambda: host.kernel.get(covering))
        await until(lambda: (host.settings.state_dir / "cluster.json").exists())
    host.store.addresses.add(ETCD)  # it has moved
    host.store.stop()
    theirs = Route(IPNetwork("192.0.7.8/30"), dev="eth1", proto=BOOT_PROTOCOL)
    for kept in (True, False):
        host.kernel.plant(Route(IPNetwork("192.0.7.0/24"), IPAddress("192.0.7.0"), "flannel.1", onlink=True))
        host.kernel.plant(theirs)
        if not kept:
            (host.settings.state_dir / "cluster.json").unlink()
        async with host.run(ready=False):
            await until(lambda: host.kernel.get(covering) is None)
            assert host.kernel.get(theirs.key) == theirs
    host.store.start()
    async with host.run():
        assert host.kernel.get(covering) is None


async def test_a_subnet_of_ours_that_covers_it_is_not_ready(host: HostInMemory) -> None:
    host.store.addresses.clear()
    async with host.run():
        lease = host.lease
        host.store.addresses.add(IPNetwork(lease.replace("-", "/")).ip + 9)
        host.kernel.set_interface(Interface("eth2", 9, 1500, True, (InterfaceAddress(IPAddress("198.51.100.8"), 24),)))
        await until(lambda: any(code.startswith("subnet-overlap") for code in host.conditions()))
        assert not host.ready
