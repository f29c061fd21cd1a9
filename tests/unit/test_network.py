"""Does a host follow what changes under it, and does nothing but its owner end it? In memory: kernel, registry and files."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError, RegistryUnavailableError
from flannelpy.core.objects import Key, Route
from flannelpy.core.uplink import FactsQuery, HostFacts, Interface, InterfaceAddress
from flannelpy.kernel.fake import FakeKernel
from flannelpy.registry.memory import MemoryRegistry, MemoryStore

from .agents import VXLAN, HostInMemory, until, vxlan_value

MAC = "02:00:00:00:00:09"
PEER = "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"


def eth1(*addresses: str, index: int = 2, mtu: int = 1500, up: bool = True, name: str = "eth1") -> Interface:
    held = tuple(InterfaceAddress(IPAddress(address), 24) for address in addresses)
    return Interface(name, index, mtu, up, held, "52:54:00:00:00:01")


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    made.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    return made


def device(host: HostInMemory, name: str = "flannel.1") -> str:
    return str(host.kernel.get(Key("link", name)))


# ------------------------------------------------------------------------------------------------------ the host


async def test_another_address_is_followed_in_the_same_lease(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(PEER))
        lease, mac = host.lease, json.loads(host.value(host.lease))["BackendData"]
        host.kernel.set_interface(eth1("192.0.2.55"))
        await until(lambda: host.published()[lease] == "192.0.2.55")
        await until(lambda: "local 192.0.2.55" in device(host))
        await until(lambda: host.holds(PEER))
        assert json.loads(host.value(lease))["BackendData"] == mac
        assert host.lease == lease
        assert sorted(host.published()) == sorted([lease, "10.5.9.0-24"])
        await until(lambda: host.conditions() == {})


async def test_an_address_that_goes_before_the_next_one_comes_stops_nothing(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(PEER))
        lease = host.lease
        host.kernel.set_interface(eth1())
        await until(lambda: "uplink-missing" in host.conditions())
        assert not host.ready
        assert host.holds(PEER)
        host.kernel.set_interface(eth1("192.0.2.56"))
        await until(lambda: host.published()[lease] == "192.0.2.56")
        await until(lambda: host.ready and host.conditions() == {})


async def test_a_second_address_changes_nothing_whichever_comes_first(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(PEER))
        steps = len(host.kernel.applied)
        host.kernel.set_interface(eth1("192.0.2.100", "192.0.2.1"))
        host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        assert host.published()[host.lease] == "192.0.2.1"
        assert len(host.kernel.applied) - steps == 5


@pytest.mark.parametrize("mtu", [1400, 9000])
async def test_the_mtu_of_the_uplink_is_followed_down_to_the_subnet_file(host: HostInMemory, mtu: int) -> None:
    async with host.run():
        await until(lambda: host.holds(PEER))
        host.kernel.set_interface(eth1("192.0.2.1", mtu=mtu))
        await until(lambda: f"mtu {mtu - 50}" in device(host))
        await until(lambda: f"FLANNEL_MTU={mtu - 50}" in host.settings.subnet_file.read_text())


async def test_an_mtu_that_the_uplink_does_not_carry_is_clamped_and_told(host: HostInMemory) -> None:
    host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "MTU": 9000}})
    async with host.run():
        assert "mtu 1450" in device(host)
        assert host.conditions()["mtu-clamped"] == (
            "the MTU is smaller than the network config asks for: Backend.MTU 9000, but eth1 carries 1500;"
            " the overlay has 1450 here"
        )
        host.kernel.set_interface(eth1("192.0.2.1", mtu=9000))
        await until(lambda: host.conditions() == {})
        await until(lambda: "mtu 8950" in device(host))


async def test_a_host_without_its_interface_waits_for_it(host: HostInMemory) -> None:
    there = host.kernel.interfaces.pop("eth1")
    async with host.run(ready=False):
        await until(lambda: "uplink-missing" in host.conditions())
        host.kernel.set_interface(there)
        await until(lambda: host.ready and host.conditions() == {})


async def test_an_uplink_that_is_down_is_told_as_that(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(PEER))
        host.kernel.set_down("eth1")
        await until(lambda: "uplink-down" in host.conditions())
        assert not host.ready
        host.kernel.set_interface(eth1("192.0.2.1"))
        await until(lambda: host.ready and host.conditions() == {})


async def test_an_uplink_without_a_carrier_is_told_as_that_and_not_as_peers_that_are_silent(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(PEER))
        for running in (False, True, False):
            host.kernel.set_interface(replace(eth1("192.0.2.1"), running=running))
            if running:
                await until(lambda: host.ready and host.conditions() == {})
            else:
                await until(lambda: "uplink-down" in host.conditions())
                assert host.conditions() == {"uplink-down": "the uplink eth1 has no carrier: no packet reaches another host"}
                assert not host.ready


async def test_containers_that_come_and_go_make_nobody_look_or_try(host: HostInMemory) -> None:
    """One step fails all the time; two hundred interfaces make it fail not once more."""
    host.kernel.plant(Route(IPNetwork("10.5.9.0/24"), dev="eth1", proto=4))
    async with host.run():
        await until(lambda: "kernel-refused route 17" in host.conditions())
        looks, attempts = dict(host.kernel.calls), host.retries
        for number in range(200):
            host.kernel.set_interface(Interface(f"veth{number}", 100 + number, 1500))
            await asyncio.sleep(0)
        assert host.kernel.calls["facts"] == looks["facts"]
        assert host.retries - attempts <= 1  # its own time may have come


async def test_the_hosts_own_network_is_not_leased_by_it_and_that_is_told(host: HostInMemory) -> None:
    host.put_config({"Network": "192.0.0.0/21", "SubnetLen": 24, "Backend": {"Type": "vxlan"}})
    async with host.run():
        assert IPNetwork(host.lease.replace("-", "/")) != IPNetwork("192.0.2.0/24")
        assert host.conditions()["network-overlap"] == (
            "Network overlaps what this host needs outside of it: 192.0.0.0/21 and 192.0.2.0/24 on eth1"
        )


@pytest.mark.parametrize("turns", [0, 1, 7, 300])
async def test_no_subnet_is_chosen_before_the_hosts_own_networks_are_known(
    host: HostInMemory, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the kernel takes to tell them: of two subnets one is the uplink's."""
    ask = host.kernel.facts

    async def slow(*query: FactsQuery) -> HostFacts:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await ask(*query)

    monkeypatch.setattr(host.kernel, "facts", slow)
    host.put_config({"Network": "192.0.0.0/21", "SubnetMin": "192.0.2.0", "SubnetMax": "192.0.3.0", "Backend": {"Type": "vxlan"}})
    for _ in range(6):
        async with host.run():
            assert host.lease == "192.0.3.0-24"
        host.delete(host.lease)
        shutil.rmtree(host.settings.state_dir.parent)  # nothing prefers what it had


