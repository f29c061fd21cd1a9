"""How quick and how small is the agent? Start, memory, idle CPU, and the way from a put in etcd to a route in the kernel.

    python -m netns_lab.bench_agent [--leases 10000] [--puts 200]

Everything is measured in one run on a lab of its own, with a real etcd. Beside it stand the figures of the real flanneld, as they
were measured on two shared cores (its release 0.28.9, kernel 6.18, etcd 3.5.1).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from flannelpy.registry.etcd.loader import load
from netns_lab.host import Host
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import PREFIX, Lab
from netns_lab.topology import Topology

NETWORK = {"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}
STARTS = 9
IDLE_S = 10.0
HERE = Path(__file__).resolve().parent.parent
FIRST_PEER = (10 << 24) + (64 << 16)
"""10.64.0.0: the peers that are only keys; the hosts' own leases are kept away from them by SubnetMax."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    what: str
    seen: str
    target: str
    met: bool | None
    flanneld: str


class Writer:
    """Another node's pen: a process beside etcd that writes leases on demand, over a connection that stays open."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def beside_etcd(cls, lab: Lab) -> AsyncIterator[Writer]:
        """The pen for the time of the block; it ends with its input."""
        pipe = asyncio.subprocess.PIPE
        words = ["nsenter", f"--net={lab.box('etcd').namespace.path}", sys.executable, "-m", "netns_lab.bench_agent"]
        process = await asyncio.create_subprocess_exec(*words, "--pen", lab.etcd.urls[0], stdin=pipe, stdout=pipe, cwd=HERE)
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def put(self, number: int) -> float:
        """Write one lease; the moment before the put, on the clock of time.perf_counter (the same in all processes)."""
        return await self._say(f"put {number}")

    async def fill(self, count: int) -> None:
        """Write leases 0 to ``count`` - 1."""
        await self._say(f"fill {count}")

    async def _say(self, order: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n".encode())
        return float(await self._process.stdout.readline())


async def write_on_demand(url: str) -> None:
    """The pen itself: an order a line, the moment it began as the answer."""
    import grpc.aio

    rpc = load()
    channel = grpc.aio.insecure_channel(url.removeprefix("http://"))
    store = rpc.KVStub(channel)

    def put(number: int) -> object:
        return rpc.PutRequest(key=key(number), value=value(number))

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        order, number = line.decode().split()
        began = time.perf_counter()
        if order == "put":
            await store.Put(put(int(number)), timeout=5)
        else:
            for first in range(0, int(number), 100):  # etcd takes up to 128 operations in one transaction
                puts = [rpc.RequestOp(request_put=put(each)) for each in range(first, min(first + 100, int(number)))]
                await store.Txn(rpc.TxnRequest(success=puts), timeout=10)
        print(began, flush=True)
    await channel.close()


def subnet(number: int) -> str:
    """The base address of peer ``number``'s /24."""
    base = FIRST_PEER + (number << 8)
    return ".".join(str(base >> shift & 255) for shift in (24, 16, 8, 0))


def key(number: int) -> bytes:
    return f"{PREFIX}/subnets/{subnet(number)}-24".encode()


def value(number: int) -> bytes:
    """A vxlan lease with an address and a MAC of its own."""
    address = f"172.16.{number >> 8 & 255}.{number & 255}" if number < 65536 else "172.31.255.255"
    mac = (0x02_00_00_00_00_00 | number).to_bytes(6, "big").hex(":")
    text = f'{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}'
    return text.encode()


@asynccontextmanager
async def route_monitor(host: Host) -> AsyncIterator[asyncio.StreamReader]:
    """``ip monitor route`` in the host, as an operator would watch."""
    words = ["nsenter", f"--net={host.namespace.path}", "ip", "-o", "monitor", "route"]
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


async def put_to_route(writer: Writer, host: Host, numbers: Sequence[int]) -> list[float]:
    """Seconds from before the put until ``ip monitor`` tells of the route, for each new peer."""
    taken = []
    async with route_monitor(host) as lines:
        await asyncio.sleep(0.3)  # ip subscribes; the first put is a rehearsal and is not counted
        for turn, number in enumerate(numbers):
            began = await writer.put(number)
            wanted = f"{subnet(number)}/24 ".encode()
            async with asyncio.timeout(10):
                while wanted not in await lines.readline():
                    pass
            if turn:
                taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)  # one at a time: the cost of a single change, not of a batch
    return taken


