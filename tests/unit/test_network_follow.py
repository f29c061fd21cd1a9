"""Does a host follow what changes around it without asking more than it needs, and without forgetting who it is? In memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from netaddr import IPAddress

from flannelpy.core.objects import Key
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory import MemoryStore

from .agents import VXLAN, HostInMemory, until, vxlan_value

DIRECT: dict[str, object] = {**VXLAN, "Backend": {"Type": "vxlan", "DirectRouting": True}}
V6: dict[str, object] = {
    "EnableIPv4": False,
    "EnableIPv6": True,
    "IPv6Network": "fd00:5::/48",
    "Backend": {"Type": "vxlan"},
}
DUAL: dict[str, object] = {**VXLAN, "EnableIPv6": True, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


def mac(host: HostInMemory) -> str:
    found: str = json.loads(host.value(host.lease))["BackendData"]["VtepMAC"]
    return found


def dual_eth1(mtu: int) -> Interface:
    held = (InterfaceAddress(IPAddress("192.0.2.1"), 24), InterfaceAddress(IPAddress("2001:db8::1"), 64))
    return Interface("eth1", 2, mtu, True, held, "52:54:00:00:00:01")


async def test_containers_that_come_and_go_ask_for_no_peers_route_again(host: HostInMemory) -> None:
    """DirectRouting: who is reached without a gateway is asked once a peer, and again where routes have changed."""
    host.put_config(DIRECT)
    for number in range(10, 60):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:00:{number}"))
    async with host.run():
        await until(lambda: host.holds("route 10.5.59.0/24 via 192.0.2.59 dev eth1"))
        await until(lambda: host.settled)
        asked, steps = host.kernel.calls["route_to"], len(host.kernel.applied)
        assert asked <= 51, "a question a peer"
        for number in range(100):
            host.kernel.set_interface(Interface(f"veth{number}", 100 + number, 1500))
            await asyncio.sleep(0)
        host.put_peer("10.5.60.0-24", vxlan_value("192.0.2.60", "02:00:00:00:00:60"))
        await until(lambda: host.holds("route 10.5.60.0/24 via 192.0.2.60 dev eth1"))
        assert host.kernel.calls["route_to"] - asked == 1, "for the peer that came"
        assert len(host.kernel.applied) - steps <= 5


@pytest.mark.parametrize("way", [("host-gw",), ("host-gw", "alloc"), ("alloc", "host-gw")])
async def test_a_mac_is_the_same_after_other_backends(host: HostInMemory, way: tuple[str, ...]) -> None:
    """Also over restarts meanwhile, while no device of ours has one."""
    async with host.run():
        lease, before = host.lease, mac(host)
    for kind in way:
        host.put_config({**VXLAN, "Backend": {"Type": kind}})
        async with host.run():
            await until(lambda: host.kernel.get(Key("link", "flannel.1")) is None)
            await until(lambda: "VtepMAC" not in host.value(host.lease))
            await until(lambda: host.settled)
    host.put_config(VXLAN)
    async with host.run():
        await until(lambda: host.kernel.get(Key("link", "flannel.1")))
        await until(lambda: "VtepMAC" in host.value(host.lease))  # which the lease says once the kernel has it
        assert (host.lease, mac(host)) == (lease, before)


@pytest.mark.parametrize("running", [False, True])
async def test_a_host_whose_mtu_is_too_small_for_the_network_is_mended_on_the_host(host: HostInMemory, running: bool) -> None:
    """The config is right, this host's link is not: nobody has to write the config anew."""
    host.put_config(DUAL)
    good, small = dual_eth1(1500), dual_eth1(1280)
    host.kernel.set_interface(good if running else small)
    async with host.run(ready=running):
        code = "config-changed" if running else "config-unusable"
        host.kernel.set_interface(small)
        await until(lambda: code in host.conditions())
        assert "MTU 1280 of the underlay leaves 1210 bytes for IPv6" in host.conditions()[code]
        host.kernel.set_interface(good)
        await until(lambda: host.ready and host.conditions() == {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "pigeon"}}', "nobody provides it"),
        ('{"Network": "127.0.0.0/8"}', "127.0.0.0/8"),
        (None, "is missing"),
    ],
)
async def test_a_config_that_cannot_be_used_is_told_until_there_is_one_that_can(
    host: HostInMemory, text: str | None, why: str
) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: host.holds("route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"))
        lease, held = host.lease, host.state()
        if text is None:
            host.store.delete("/coreos.com/network/config")
        else:
            host.put_config(text)
        await until(lambda: "config-changed" in host.conditions())
        said = host.conditions()["config-changed"]
        assert why in said
        assert said.endswith("; going on with the one before")
        assert host.ready
        assert (host.lease, host.state()) == (lease, held)
        host.put_config(VXLAN)
        await until(lambda: host.conditions() == {})


async def test_what_went_while_notifications_were_lost_is_put_back(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: host.holds("route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"))
        await until(lambda: host.settled)
        key = Key("route", "10.5.9.0/24")
        del host.kernel._routes[key]  # nobody is told of what goes from here
        assert host.kernel.get(key) is None
        host.kernel.overflow()
        await until(lambda: host.kernel.get(key) is not None)
        await until(lambda: host.conditions() == {})


def eth1_at(*addresses: str) -> Interface:
    held = tuple(InterfaceAddress(IPAddress(each), 24 if "." in each else 64) for each in addresses)
    return Interface("eth1", 2, 1500, True, held, "52:54:00:00:00:01")


@pytest.mark.parametrize(
    ("config", "before", "after", "said"),
    [
        (VXLAN, ("192.0.2.1",), ("192.0.2.2",), "at 192.0.2.2: peers reach us there now, it was 192.0.2.1"),
        (V6, ("2001:db8::1",), ("2001:db8::2",), "at 2001:db8::2: peers reach us there now, it was 2001:db8::1"),
        (DUAL, ("192.0.2.1", "2001:db8::1"), ("192.0.2.2", "2001:db8::1"), "peers reach us there now, it was 192.0.2.1"),
        (DUAL, ("192.0.2.1", "2001:db8::1"), ("192.0.2.1", "2001:db8::2"), "reach us at 2001:db8::2, too, it was 2001:db8::1"),
    ],
    ids=["4", "6", "46, IPv4's", "46, IPv6's"],
)
async def test_another_address_of_the_host_is_an_event_by_whatever_family(
    tmp_path: Path, config: dict[str, object], before: tuple[str, ...], after: tuple[str, ...], said: str
) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.kernel.set_interface(eth1_at(*before))
    host.put_config(config)
    async with host.run():
        assert host.agent is not None
        agent = host.agent
        host.kernel.set_interface(eth1_at(*after))
        await until(lambda: said in str([event.text for event in agent.events.read().events if event.kind == "lease"]))
        assert "0.0.0.0" not in str([event.text for event in agent.events.read().events])
