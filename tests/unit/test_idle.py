"""What does an agent do while there is nothing that it can do? Little, and no more than that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from netaddr import IPNetwork

from flannelpy.agent.context import Timeouts
from flannelpy.agent.surroundings import ADDRESSES_S
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory, vxlan_value
from tests.unit.virtual_time import run

PEERS = 20
HOUR_S = 3600.0


async def hour_without_a_device(folder: Path, how: str) -> tuple[int, int]:
    """The device goes and cannot be made for an hour; how often something was tried, and whether all is well after it."""
    store = MemoryStore()
    host = HostInMemory(store, folder)
    host.timeouts = Timeouts()
    host.put_config(VXLAN)
    for number in range(PEERS):
        store.put(f"{PREFIX}/subnets/10.5.{number}.0-24", vxlan_value(f"192.0.2.{100 + number}", f"02:00:00:00:00:{number:02x}"))
    async with host.run():
        uplink = host.kernel.interfaces["eth1"]
        await asyncio.sleep(10)
        if how == "the uplink is away":
            host.kernel.take_interface("eth1")
        else:
            host.kernel.taken_ports.add(8472)
            host.kernel.take(next(key for key in (step.key for step in host.kernel.applied) if key.kind == "link"))
        await asyncio.sleep(10)
        before = host.kernel.calls["apply"] + host.kernel.calls["observe"]
        await asyncio.sleep(HOUR_S)
        tried = host.kernel.calls["apply"] + host.kernel.calls["observe"] - before
        if how == "the uplink is away":
            host.kernel.set_interface(uplink)
        host.kernel.taken_ports.clear()
        await asyncio.sleep(60.5)  # between two looks at what no notification tells of
        assert host.conditions() == {}
        assert host.settled
    return tried, len(host.kernel.applied)


@pytest.mark.parametrize("how", ["the uplink is away", "its port is taken"])
def test_a_device_that_cannot_be_made_is_tried_now_and_then(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every five seconds, and what lives on it with it: not at once and again what waits for it."""
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    tried, _ = run(asyncio.wait_for(hour_without_a_device(tmp_path, how), 2 * HOUR_S))
    assert tried < HOUR_S


async def ten_minutes(folder: Path, addresses: tuple[str, ...]) -> tuple[int, int]:
    """Interfaces of others come, each with one of the addresses, and go; how often the kernel was looked at, and changed."""
    host = HostInMemory(MemoryStore(), folder)
    host.timeouts = Timeouts()
    host.put_config(VXLAN)
    for number in range(PEERS):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{100 + number}", f"02:00:00:00:00:{number:02x}"))
    async with host.run():
        await asyncio.sleep(10)
        before = host.kernel.calls["observe"]
        steps = len(host.kernel.applied)
        for number in range(200):
            if addresses:
                net = IPNetwork(addresses[number % len(addresses)])
                held = (InterfaceAddress(net.ip, net.prefixlen),)
                host.kernel.set_interface(Interface(f"veth{number}", 100 + number, 1500, True, held))
            await asyncio.sleep(ADDRESSES_S)
            if addresses:
                host.kernel.take_interface(f"veth{number}")
        return host.kernel.calls["observe"] - before, len(host.kernel.applied) - steps


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(("198.18.0.1/32",), id="the same address, on ever another interface"),
        pytest.param(("198.51.100.1/24", "203.0.113.9/30"), id="networks of containers"),
        pytest.param(("2001:db8::9/64", "fe80::1/64"), id="IPv6"),
    ],
)
def test_addresses_of_containers_are_no_reason_to_look_at_all_peers(
    addresses: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    quiet, churned = (run(ten_minutes(tmp_path / name, held)) for name, held in (("quiet", ()), ("churned", addresses)))
    assert quiet[0] > 0
    assert abs(churned[0] - quiet[0]) <= 2  # a full look, whose moment is chance, may meet one that is due anyway
    assert churned[1] == quiet[1]