def memory_mb(pid: int) -> float:
    """Resident memory, in MB (proc(5) VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise ValueError(f"process {pid} has no VmRSS")


def cpu_s(pid: int) -> float:
    """CPU time used so far, in seconds (proc(5) utime + stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def count_routes(host: Host) -> int:
    return len((await host.exec("ip", "route", "show", "dev", "flannel.1", timeout_s=60)).splitlines())


async def timed_start(host: Host, within_s: float = 60.0) -> float:
    """Seconds from the start of the process until READY=1."""
    began = time.perf_counter()
    await host.start_agent(within_s=within_s)
    return time.perf_counter() - began


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(values: Sequence[float]) -> str:
    return f"p50 {percentile(values, 0.5) * 1e3:.1f} ms, p95 {percentile(values, 0.95) * 1e3:.1f}"


async def measure(leases: int, puts: int, progress: Progress) -> list[Row]:
    """The whole run."""
    rows = []
    topology = Topology(hosts=3, containers=0, agent_options=())
    task = progress.add_task("three hosts and etcd", total=None)
    async with Lab.up(topology, name="bench") as lab:
        # Our own leases stay below 10.64.0.0, where the peers begin that are only keys.
        await lab.put_config({**NETWORK, "SubnetMax": "10.63.255.0"})
        await lab.start_agents()
        first = lab.host(1)
        async with Writer.beside_etcd(lab) as writer:
            progress.update(task, description=f"{STARTS} starts")
            starts = []
            for _ in range(STARTS):
                await first.agent.stop()
                starts.append(await timed_start(first))
            median = statistics.median(starts)
            rows.append(Row("start to READY, etcd running", f"{median:.2f} s", "0.8 s, aim 0.4", median < 0.8, "0.07-0.14 s"))

            progress.update(task, description=f"{puts} puts among three hosts")
            few = await put_to_route(writer, first, range(puts))
            fast = percentile(few, 0.5) < 0.005 and percentile(few, 0.95) < 0.010
            rows.append(Row("etcd put to route, 3 hosts", milliseconds(few), "p50 5 ms, p95 10", fast, "2.4 ms"))

            memory = memory_mb(first.agent.pid)
            rows.append(Row("resident memory", f"{memory:.0f} MB", "70 MB, aim 55", memory < 70, "40-70 MB"))

            progress.update(task, description=f"idle for {IDLE_S:.0f} s")
            before = cpu_s(first.agent.pid)
            await asyncio.sleep(IDLE_S)
            idle = (cpu_s(first.agent.pid) - before) / IDLE_S * 100
            rows.append(Row("idle CPU", f"{idle:.2f} %", "0.5 %, aim 0.2", idle < 0.5, "0.2 %"))

            progress.update(task, description=f"{leases} leases present at start")
            await first.agent.stop()
            for other in lab.hosts[1:]:
                await other.agent.stop()
            await first.exec("ip", "link", "del", "flannel.1")
            await writer.fill(leases)
            present = await timed_start(first)
            routes = await count_routes(first)
            expected = leases + 2
            rows.append(
                Row(
                    f"{leases} leases at start, all {routes} routes programmed",
                    f"{present:.2f} s",
                    "4 s",
                    present < 4 and routes == expected,
                    "6.7 s with 10000",
                )
            )
            progress.update(task, description=f"{puts} puts among {leases} leases")
            many = await put_to_route(writer, first, range(leases, leases + puts))
            rows.append(
                Row(
                    f"etcd put to route, {leases} leases",
                    milliseconds(many),
                    "p50 8 ms",
                    percentile(many, 0.5) < 0.008,
                    "3.6 ms with 10000",
                )
            )
            rows.append(Row(f"resident memory, {leases} leases", f"{memory_mb(first.agent.pid):.0f} MB", "", None, ""))
    return rows


def show(rows: Sequence[Row], console: Console) -> None:
    """The report, as a table."""
    table = Table("measured", "flannelpy", "target", "", "flanneld 0.28.9", title="The agent, in one run on this machine")
    for row in rows:
        verdict = "" if row.met is None else "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.what, row.seen, row.target, verdict, row.flanneld)
    console.print(table)


def main() -> int:
    """Run it; 0 where every target was met, 1 where one was missed."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--leases", type=int, default=10_000, help="leases of the big cluster")
    parser.add_argument("--puts", type=int, default=100, help="puts to time")
    parser.add_argument("--pen", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pen:
        asyncio.run(write_on_demand(given.pen))
        return 0
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        rows = uvloop.run(measure(given.leases, given.puts, progress))
    show(rows, console)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