async def test_the_bridge_of_our_subnet_does_not_keep_us_from_it(host: HostInMemory) -> None:
    async with host.run():
        lease = host.lease
    host.delete(lease)
    bridge = InterfaceAddress(IPNetwork(lease.replace("-", "/"))[1], 24)
    host.kernel.set_interface(Interface("docker0", 9, 1450, True, (bridge,)))
    async with host.run():
        assert host.lease == lease
        assert host.conditions() == {}


# ------------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("families", ["4", "6", "46"])
async def test_a_hosts_own_lease_is_no_peer_that_cannot_be_used(
    host: HostInMemory, caplog: pytest.LogCaptureFixture, families: str
) -> None:
    """Also before it is known which one is ours: in a network of IPv6 alone it has no IPv4 address to be known by."""
    caplog.set_level(logging.INFO)
    config: dict[str, object] = {"Backend": {"Type": "vxlan"}}
    config |= {"Network": "10.5.0.0/16"} if "4" in families else {"EnableIPv4": False}
    config |= {"IPv6Network": "fc00::/48", "EnableIPv6": True} if "6" in families else {}
    host.kernel = FakeKernel([eth1("192.0.2.1", "2001:db8::1")])
    host.delete("10.5.9.0-24")
    host.put_config(config)
    for _life in range(2):
        async with host.run():
            pass
    assert sum(message.startswith("ready: ") for message in caplog.messages) == 2
    assert [message for message in caplog.messages if "cannot be used" in message] == []


