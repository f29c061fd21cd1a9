"""Is it said that a host's containers still use the subnet of before, and not said any more when they do not?"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent import publish
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import parse_subnet_key
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.host.subnet_env import SubnetEnv, SubnetFile
from flannelpy.registry.memory import MemoryStore

from .agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value

THIEF = vxlan_value("192.0.2.200", "02:00:00:00:02:00")
OTHER: dict[str, object] = {"Network": "10.9.0.0/16", "Backend": {"Type": "vxlan"}}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    monkeypatch.setattr(publish, "LOOK_S", 0.001)
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


def subnet(key: str) -> str:
    return key.replace("-", "/")


def bridge(host: HostInMemory, key: str) -> None:
    """Docker has made its bridge for the subnet of this key."""
    address = InterfaceAddress(IPNetwork(subnet(key))[1], 24)
    host.kernel.set_interface(Interface("docker0", 9, 1450, True, (address,)))


def said(before: str, now: str) -> str:
    return f"our subnet has changed: {subnet(now)}, it was {subnet(before)}"


async def test_a_subnet_that_changes_is_told_until_nothing_uses_the_old_one(host: HostInMemory) -> None:
    async with host.run():
        before = host.lease
        bridge(host, before)
        host.put_peer(before, THIEF)
        await until(lambda: "subnet-changed" in host.conditions())
        now = host.lease
        assert now != before
        assert host.conditions()["subnet-changed"] == said(before, now)
        bridge(host, now)  # Docker was restarted
        await until(lambda: "subnet-changed" not in host.conditions())
        assert host.ready


async def test_where_nothing_uses_the_old_subnet_there_is_nothing_to_tell(host: HostInMemory) -> None:
    async with host.run():
        before = host.lease
        host.put_peer(before, THIEF)
        await until(lambda: host.lease != before)
        host.kernel.set_interface(Interface("docker0", 9, 1450, True))
        await until(lambda: host.settled and host.ready)
        assert "subnet-changed" not in host.conditions()


@pytest.mark.parametrize("mended", ["by Docker", "by the bridge"])
async def test_a_start_with_another_subnet_tells_of_what_still_uses_the_old_one(host: HostInMemory, mended: str) -> None:
    """A config with another Network, and a restart as an operator does it: containers are cut off until Docker is restarted."""
    async with host.run():
        before = host.lease
    bridge(host, before)
    host.put_config(OTHER)
    async with host.run():
        await until(lambda: "subnet-changed" in host.conditions())
        assert host.lease.startswith("10.9.")
        assert host.conditions()["subnet-changed"] == said(before, host.lease)
        if mended == "by Docker":
            bridge(host, host.lease)
        else:
            host.kernel.take_interface("docker0")
        await until(lambda: host.conditions() == {})


@pytest.mark.parametrize("failures", [0, 1, 3, 30])
async def test_a_file_that_could_not_be_written_never_gets_an_older_subnet_than_the_last(
    host: HostInMemory, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    refused: list[str] = []
    put = SubnetFile.put

    def failing(file: SubnetFile, env: SubnetEnv) -> str | None:
        name = str(env.subnets[0])
        if name != subnet(first) and len(refused) < failures:
            refused.append(name)
            raise FlannelpyError(f"{host.settings.subnet_file}: No space left on device")
        if not written or written[-1] != name:
            written.append(name)
        return put(file, env)

    def ours() -> list[str]:
        return [key for key, at in host.published().items() if at == "192.0.2.1"]

    async with host.run():
        first = host.lease
        monkeypatch.setattr(SubnetFile, "put", failing)
        host.put_peer(first, THIEF)
        await until(lambda: ours() != [first] and ours())
        (second,) = ours()
        host.put_peer(second, THIEF.replace("2.200", "2.201").replace("02:00:00:00:02:00", "02:00:00:00:02:01"))
        await until(lambda: ours() and ours() != [second])
        await until(lambda: [host.lease] == ours())
        await until(lambda: host.ready and "subnet-file" not in host.conditions())
        assert [subnet(host.lease)] == written[-1:]
        assert len(written) == len(set(written)), "no subnet comes back"
        assert json.loads(host.value(host.lease))["PublicIP"] == "192.0.2.1"
        assert f"{PREFIX}/subnets/{host.lease}".encode() in host.store.records


async def test_a_network_of_ipv6_alone_has_no_subnet_that_could_be_another_at_a_restart(host: HostInMemory) -> None:
    addresses = tuple(InterfaceAddress(IPAddress(each), length) for each, length in (("192.0.2.1", 24), ("2001:db8::1", 64)))
    host.kernel.set_interface(Interface("eth1", 2, 1500, True, addresses))
    host.put_config({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd05::/48", "Backend": {"Type": "vxlan"}})
    async with host.run():
        key = next(key.decode() for key in host.store.records if b"/subnets/" in key)
        own = next(net for net in parse_subnet_key(key.rpartition("/")[2]) if net is not None and net.version == 6)
    host.kernel.set_interface(Interface("docker0", 9, 1430, True, (InterfaceAddress(own[1], 64),)))
    async with host.run():
        await until(lambda: host.ready)
        assert host.agent is not None
        looked = asyncio.Event()
        asyncio.get_running_loop().call_later(20 * publish.LOOK_S, looked.set)
        await looked.wait()
        assert "subnet-changed" not in host.conditions()


async def test_a_bridge_that_is_two_subnets_behind_is_told_still(tmp_path: Path) -> None:
    """Docker was not restarted, neither after the first nor after the second other subnet."""
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    async with host.run():
        first = host.lease
        held = (InterfaceAddress(IPAddress(IPNetwork(first.replace("-", "/")).first + 1), 24),)
        host.kernel.set_interface(Interface("docker0", 9, 1450, True, held, "02:42:00:00:00:01"))
        host.put_config({**VXLAN, "Network": "10.6.0.0/16", "SubnetMin": "10.6.200.0"})
        await until(lambda: host.lease.startswith("10.6."))
        await until(lambda: "subnet-changed" in host.conditions())
        host.put_config({**VXLAN, "Network": "10.7.0.0/16", "SubnetMin": "10.7.200.0"})
        await until(lambda: host.lease.startswith("10.7."))
        await asyncio.sleep(0.3)
        assert first.replace("-", "/") in host.conditions().get("subnet-changed", "")
