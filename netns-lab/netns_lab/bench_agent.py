"""How quick and how small is the agent? Start, memory, idle CPU, and the way from a put in etcd to a route in the kernel.

    python -m netns_lab.bench_agent [--leases 10000] [--puts 200]

Everything is measured in one run on a lab of its own, with a real etcd. Where FLANNELD names a real flanneld it is measured beside,
in the same lab and after the same manner, and what is asked is the ratio; else its figures are those of two shared cores (its
release 0.28.9, kernel 6.18, etcd 3.5.1).
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TypeVar

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
IDLE_S = 30.0
HERE = Path(__file__).resolve().parent.parent
FIRST_PEER = (10 << 24) + (64 << 16)
"""10.64.0.0: the peers that are only keys; the hosts' own leases are kept away from them by SubnetMax."""


WITHIN_S = 300.0
"""For a start among many, on a machine that is busy."""

SETTLES_S = 10.0
"""After so long the memory is looked at: what a start took for a moment is given back by then, or never."""

QUARTER = 0.25
"""A start among many takes at most this share of flanneld's time, and of its processor time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. ``ratio``: ours to flanneld's, where both were measured."""

    what: str
    seen: str
    target: str
    met: bool | None
    flanneld: str
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Few:
    """Among three hosts: seconds of each start until READY, of each put until its route; memory in MB, idle CPU in per cent."""

    starts: list[float]
    puts: list[float]
    memory: float
    idle: float


@dataclass(frozen=True, slots=True)
class Many:
    """Among many leases: seconds until READY, until all routes are there, processor time until then; how many routes there are."""

    ready: float
    routed: float
    cpu: float
    routes: int
    puts: list[float]
    memory: float
    idle: float


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


def cpu_s(pid: int, *, children: bool = False) -> float:
    """CPU time used so far, in seconds (proc(5) utime, stime); with ``children`` that of the programs it has run, too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / os.sysconf("SC_CLK_TCK")


def ran_s(pid: int) -> float:
    """How long its threads that live have had a processor, in seconds: finer than ``cpu_s``, whose ticks are of 10 ms (proc(5)
    schedstat).
    """
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


async def idle_percent(pid: int) -> float:
    """What it takes of a core while nothing happens."""
    before = ran_s(pid)
    await asyncio.sleep(IDLE_S)
    return (ran_s(pid) - before) / IDLE_S * 100


async def count_routes(host: Host) -> int:
    return len((await host.exec("ip", "route", "show", "dev", "flannel.1", timeout_s=60)).splitlines())


def routes_of(pid: int) -> int:
    """IPv4 routes of the main table through flannel.1, in the namespace of a process (proc(5) net/route)."""
    return Path(f"/proc/{pid}/net/route").read_bytes().count(b"\nflannel.1\t")


T = TypeVar("T")
Program = Sequence[str] | None
"""flanneld's command line; None for ours."""


async def timed_start(host: Host, program: Program = None, within_s: float = WITHIN_S) -> float:
    """Seconds from the start of the process until READY=1."""
    began = time.perf_counter()
    await host.start_agent(program=program, within_s=within_s)
    return time.perf_counter() - began


async def start_among_few(host: Host, writer: Writer, program: Program, numbers: Sequence[int]) -> Few:
    """Starts, idle seconds, and puts with these numbers, of an agent that runs."""
    starts = []
    for _ in range(STARTS):
        await host.agent.stop()
        starts.append(await timed_start(host, program))
    await asyncio.sleep(SETTLES_S)
    memory, idle = memory_mb(host.agent.pid), await idle_percent(host.agent.pid)
    return Few(starts, await put_to_route(writer, host, numbers), memory, idle)


async def start_among_many(host: Host, writer: Writer, program: Program, expected: int, numbers: Sequence[int]) -> Many:
    """A start without a device, with so many routes to make, and puts with these numbers."""
    await host.exec("ip", "link", "del", "flannel.1")
    began = time.perf_counter()
    agent = host.launch_agent(program=program)
    await agent.ready(WITHIN_S)
    ready = time.perf_counter() - began
    while routes_of(agent.pid) < expected and time.perf_counter() - began < WITHIN_S:  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # the kernel is asked, for flanneld is ready before
    routed, cpu, routes = time.perf_counter() - began, cpu_s(agent.pid, children=True), routes_of(agent.pid)
    puts = await put_to_route(writer, host, numbers)
    await asyncio.sleep(SETTLES_S)
    memory = memory_mb(agent.pid)
    return Many(ready, routed, cpu, routes, puts, memory, await idle_percent(agent.pid))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(values: Sequence[float]) -> str:
    return f"p50 {percentile(values, 0.5) * 1e3:.1f} ms, p95 {percentile(values, 0.95) * 1e3:.1f}"