async def test_a_mac_that_an_older_lease_has_is_drawn_anew(host: HostInMemory) -> None:
    async with host.run():
        mine, lease = json.loads(host.value(host.lease))["BackendData"]["VtepMAC"], host.lease
    key = "10.5.8.0-24"
    host.delete(lease)
    host.put_peer(key, vxlan_value("192.0.2.8", mine))  # a clone was faster
    async with host.run():
        await until(lambda: json.loads(host.value(host.lease))["BackendData"]["VtepMAC"] != mine)
        await until(lambda: mine not in device(host))
        await until(lambda: host.holds(f"fdb {mine} dst 192.0.2.8 dev flannel.1 self permanent"))
        await until(lambda: host.conditions() == {})


async def test_a_copied_state_directory_is_not_used(host: HostInMemory, tmp_path: Path) -> None:
    async with host.run():
        mine = json.loads(host.value(host.lease))["BackendData"]["VtepMAC"]
        file = host.settings.state_dir / "state.json"
        await until(file.exists)
    two = HostInMemory(host.store, tmp_path, 2)
    two.settings.state_dir.mkdir(parents=True)
    (two.settings.state_dir / "state.json").write_text(file.read_text().replace('"machine": "', '"machine": "another-'))
    async with two.run():
        assert two.lease != host.lease
        assert json.loads(two.value(two.lease))["BackendData"]["VtepMAC"] != mine


# ----------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    "backend", [{"Type": "vxlan", "MTU": 1400}, {"Type": "vxlan", "VNI": 5}, {"Type": "vxlan", "Port": 4789}, {"Type": "host-gw"}]
)
async def test_a_config_is_followed_in_the_same_lease(host: HostInMemory, backend: dict[str, object]) -> None:
    def value(kind: str, vni: object = 1) -> str:
        found = json.loads(vxlan_value("192.0.2.9", MAC))
        return json.dumps({**found, "BackendType": kind, "BackendData": {**found["BackendData"], "VNI": vni}})

    async with host.run():
        await until(lambda: host.holds(PEER))
        lease, record = host.lease, host.record(host.lease)
        host.put_config({**VXLAN, "Backend": backend})
        host.put_peer("10.5.9.0-24", value(str(backend["Type"]), backend.get("VNI", 1)))
        await until(lambda: any("10.5.9.0/24" in line for line in host.state() if line.startswith("route")))
        if backend["Type"] == "host-gw":
            await until(lambda: host.kernel.get(Key("link", "flannel.1")) is None)
        elif "VNI" in backend:
            await until(lambda: host.kernel.get(Key("link", "flannel.5")) and not host.kernel.get(Key("link", "flannel.1")))
        await until(lambda: host.conditions() == {})
        assert host.lease == lease
        assert host.ready
        assert host.record(lease).create_revision == record.create_revision
        await host.put_back(VXLAN, "10.5.9.0-24", value("vxlan"))
        await until(lambda: host.holds(PEER) and host.conditions() == {})


async def test_a_config_that_means_the_same_writes_nothing(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(PEER))
        record, steps = host.record(host.lease), len(host.kernel.applied)
        host.put_config({**VXLAN, "SubnetLen": 24})
        host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        assert host.record(host.lease) == record
        assert len(host.kernel.applied) - steps == 5


# ------------------------------------------------------------------------------------------ whatever fails, it lives

KERNEL_CALLS = ("facts", "route_to", "routes_at", "observe", "apply", "rehearse")


@pytest.mark.parametrize("method", KERNEL_CALLS)
async def test_a_kernel_that_fails_for_a_while_ends_nothing(host: HostInMemory, method: str) -> None:
    """During the start, and again while it runs."""
    host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "DirectRouting": True}})
    host.kernel.fail_call(method, KernelError("netlink: Too many open files", 24), times=3)
    async with host.run(ready=False):
        await until(lambda: host.ready)
        host.kernel.fail_call(method, KernelError("netlink: Too many open files", 24), times=3)
        host.kernel.take(Key("link", "flannel.1"))
        host.kernel.set_interface(eth1("192.0.2.1", mtu=1480))
        await until(lambda: "mtu 1430" in device(host))
        await until(lambda: host.conditions() == {})
        assert not host.over


