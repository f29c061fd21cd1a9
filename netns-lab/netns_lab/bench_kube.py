"""What does a cluster of Kubernetes cost the agent? Listing, heartbeats, memory, and the way from a node that joins to its route.

    python -m netns_lab.bench_kube [--nodes 1000] [--joins 50]

One host with a real agent and its kernel; the API server is a small one, whose nodes are of the size of real ones. A kubelet says
every five minutes how its node is, every ten seconds where that has changed (nodeStatusReportFrequency, -UpdateFrequency): 1,000
nodes make three changes a second, and 100 where nothing stays as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from netns_lab.api_server import ApiServer
from netns_lab.bench_agent import HERE, count_routes, cpu_s, memory_mb, milliseconds, percentile, route_monitor
from netns_lab.bench_registry import Row, show
from netns_lab.host import Host
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import Lab
from netns_lab.namespaces import open_socket
from netns_lab.topology import Topology

PORT = 6443
PREFIX = "flannel.alpha.coreos.com/"
CONFIG = '{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}'
LISTINGS = 5
QUIET_S = 20.0
REPORT_S, UPDATE_S = 300.0, 10.0
WITHIN_S = 120.0
LIST = """
import asyncio, sys, time
from pathlib import Path
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.registry import KubeRegistry
async def main():
    for _ in range(int(sys.argv[3])):
        registry = KubeRegistry(Access(api_url=sys.argv[1], net_config=Path(sys.argv[2]), node="h1"))
        began = time.perf_counter()
        leases = len((await registry.snapshot()).leases)
        print(time.perf_counter() - began, leases)
        await registry.close()
asyncio.run(main())
"""


def cidr(number: int) -> str:
    """The podCIDR of a node."""
    return f"10.{64 + (number >> 8)}.{number & 255}.0/24"


def published(number: int) -> dict[str, str]:
    """What flannel writes into a node."""
    data = f'{{"VNI":1,"VtepMAC":"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"}}'
    start = {"kube-subnet-manager": "true", "backend-type": "vxlan", "backend-data": data}
    return {f"{PREFIX}{name}": text for name, text in {**start, "public-ip": f"198.18.{number >> 8}.{number & 255}"}.items()}


def status(number: int) -> dict[str, Any]:
    """The status of a node in use: fifty images, conditions, capacities, addresses; some nine kilobytes."""
    kinds = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    at = "2026-01-01T00:00:00Z"
    said = [
        {"type": kind, "status": "False", "reason": f"KubeletHas{kind}", "message": "kubelet says", "lastHeartbeatTime": at}
        for kind in kinds
    ]
    names = [f"registry.example.com/team-{each}/service-{each}@sha256:{each:064x}" for each in range(50)]
    return {
        "addresses": [{"type": "InternalIP", "address": f"198.18.{number >> 8}.{number & 255}"}],
        "capacity": {"cpu": "16", "memory": "65843048Ki", "pods": "110", "ephemeral-storage": "102626232Ki"},
        "conditions": said,
        "images": [{"names": [name, name.replace("@sha256", ":1.0")], "sizeBytes": 123456789} for name in names],
        "nodeInfo": {"kubeletVersion": "v1.37.2", "osImage": "Debian GNU/Linux 12 (bookworm)", "architecture": "amd64"},
    }


def join(server: ApiServer, number: int) -> None:
    """A node that is whole at once, as where somebody's agent has published already."""
    server.add(f"node-{number}", cidr(number), annotations=published(number), status=status(number))


@asynccontextmanager
async def beating(server: ApiServer, nodes: int, per_second: float) -> AsyncIterator[Callable[[], int]]:
    """Heartbeats of all nodes in turn, for the time of the block; how many there were. A machine that is busy makes fewer."""
    count = 0

    async def beat() -> None:
        nonlocal count
        began = time.perf_counter()
        while True:
            behind = count < (time.perf_counter() - began) * per_second
            if behind:
                server.beat(f"node-{count % nodes}")
                count += 1
            await asyncio.sleep(0 if behind else 0.005)

    task = asyncio.create_task(beat())
    try:
        yield lambda: count
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def join_to_route(server: ApiServer, host: Host, first: int, count: int) -> list[float]:
    """Seconds from before a node is there until ``ip monitor`` tells of its route, for each of them."""
    taken = []
    async with route_monitor(host) as lines:
        await asyncio.sleep(0.3)  # ip subscribes; the first is a rehearsal and is not counted
        for number in range(first, first + count + 1):
            began = time.perf_counter()
            join(server, number)
            wanted = f"{cidr(number)} ".encode()
            async with asyncio.timeout(WITHIN_S):
                while wanted not in await lines.readline():
                    pass
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)
    return taken[1:]


