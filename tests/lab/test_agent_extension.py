"""extension: do the sample commands carry packets, and what does a peer whose command misbehaves cost the others?

c1 10.1.1.2 - h1 ==== routes or a vxlan device, made by packaging/extension's scripts ==== h2 - c2 10.1.2.2
                  \\=== h3 - c3 10.1.3.2
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    Log,
    lab_name,
    losing_nothing,
    no_traceback,
    put_leased,
    routes,
    settled_overlay,
    shell,
    until,
    until_said,
)
from tests.lab.agent_support import mac as mac_of

SAMPLES = Path(__file__).parents[2] / "packaging" / "extension"
HOST_GW = {"SubnetAddCommand": f"{SAMPLES}/host-gw-add", "SubnetRemoveCommand": f"{SAMPLES}/host-gw-remove"}
VXLAN = {
    "PreStartupCommand": f"{SAMPLES}/vxlan-pre",
    "PostStartupCommand": f"{SAMPLES}/vxlan-post",
    "SubnetAddCommand": f"{SAMPLES}/vxlan-add",
    "SubnetRemoveCommand": f"{SAMPLES}/vxlan-remove",
    "Overhead": 50,
}


async def met(lab: Lab) -> bool:
    """Every container reaches every other. The commands of the last peer may still run when a host is ready."""
    return all(ping.ok for ping in (await lab.matrix()).values())


def peer_value(at: str, data: str) -> str:
    return json.dumps({"PublicIP": at, "PublicIPv6": None, "BackendType": "extension", "BackendData": data})


@pytest.mark.topology(hosts=3, backend="extension", config={"Backend": HOST_GW})
async def test_routes_by_a_script(overlay: Lab) -> None:
    await until(lambda: met(overlay), 30, "every container reaches every other")
    assert "10.1.2.0/24 via 192.168.50.12 dev eth1" in await routes(overlay.host(1))
    async with losing_nothing(overlay, "c1", "c2"):
        await overlay.host(1).agent.stop()
        await overlay.host(1).start_agent()
    put_leased(overlay, f"{SUBNETS}/10.1.9.0-24", peer_value("192.168.50.90", ""))

    async def routed() -> bool:
        return "10.1.9.0/24 via 192.168.50.90 dev eth1" in await routes(overlay.host(1))

    async def unrouted() -> bool:
        return not await routes(overlay.host(1), "exact 10.1.9.0/24")

    await until(routed, 20, "the peer that came has a route")
    overlay.etcd.ctl("del", f"{SUBNETS}/10.1.9.0-24")
    await until(unrouted, 30, "the peer that went has none")
    assert (await overlay.ping("c1", "c2")).ok


@pytest.mark.topology(hosts=3, backend="extension", config={"Backend": VXLAN})
async def test_vxlan_by_a_script(overlay: Lab) -> None:
    await until(lambda: met(overlay), 30, "every container reaches every other")
    host, mac = overlay.host(1), await mac_of(overlay.host(2), "flannel-ext")
    assert json.loads(overlay.etcd.ctl("get", "--print-value-only", f"{SUBNETS}/10.1.2.0-24"))["BackendData"] == mac
    assert "10.1.2.0/24 via 10.1.2.0 dev flannel-ext onlink" in await routes(host)
    assert f"{mac} dst 192.168.50.12 self permanent" in await shell(host, "bridge fdb show dev flannel-ext")
    whole = ["ping", "-n", "-c3", "-i", "0.05", "-W2", "-M", "do", "-s", str(1450 - 28)]
    assert " 0% packet loss" in await overlay.container("c1").exec(*whole, "10.1.2.2")

    log = Log.from_now(host)
    put_leased(overlay, f"{SUBNETS}/10.1.9.0-24", peer_value("192.168.50.90", "aa:bb; reboot $(touch /pwned)"))
    await until_said(log, "10.1.9.0/24", "SubnetAddCommand failed with exit code 1: expected a MAC from the peer")
    assert await shell(host, "ls / | grep -c pwned || true") == ["0"]
    assert (await overlay.ping("c1", "c3")).ok

    async def entries() -> list[str]:
        return await shell(host, "bridge fdb show dev flannel-ext | sed -n 's/ self permanent//p'")

    put_leased(overlay, f"{SUBNETS}/10.1.9.0-24", peer_value("192.168.50.90", "02:00:00:00:00:09"))
    await until_said(log, "resolved", "10.1.9.0/24")
    # It moves to another subnet, whose first one is then another host's, and then nobody's.
    put_leased(overlay, f"{SUBNETS}/10.1.8.0-24", peer_value("192.168.50.90", "02:00:00:00:00:09"))
    put_leased(overlay, f"{SUBNETS}/10.1.9.0-24", peer_value("192.168.50.91", "02:00:00:00:00:0a"))
    both = {"02:00:00:00:00:09 dst 192.168.50.90", "02:00:00:00:00:0a dst 192.168.50.91"}

    async def apart() -> bool:
        return both <= {*await entries()} and "10.1.8.0/24 via 10.1.8.0 dev flannel-ext onlink" in await routes(host)

    await until(apart, 30, "both have their entry")
    overlay.etcd.ctl("del", f"{SUBNETS}/10.1.9.0-24")
    await until(lambda: _lacks(entries, "02:00:00:00:00:0a"), 30, "nothing is left of the one that went")
    put_leased(overlay, f"{SUBNETS}/10.1.9.0-24", peer_value("192.168.50.90", "02:00:00:00:00:09"))
    await until(lambda: _routed(host, "10.1.9.0/24"), 30, "one that has both")
    overlay.etcd.ctl("del", f"{SUBNETS}/10.1.8.0-24")
    await until(lambda: _routed(host, "10.1.8.0/24", there=False), 30, "has only the first")
    assert "02:00:00:00:00:09 dst 192.168.50.90" in await entries()
    overlay.etcd.ctl("del", f"{SUBNETS}/10.1.9.0-24")

    async def clean() -> bool:
        left = "ip route show dev flannel-ext; ip neighbour show dev flannel-ext; bridge fdb show dev flannel-ext"
        return not [line for line in await shell(host, left) if "10.1.9.0" in line or "02:00:00:00:00:09" in line]

    await until(clean, 30, "nothing is left of the peer that went")


async def _lacks(entries: Callable[[], Awaitable[list[str]]], mac: str) -> bool:
    return not any(mac in line for line in await entries())


async def _routed(host: Host, subnet: str, *, there: bool = True) -> bool:
    return bool(await routes(host, f"exact {subnet}")) is there


ROUGH = """#!/bin/sh
case $SUBNET in
10.1.21.*) echo no such thing; exit 3 ;;
10.1.22.*) sleep 1000 ;;
10.1.23.*) head -c 10000000 /dev/zero | tr '\\\\0' x ;;
esac
exec ip route replace "$SUBNET" via "$PUBLIC_IP"
"""


@pytest.mark.topology(hosts=2, backend="extension", config={"Backend": {**HOST_GW, "CommandTimeout": 2}})
async def test_a_command_that_misbehaves_costs_nobody_else_anything(overlay: Lab) -> None:
    host, rough = overlay.host(1), overlay.directory / "rough"
    rough.write_text(ROUGH)
    rough.chmod(0o755)
    await until(lambda: met(overlay), 30, "every container reaches every other")
    log = Log.from_now(host)
    config = {
        "Network": "10.1.0.0/16",
        "Backend": {"Type": "extension", **HOST_GW, "SubnetAddCommand": str(rough), "CommandTimeout": 2},
    }
    async with losing_nothing(overlay, "c1", "c2"):
        overlay.etcd.ctl("put", "/coreos.com/network/config", json.dumps(config))
        await until_said(log, "the network config has changed")
        for number in (21, 22, 23, 24):
            put_leased(overlay, f"{SUBNETS}/10.1.{number}.0-24", peer_value(f"192.168.50.{number + 70}", ""))
        await until_said(log, "10.1.21.0/24", "SubnetAddCommand failed with exit code 3: no such thing; it is run again")
        await until_said(log, "10.1.22.0/24", "SubnetAddCommand was killed: not done after 2 s; it is run again")

        async def there() -> bool:
            return {f"10.1.{number}.0/24 via 192.168.50.{number + 70} dev eth1" for number in (23, 24)} <= {*await routes(host)}

        await until(there, 20, "the two that can be set up are")
    said = await host.attempt(*host.settings.program, "status", f"--run-dir={host.run_dir}", "--json")
    states = {peer["key"]: peer["state"] for peer in json.loads(said.stdout)["peers"]}
    assert states["10.1.21.0-24"] == states["10.1.22.0-24"] == "refused"
    assert states["10.1.23.0-24"] == states["10.1.24.0-24"] == "in-sync"