REGISTRY_CALLS = ("config", "snapshot", "create", "renew", "keep_alive", "remaining", "outliving")


class Flaky(MemoryRegistry):
    """A registry whose calls fail by chance while ``rate`` says so."""

    def __init__(self, store: MemoryStore, random: Random) -> None:
        super().__init__(store)
        self.rate = 0.0
        for name in REGISTRY_CALLS:
            setattr(self, name, self._flaky(name, random))

    def _flaky(self, name: str, random: Random) -> object:
        call = getattr(MemoryRegistry, name)

        async def flaky(*words: object, **named: object) -> object:
            if random.random() < self.rate:
                raise RegistryUnavailableError(f"memory: no answer to {name}")
            return await call(self, *words, **named)

        return flaky


class FlakyKernel(FakeKernel):
    """A kernel whose calls fail by chance while ``rate`` says so."""

    def __init__(self, interfaces: list[Interface], random: Random) -> None:
        super().__init__(interfaces)
        self.rate = 0.0
        self._random = random

    def _called(self, method: str) -> None:
        if self._random.random() < self.rate:
            raise KernelError("netlink: no answer", 11)
        super()._called(method)


@pytest.mark.parametrize("seed", range(6))
async def test_failures_at_any_moment_end_nothing_and_leave_nothing(tmp_path: Path, seed: int) -> None:
    """Kernel and registry fail by chance, while peers, kernel, host and config change; then all is as after a fresh start."""
    random = Random(seed)
    host = HostInMemory(MemoryStore(), tmp_path)
    host.kernel = FlakyKernel([eth1("192.0.2.1")], random)
    host.registry = flaky = Flaky(host.store, random)
    host.put_config(VXLAN)
    flaky.rate = host.kernel.rate = 0.3
    there: dict[str, str] = {}

    def peer_comes_or_changes() -> None:
        number, version = random.randrange(10, 20), random.randrange(4)
        there[f"10.5.{number}.0-24"] = vxlan_value(f"192.0.2.{number}", f"02:00:00:00:0{version}:{number}", None)
        host.put_peer(f"10.5.{number}.0-24", there[f"10.5.{number}.0-24"])

    def peer_goes() -> None:
        if there:
            key = random.choice(sorted(there))
            del there[key]
            host.delete(key)

    def somebody_else_is_at_it() -> None:
        item = random.choice([*host.kernel.planted(), None])
        if item is not None:
            host.kernel.take(item)

    def host_changes() -> None:
        host.kernel.set_interface(eth1(f"192.0.2.{random.choice((1, 2))}", mtu=random.choice((1500, 1400))))

    def config_changes() -> None:
        backend = {"Type": "vxlan", "VNI": random.choice((1, 2)), "DirectRouting": random.random() < 0.5}
        host.put_config({**VXLAN, "Backend": backend})

    happenings = (peer_comes_or_changes, peer_goes, somebody_else_is_at_it, host_changes, config_changes)
    async with host.run(ready=False):
        for _ in range(40):
            random.choice(happenings)()
            for _ in range(random.randrange(30)):
                await asyncio.sleep(0)
        flaky.rate = host.kernel.rate = 0.0
        host.kernel.set_interface(eth1("192.0.2.3", mtu=1444))
        host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "VNI": 3}})
        await until(lambda: host.ready)
        await until(lambda: host.published().get(host.lease) == "192.0.2.3" and "mtu 1394" in device(host, "flannel.3"))
        await until(lambda: host.ready and host.conditions() == {} and host.settled)
        assert not host.over
        ours = host.programmed()
    fresh = HostInMemory(host.store, tmp_path)
    fresh.kernel = FakeKernel(list(host.kernel.interfaces.values()))
    async with fresh.run():
        await until(lambda: fresh.conditions() == {} and fresh.settled)
        assert fresh.programmed() == ours
        assert fresh.published()[fresh.lease] == "192.0.2.3"