async def listed(lab: Lab, url: str, config: str) -> tuple[float, int]:
    """The median of some listings by a process of its own, in seconds, and how many leases were in it."""
    host = lab.host(1)
    words = host.namespace.command(sys.executable, "-c", LIST, url, config, str(LISTINGS))
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, cwd=HERE)
    async with asyncio.timeout(WITHIN_S):
        out, _ = await process.communicate()
    rows = [line.split() for line in out.decode().splitlines()]
    return statistics.median(float(row[0]) for row in rows), int(rows[-1][1])


async def measure(nodes: int, joins: int, progress: Progress) -> list[Row]:
    """The whole run."""
    task = progress.add_task(f"{nodes:,} nodes", total=None)
    async with Lab.up(Topology(hosts=1, containers=0, agent_options=()), name="benchkube") as lab:
        plan = lab.topology.etcd_plan
        assert plan is not None
        server, host = ApiServer(), lab.host(1)
        listening = open_socket(lab.box(plan.name).namespace.path, socket.AF_INET, socket.SOCK_STREAM)
        listening.bind((str(plan.address.ip), PORT))
        await server.start_at(listening)
        try:
            config = lab.directory / "net-conf.json"
            config.write_text(CONFIG)
            server.add(host.name, "10.1.1.0/24", status=status(0))
            for number in range(nodes):
                join(server, number)
            listing, leases = await listed(lab, server.url, str(config))
            options = ("--kube-subnet-mgr", f"--kube-api-url={server.url}", f"--net-config-path={config}")
            began = time.perf_counter()
            host.launch_agent(*options, env={"NODE_NAME": host.name})
            await host.agent.ready(WITHIN_S)
            ready = time.perf_counter() - began
            await lab.until(lambda: _routed(host, nodes), timeout_s=WITHIN_S, every_s=0.1, what="every node's route")
            shares, short = {}, {}
            for seconds in (REPORT_S, UPDATE_S):
                progress.update(task, description=f"a heartbeat of each node every {seconds:g} s")
                async with beating(server, nodes, nodes / seconds) as beats:
                    await asyncio.sleep(2.0)
                    before, began, beaten = cpu_s(host.agent.pid), time.perf_counter(), beats()
                    await asyncio.sleep(QUIET_S)
                    took = time.perf_counter() - began
                    shares[seconds] = (cpu_s(host.agent.pid) - before) / took * 100
                    rate = (beats() - beaten) / took
                    short[seconds] = f" (only {rate:.0f} a second)" if rate < 0.9 * nodes / seconds - 1 / QUIET_S else ""
            async with beating(server, nodes, nodes / REPORT_S):
                progress.update(task, description=f"{joins} nodes join")
                asked = len(server.requests)
                taken = await join_to_route(server, host, nodes, joins)
                asked = len(server.requests) - asked
            memory = memory_mb(host.agent.pid)
        finally:
            await server.stop()
    p95 = percentile(taken, 0.95)
    return [
        Row(f"{leases:,} nodes listed", f"{listing:.2f} s", "0.5 s", listing < 0.5 and leases == nodes),
        Row("  start to READY among them", f"{ready:.2f} s", "", None),
        Row(
            f"CPU, each heard every {REPORT_S:g} s{short[REPORT_S]}",
            f"{shares[REPORT_S]:.1f} % of a core",
            "2 %",
            shares[REPORT_S] < 2.0,
        ),
        Row(f"CPU, each heard every {UPDATE_S:g} s{short[UPDATE_S]}", f"{shares[UPDATE_S]:.1f} % of a core", "", None),
        Row("a node joins, to its route", milliseconds(taken), "p95 50 ms", p95 < 0.05),
        Row(f"  the API server was asked, for {joins} joins", str(asked), "", None),
        Row("resident memory", f"{memory:.0f} MB", "90 MB", memory < 90),
    ]


async def _routed(host: Host, nodes: int) -> bool:
    return await count_routes(host) >= nodes


def main() -> int:
    """Run it; 0 where every target was met, 1 where one was missed."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1_000, help="nodes of the cluster")
    parser.add_argument("--joins", type=int, default=50, help="nodes that join, one after the other")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        rows = uvloop.run(measure(given.nodes, given.joins, progress))
    show(rows, "Kubernetes, in one run on this machine", console)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
