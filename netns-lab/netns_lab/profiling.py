"""Where does the time go: the agent's while peers join, and that of a udp worker below a TCP stream?

    python -m netns_lab.profiling [--seconds 10] [--only agent,worker]

py-spy looks at the process a few hundred times a second, from outside: it is as it always is. Written are flame graphs,
lab-out/profile-agent.svg and profile-worker.svg; printed is who has had the processor, functions that they have called left out.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from netns_lab.bench_agent import NETWORK, Writer
from netns_lab.bench_udp import Bench, children
from netns_lab.bench_udp_report import OUT, VETH
from netns_lab.errors import LabError
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import Lab
from netns_lab.ledger import Ledger
from netns_lab.namespaces import run
from netns_lab.topology import Topology

RATE = 250
"""Looks a second."""
PEERS = 1000
"""That are there before others join."""
SHOWN = 15
ROW = 16
"""Pixels from a frame to those that it has called."""

_FRAME = re.compile(r'<title>(.*?) \([\d,]+ samples?, [\d.]+%\)</title><rect [^>]*?y="(\d+)"[^>]*? fg:x="(\d+)" fg:w="(\d+)"')


async def recorded(pid: int, name: str, seconds: float) -> Path:
    """The flame graph of a process over the next ``seconds``. Raises LabError where it cannot be looked at."""
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        raise LabError("no py-spy in .venv: make setup installs it")
    path = OUT / f"profile-{name}.svg"
    OUT.mkdir(exist_ok=True)
    words = ("record", "--pid", str(pid), "--duration", f"{seconds:.0f}", "--rate", str(RATE), "--nonblocking")
    outcome = await run([program, *words, "--format", "flamegraph", "--output", str(path)], timeout_s=seconds + 60)
    if outcome.code:
        raise LabError(f"py-spy: {(outcome.stderr.strip() or outcome.stdout.strip()).splitlines()[-1]}")
    return path


def own_times(svg: str) -> list[tuple[str, float]]:
    """Who has had the processor, and for which share of the samples, the most first; what a frame has called is not its own."""
    frames = [(int(y), int(x), int(width), name) for name, y, x, width in _FRAME.findall(svg)]
    rows: dict[int, list[tuple[int, int]]] = {}
    for y, x, width, _ in frames:
        rows.setdefault(y, []).append((x, width))
    whole = max((width for _, _, width, _ in frames), default=0)
    total = Counter[str]()
    for y, x, width, name in frames:
        called = sum(w for at, w in rows.get(y + ROW, ()) if x <= at < x + width)
        total[name] += width - called
    return [(name, count / whole) for name, count in total.most_common() if count > 0]


async def agent(seconds: float) -> Path:
    """An agent among a thousand peers, while others come one after the other, as fast as etcd takes them."""
    async with Lab.up(Topology(hosts=1, containers=0, agent_options=()), name="profile") as lab:
        await lab.put_config({**NETWORK, "SubnetMax": "10.63.255.0"})
        async with Writer.beside_etcd(lab) as writer:
            await writer.fill(PEERS)
            await lab.start_agents()
            recording = asyncio.create_task(recorded(lab.host(1).agent.pid, "agent", seconds))
            try:
                for number in itertools.count(PEERS):
                    if recording.done():
                        break
                    await writer.put(number)
            finally:
                recording.cancel()
            return await recording


async def worker(seconds: float) -> Path:
    """The sending host's worker, below one TCP stream."""
    ledger = Ledger("profile-udp")
    ledger.claim({"profile": "udp"})
    try:
        bench = Bench(ledger, {}, seconds, VETH)
        await bench.build()
        async with bench.way("pump") as pumps:
            (pid,) = children(pumps[0].pid)
            words = ("iperf3", "-J", "-c", "10.99.2.2", "-t", f"{seconds + 5:.0f}")
            stream = asyncio.create_task(bench.ca.attempt(*words, timeout_s=seconds + 60))
            try:
                path = await recorded(pid, "worker", seconds)
                report = json.loads((await stream).stdout)
            finally:
                stream.cancel()
        if "error" in report:
            raise LabError(f"iperf3: {report['error']}")
        return path
    finally:
        ledger.remove()


def show(name: str, path: Path, console: Console) -> None:
    table = Table("function", "share", title=f"{name}: who has had the processor")
    for frame, share in own_times(path.read_text())[:SHOWN]:
        table.add_row(frame, f"{share:.1%}")
    console.print(table)
    console.print(f"written: {path.parent.name}/{path.name}")


PROFILES = {"agent": agent, "worker": worker}


def main(words: Sequence[str] | None = None) -> int:
    """Run it; 1 where it could not be."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for how long each is looked at")
    parser.add_argument("--only", default=",".join(PROFILES), help=f"of {','.join(PROFILES)}")
    given = parser.parse_args(words)
    console = Console()
    try:
        for name, profile in PROFILES.items():
            if name in given.only.split(","):
                show(name, uvloop.run(profile(given.seconds)), console)
    except LabError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