async def measure(leases: int, puts: int, flanneld: str, progress: Progress) -> list[Row]:
    """The whole run; ``flanneld``: the program, empty where there is none."""
    for package in ("flannelpy", "backends"):  # an agent that is installed has its bytecode, also where none is written here
        compileall.compile_dir(HERE.parent / package, quiet=2)
    topology = Topology(hosts=3, containers=0, agent_options=())
    task = progress.add_task("three hosts and etcd", total=None)
    async with Lab.up(topology, name="bench") as lab:
        # Our own leases stay below 10.64.0.0, where the peers begin that are only keys.
        await lab.put_config({**NETWORK, "SubnetMax": "10.63.255.0"})
        await lab.start_agents()
        first = lab.host(1)
        theirs = [flanneld, f"--etcd-endpoints={','.join(lab.etcd.urls)}", "--iface=eth1", f"--subnet-file={first.subnet_file}"]
        programs: list[tuple[str, Program]] = [("flannelpy", None), *([("flanneld", theirs)] if flanneld else [])]
        few, many = dict[str, Few](), dict[str, Many]()
        async with Writer.beside_etcd(lab) as writer:
            for turn, (name, program) in enumerate(programs):
                progress.update(task, description=f"{name}: {STARTS} starts, {puts} puts, {IDLE_S:.0f} s idle")
                few[name] = await start_among_few(first, writer, program, range(turn * puts, (turn + 1) * puts))
            await first.agent.stop()
            for other in lab.hosts[1:]:
                await other.agent.stop()
            await writer.fill(max(leases, puts * len(programs)))
            present = max(leases, puts * len(programs))
            for turn, (name, program) in enumerate(programs):
                progress.update(task, description=f"{name}: {present} leases present at start, {puts} puts")
                begin = present + turn * puts
                many[name] = await start_among_many(first, writer, program, begin + 2, range(begin, begin + puts))
                await first.agent.stop()
    return report(few, many, present)


def report(few: dict[str, Few], many: dict[str, Many], leases: int) -> list[Row]:
    """What was measured, beside what is asked for."""
    ours, theirs = few["flannelpy"], few.get("flanneld")
    all_ours, all_theirs = many["flannelpy"], many.get("flanneld")
    median = statistics.median(ours.starts)
    fast = percentile(ours.puts, 0.5) < 0.005 and percentile(ours.puts, 0.95) < 0.010
    memory, memory_many, idle = ours.memory, all_ours.memory, ours.idle

    def row(what: str, seen: str, target: str, met: bool | None, known: str, pair: tuple[float, float | None], unit: str) -> Row:
        mine, other = pair
        told = known if other is None else f"{other * 1e3:.1f} ms" if unit == "ms" else f"{other:.2f} {unit}"
        return Row(what, seen, target, met, told, None if other is None else mine / other)

    half = percentile(ours.puts, 0.5), _of(theirs, lambda few: percentile(few.puts, 0.5))
    half_many = percentile(all_ours.puts, 0.5), _of(all_theirs, lambda many: percentile(many.puts, 0.5))
    started = median, _of(theirs, lambda few: statistics.median(few.starts))
    big = f"{leases} leases at start, all {all_ours.routes} routes programmed"
    share = "4 s" if all_theirs is None else f"{QUARTER} of flanneld's"
    most_s, most_cpu = (4.0, inf) if all_theirs is None else (QUARTER * all_theirs.routed, QUARTER * all_theirs.cpu)
    whole = all_ours.routes == leases + 2
    return [
        row("start to READY, etcd running", f"{median:.2f} s", "0.8 s, aim 0.4", median < 0.8, "0.07-0.14 s", started, "s"),
        row("etcd put to route, 3 hosts", milliseconds(ours.puts), "p50 5 ms, p95 10", fast, "2.4 ms", half, "ms"),
        row(
            "resident memory",
            f"{memory:.0f} MB",
            "55 MB",
            memory <= 55,
            "40-70 MB",
            (memory, _of(theirs, lambda few: few.memory)),
            "MB",
        ),
        row("idle CPU", f"{idle:.2f} %", "0.5 %, aim 0.2", idle < 0.5, "0.2 %", (idle, _of(theirs, lambda few: few.idle)), "%"),
        row(
            big,
            f"{all_ours.routed:.2f} s",
            share,
            whole and all_ours.routed < most_s,
            "6.7 s with 10000",
            (all_ours.routed, _of(all_theirs, lambda many: many.routed)),
            "s",
        ),
        row(
            "processor time until then",
            f"{all_ours.cpu:.2f} s",
            "" if all_theirs is None else share,
            None if all_theirs is None else all_ours.cpu < most_cpu,
            "",
            (all_ours.cpu, _of(all_theirs, lambda many: many.cpu)),
            "s",
        ),
        row(
            f"etcd put to route, {leases} leases",
            milliseconds(all_ours.puts),
            "p50 8 ms",
            half_many[0] < 0.008,
            "3.6 ms with 10000",
            half_many,
            "ms",
        ),
        row(
            f"resident memory, {leases} leases",
            f"{memory_many:.0f} MB",
            "",
            None,
            "",
            (memory_many, _of(all_theirs, lambda many: many.memory)),
            "MB",
        ),
        row(
            f"idle CPU, {leases} leases of hosts that are not there",
            f"{all_ours.idle:.2f} %",
            "",
            None,
            "",
            (all_ours.idle, _of(all_theirs, lambda many: many.idle)),
            "%",
        ),
    ]


def _of(measured: T | None, read: Callable[[T], float]) -> float | None:
    return None if measured is None else read(measured)


def show(rows: Sequence[Row], console: Console) -> None:
    """The report, as a table."""
    load = f"load average {os.getloadavg()[0]:.0f}"
    table = Table(
        "measured", "flannelpy", "target", "", "flanneld", "ratio", title=f"The agent, in one run on this machine, {load}"
    )
    for row in rows:
        verdict = "" if row.met is None else "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.what, row.seen, row.target, verdict, row.flanneld, "" if row.ratio is None else f"{row.ratio:.2f}")
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
    flanneld = os.environ.get("FLANNELD", "")
    if flanneld and not os.access(flanneld := os.path.abspath(flanneld), os.X_OK):  # noqa: PTH100 - it is another's cwd it runs in
        parser.error(f"FLANNELD={flanneld}: expected a program (make flanneld builds one)")
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        rows = uvloop.run(measure(given.leases, given.puts, flanneld, progress))
    show(rows, console)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
