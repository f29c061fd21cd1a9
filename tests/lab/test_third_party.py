"""Is a backend of somebody else, in a package of its own, as good as ours? The one of docs/backends.md, whole.

c1 10.1.1.2 - h1 --- h3 --- h2 - c2 10.1.2.2          h3 has no agent: it is the router that knows where both subnets are
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, no_traceback, remember_subnet, routes, shell, until  # noqa: F401
from tests.lab.host_support import until_nothing_is_wrong, until_they_meet
from tests.third_party import install

ROUTER = "192.168.50.13"


@pytest.mark.topology(hosts=3, backend="via-router", config={"Backend": {"Router": ROUTER}})
async def test_a_backend_of_a_third_party_carries_packets_and_is_repaired(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [*map(str, install(tmp_path)), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, paths)))
    hosts = one, two = lab.host(1), lab.host(2)
    for host in hosts:
        remember_subnet(host, f"10.1.{host.plan.number}.0/24", lab.topology.network)
        host.launch_agent()
    await asyncio.gather(*(host.agent.ready(60) for host in hosts))
    for host in hosts:
        await host.connect_containers()
        await shell(lab.host(3), f"ip route add {host.subnet} via {host.address}")
    await shell(lab.host(3), "sysctl -qw net.ipv4.ip_forward=1")
    await until_they_meet(lab, "by a third party's backend", "c1", "c2")
    await until_nothing_is_wrong(*hosts)

    async def routed() -> bool:
        return f"{two.subnet} via {ROUTER} dev eth1 proto 102" in await routes(one)

    assert await routed()
    await shell(one, f"ip route del {two.subnet}")
    await until(routed, 30, "the route is back")
    await two.agent.stop()
    lab.etcd.ctl("del", f"/coreos.com/network/subnets/{str(two.subnet).replace('/', '-')}")

    async def gone() -> bool:
        return not await routes(one, f"exact {two.subnet}")

    await until(gone, 30, "the route of the peer that went is gone")
