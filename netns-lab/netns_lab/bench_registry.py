"""How much of a registry does the agent carry? Listing, following a thousand changes a second, and a race for subnets.

    python -m netns_lab.bench_registry [--leases 10000] [--rate 1000] [--machines 200]

All in one run on real etcds. flannel lists with one more call for each lease (LeaseTimeToLive), one after the other: that is
measured beside it, on a sample.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import re
import socket
import statistics
import struct
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from flannelpy.core.config import NetworkConfig
from flannelpy.core.membership import Membership
from flannelpy.core.model import LEASE_TTL_S, subnet_key
from flannelpy.registry.etcd.channel import Link, rpc
from flannelpy.registry.etcd.registry import EtcdRegistry
from netns_lab.bench_agent import HERE, Writer, count_routes, cpu_s, milliseconds, route_monitor, subnet
from netns_lab.etcd import Etcd
from netns_lab.host import Host
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import PREFIX, Lab
from netns_lab.namespaces import open_socket
from netns_lab.race import Race
from netns_lab.swarm import Node
from netns_lab.swarm import settle as settle_nodes
from netns_lab.topology import Topology

NETWORK: dict[str, Any] = {"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}
LISTINGS = 5
SAMPLE = 1_000
"""Leases that are asked for their time, one after the other."""
SWARM = 2_000
"""Nodes that churn."""
FOLLOWED_S = 10.0
WARM_UP_S = 2.0
QUIET_S = 2.0
CATCH_UP_S = 60.0
"""The longest that is waited for one route."""
GRANTS_AT_ONCE = 100
RACE_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    what: str
    seen: str
    target: str
    met: bool | None


# --------------------------------------------------------------------------------------------------------------- listing


async def fill(etcd: Etcd, nodes: Sequence[Node], config: NetworkConfig) -> None:
    """A lease for each node, each with an etcd lease of its own, as real nodes have."""
    link = Link(etcd.endpoint())

    async def grant() -> int:
        request = rpc.LeaseGrantRequest(TTL=LEASE_TTL_S)
        answer = await link.ask(lambda wire, **how: wire.lease.LeaseGrant(request, **how))
        return int(answer.ID)

    async def put(some: Sequence[Node], grants: Sequence[int]) -> None:
        puts = []
        for node, lease in zip(some, grants, strict=True):
            key = f"{PREFIX}/subnets/{subnet_key(node.subnet)}".encode()
            put = rpc.PutRequest(key=key, value=node.attrs(config).to_json().encode(), lease=lease)
            puts.append(rpc.RequestOp(request_put=put))
        request = rpc.TxnRequest(success=puts)
        await link.ask(lambda wire, **how: wire.kv.Txn(request, **how))

    try:
        for first in range(0, len(nodes), GRANTS_AT_ONCE):
            some = nodes[first : first + GRANTS_AT_ONCE]
            await put(some, await asyncio.gather(*(grant() for _ in some)))
    finally:
        await link.close()


def range_reads(etcd: Etcd) -> int:
    """How many range reads this etcd has answered, by its own count."""
    with urllib.request.urlopen(f"{etcd.urls[0]}/metrics", timeout=5) as page:
        text = page.read().decode()
    return sum(
        int(float(count)) for count in re.findall(r'^grpc_server_handled_total\{[^}]*grpc_method="Range"[^}]*\} (\S+)', text, re.M)
    )


async def measure_listing(leases: int) -> list[Row]:
    """From a registry that was never seen to a complete view; and the same with a call for each lease."""
    config = NetworkConfig.parse(json.dumps(NETWORK))
    with Etcd() as etcd:
        await fill(etcd, settle_nodes(leases, config, []), config)
        registry = EtcdRegistry(etcd.endpoint())
        try:
            taken, peers = [], 0
            before = range_reads(etcd)
            for _ in range(LISTINGS):
                began = time.perf_counter()
                snapshot = await registry.snapshot()
                membership = Membership(config, frozenset({"vxlan"}))
                membership.replace(snapshot.leases)
                taken.append(time.perf_counter() - began)
                peers = len(membership.peers)
            reads = (range_reads(etcd) - before) / LISTINGS
            sample = snapshot.leases[:: max(1, leases // SAMPLE)][:SAMPLE]
            began = time.perf_counter()
            for lease in sample:
                await registry.remaining(lease)
            asked = time.perf_counter() - began
        finally:
            await registry.close()
    listing = statistics.median(taken)
    whole = asked / len(sample) * leases
    flannel = f"{asked:.2f} s for a sample of {len(sample):,}, {whole:.1f} s for all at that rate"
    return [
        Row(
            f"{leases:,} leases listed and judged ({peers:,} peers)", f"{listing:.2f} s", "0.5 s", listing < 0.5 and peers == leases
        ),
        Row("  range reads for it", f"{reads:g}", "one for 5,000", reads <= -(-leases // 5_000)),
        Row("  one call for each lease on top, as flannel does", flannel, "", None),
        Row("  a listing without them costs", f"1/{whole / listing + 1:.0f}", "", None),
    ]


# --------------------------------------------------------------------------------------------------------------- following


@asynccontextmanager
async def swarming(lab: Lab, rate: int, seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """The swarm beside the lab's etcd, from when its nodes are there."""
    words = lab.box("etcd").namespace.command(sys.executable, "-m", "netns_lab.swarm", lab.etcd.urls[0], f"--nodes={SWARM}")
    process = await asyncio.create_subprocess_exec(
        *words,
        f"--churn={rate}",
        f"--seconds={seconds}",
        "--json",
        "--keep",  # they go with the lab; their removal is not what is measured
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        cwd=HERE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        if b"nodes are there" not in line:
            raise RuntimeError(f"the swarm did not start: {line.decode()}")
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def measure_following(rate: int) -> list[Row]:
    """A real agent among nodes that change, and a new peer's way to its kernel meanwhile.

    The CPU time is what it took to carry out all changes, also those that it was behind with at the end.
    """
    async with Lab.up(Topology(hosts=1, containers=0, agent_options=()), name="benchreg") as lab:
        # The peers that are timed begin at 10.64.0.0; the host's own lease and the swarm lie below.
        await lab.put_config({**NETWORK, "SubnetMax": "10.63.255.0"})
        await lab.start_agents()
        host, numbers = lab.host(1), itertools.count()
        async with Writer.beside_etcd(lab) as writer:
            quiet = await put_for(QUIET_S, writer, host, numbers)
            async with swarming(lab, rate, WARM_UP_S + FOLLOWED_S) as process:
                await lab.until(lambda: _at_least(lab, SWARM // 2), timeout_s=30, what="the swarm's routes")
                await asyncio.sleep(WARM_UP_S)
                before = cpu_s(host.agent.pid)
                timed, kernel = put_for(FOLLOWED_S, writer, host, numbers), ask_kernel(lab, FOLLOWED_S)
                meanwhile, elsewhere = await asyncio.gather(timed, kernel)
                assert process.stdout is not None
                async with asyncio.timeout(60):
                    told = json.loads(await process.stdout.read())
            began = time.perf_counter()
            last = next(numbers)
            await writer.put(last)
            await lab.until(lambda: _routed(host, last), timeout_s=CATCH_UP_S, what="the last put's route")
            behind = time.perf_counter() - began
            cpu = (cpu_s(host.agent.pid) - before) / FOLLOWED_S * 100
    reached = float(told["rate"])
    return [
        Row(f"changes a second among {SWARM:,} nodes", f"{reached:,.0f}", f"{rate:,}", reached > 0.95 * rate),
        Row("  the agent's share of one core", f"{cpu:.0f} %", "50 %", cpu < 50.0),
        Row("  etcd put to route meanwhile", milliseconds(meanwhile), "", None),
        Row("  the same before, in quiet", milliseconds(quiet), "", None),
        Row("  meanwhile, one neighbour set elsewhere", milliseconds(elsewhere), "", None),
        Row("  all caught up after the last change", f"{behind:.2f} s", "1 s", behind < 1.0),
    ]


async def put_for(seconds: float, writer: Writer, host: Host, numbers: Iterator[int]) -> list[float]:
    """New peers one after the other, for some seconds: how long each took from its put until ``ip monitor`` told the route."""
    taken: list[float] = []
    async with route_monitor(host) as lines:
        await asyncio.sleep(0.3)  # ip subscribes
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            number = next(numbers)
            began = await writer.put(number)
            wanted = f"{subnet(number)}/24 ".encode()
            async with asyncio.timeout(CATCH_UP_S):
                while wanted not in await lines.readline():
                    pass
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)  # one at a time: the cost of a single change, not of a batch
    return taken[1:] or taken  # the first is a rehearsal


async def ask_kernel(lab: Lab, seconds: float) -> list[float]:
    """Seconds that the kernel takes for one small change in a namespace where nothing else happens, several times a second.

    All namespaces of a machine share one lock for such changes: where others hold it the agent waits as well, and its figures are
    the machine's.
    """
    taken = []
    with open_socket(lab.box("net").namespace.path, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            taken.append(await asyncio.to_thread(_set_neighbour, netlink))
            await asyncio.sleep(0.05)
    return taken


def _set_neighbour(netlink: socket.socket) -> float:
    """RTM_NEWNEIGH of 10.254.0.1 on lo, permanent, acknowledged (rtnetlink(7), linux/neighbour.h); the kernel works within send."""
    attributes = struct.pack("HH4s", 8, 1, bytes((10, 254, 0, 1))) + struct.pack("HH6sxx", 10, 2, bytes((2, 0, 0, 0, 0, 1)))
    body = struct.pack("BxxxiHBB", socket.AF_INET, 1, 0x80, 0, 0) + attributes
    request, acknowledge, create, replace = 0x1, 0x4, 0x400, 0x100
    message = struct.pack("IHHII", 16 + len(body), 28, request | acknowledge | create | replace, 1, 0) + body
    began = time.perf_counter()
    netlink.send(message)
    took = time.perf_counter() - began
    netlink.recv(4096)
    return took


async def _routed(host: Host, number: int) -> str:
    return await host.exec("ip", "route", "show", f"{subnet(number)}/24")


async def _at_least(lab: Lab, number: int) -> bool:
    return await count_routes(lab.host(1)) >= number


# ------------------------------------------------------------------------------------------------------------------ racing


def pool(machines: int | None) -> NetworkConfig:
    """A /16 of /24, or as many of them as there are machines."""
    fields: dict[str, Any] = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
    if machines is not None:
        fields |= {"SubnetMin": "10.5.1.0", "SubnetMax": f"10.5.{machines}.0"}
    return NetworkConfig.parse(json.dumps(fields))


async def measure_race(machines: int, *, exact: bool) -> list[Row]:
    """Machines that all want a subnet at the same moment; with ``exact``, one more afterwards."""
    config = pool(machines if exact else None)
    assert config.v4 is not None
    with Etcd() as etcd:
        async with Race.at(etcd.endpoint(), config) as race:
            race.start(machines)
            seconds = await race.served(RACE_WITHIN_S)
            faults = await race.faults()
            total, most = race.rounds
            seen = f"{seconds:.2f} s; {total / machines:.1f} rounds each, at most {most}" + (f"; {faults[0]}" if faults else "")
            what = f"{machines} machines race for {config.v4.count} subnets"
            rows = [Row(what, seen, "all served, all distinct", not faults)]
            if exact:
                (late,) = race.start()
                await race.until(lambda: late.no_room, RACE_WITHIN_S)
                said = late.no_room
                rows.append(Row("  one more is told", said, "", said.startswith(f"no free subnet: {machines} of {machines} ")))
                leaver = race.machines.pop(0)
                began = time.perf_counter()
                await leaver.leave()
                async with asyncio.timeout(RACE_WITHIN_S):
                    await late.served.wait()
                waited = time.perf_counter() - began
                rows.append(Row("  and served when one is released", f"{waited * 1e3:.0f} ms", "1 s", waited < 1.0))
    return rows


# ------------------------------------------------------------------------------------------------------------------- report


async def measure(given: argparse.Namespace, progress: Progress) -> list[Row]:
    """The whole run."""
    task = progress.add_task(f"{given.leases:,} leases", total=None)
    rows = await measure_listing(given.leases)
    progress.update(task, description=f"{given.rate:,} changes a second")
    rows += await measure_following(given.rate)
    progress.update(task, description=f"{given.machines} machines in a race")
    rows += await measure_race(given.machines, exact=False)
    rows += await measure_race(given.machines, exact=True)
    return rows


def show(rows: Sequence[Row], title: str, console: Console) -> None:
    """The report, as a table."""
    table = Table("measured", "flannelpy", "target", "", title=title)
    for row in rows:
        verdict = "" if row.met is None else "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.what, row.seen, row.target, verdict)
    console.print(table)


def main() -> int:
    """Run it; 0 where every target was met, 1 where one was missed."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--leases", type=int, default=10_000, help="leases to list")
    parser.add_argument("--rate", type=int, default=1_000, help="changes a second to follow")
    parser.add_argument("--machines", type=int, default=200, help="machines in the race, at most 255")
    given = parser.parse_args()
    logging.getLogger("flannelpy").addHandler(logging.NullHandler())  # the machines' conditions are rows of the report
    console = Console(width=None if sys.stdout.isatty() else 160)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        rows = uvloop.run(measure(given, progress))
    show(rows, "The registry, in one run on this machine", console)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
