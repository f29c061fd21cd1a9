"""Does a cluster of ten thousand hosts hold? Simulated nodes in a real etcd of three members, and real agents among them.

    python -m netns_lab.bench_swarm --nodes 10000 --agents 8

All the time nodes renew, join, leave and change their MACs. Meanwhile a rack of nodes comes and goes, the members of etcd are
restarted one after the other, and the network config changes. After each of these: when did the last of the agents have exactly the
living peers, what did etcd take, and the agent that took most? The nodes are keys: what they would have done with what they hear is
not there, so that etcd's cost for their watches is measured apart, by streams that nobody reads anything from.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from netns_lab.bench_agent import HERE, cpu_s, memory_mb
from netns_lab.bench_registry import Row, show
from netns_lab.host import Host
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import PREFIX, Lab
from netns_lab.topology import Topology

NETWORK: dict[str, Any] = {"Network": "10.64.0.0/10", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}
RACK = 500
CHURN = 100.0
"""Changes a second: 10,000 nodes that renew once in 23 hours make one in eight seconds, so this is two weeks an hour."""
WATCHED, WATCHED_S = 5.0, 20
"""Changes a second while watches are counted, and for how long."""
REST_S = 15.0
CONVERGED_S = 10.0
AGENT_MB, AGENT_SHARE, ETCD_SHARE = 150.0, 5.0, 100.0
WITHIN_S = 300.0


@dataclass(slots=True)
class Spent:
    """What was taken since ``begin``: in seconds of a processor, by etcd's members together and by each agent."""

    lab: Lab
    began: float = 0.0
    etcd: dict[int, float] = field(default_factory=dict)
    agents: dict[int, float] = field(default_factory=dict)

    def begin(self) -> None:
        self.began = time.perf_counter()
        self.etcd = {pid: cpu_s(pid) for pid in self.lab.etcd.pids.values()}
        self.agents = {host.agent.pid: cpu_s(host.agent.pid) for host in self.lab.hosts}

    def rows(self, over_s: float | None = None) -> list[Row]:
        """By now; as a share of one core of the time since ``begin``, or of so many seconds."""
        took = over_s or time.perf_counter() - self.began
        etcd = sum(cpu_s(pid) - self.etcd.get(pid, 0.0) for pid in self.lab.etcd.pids.values()) / took * 100
        agent = max(cpu_s(pid) - before for pid, before in self.agents.items()) / took * 100
        held = max(memory_mb(pid) for pid in self.agents)
        large = max(memory_mb(pid) for pid in self.lab.etcd.pids.values())
        return [
            Row("  etcd, its three members, of one core", f"{etcd:.0f} %; the largest {large:.0f} MB", "100 %", etcd < ETCD_SHARE),
            Row("  an agent, at most, of one core", f"{agent:.1f} %; {held:.0f} MB", "", None),
        ]


@asynccontextmanager
async def nodes(lab: Lab, count: int, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """So many nodes, written beside etcd; they are removed with the block unless ``--keep`` says otherwise."""
    command = lab.box("etcd").namespace.command(sys.executable, "-m", "netns_lab.swarm", lab.etcd.urls[0], f"--nodes={count}")
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, *words, "--json", stdin=none, stdout=pipe, cwd=HERE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WITHIN_S):
            line = await process.stdout.readline()
        if b"nodes are there" not in line:
            raise RuntimeError(f"the swarm did not start: {line.decode()}")
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
        await process.communicate()


@asynccontextmanager
async def watchers(lab: Lab, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """So many watches at one member of etcd that nobody does anything with; their events are told when the block is over."""
    command = lab.box("etcd").namespace.command(sys.executable, "-m", "netns_lab.watchers", lab.etcd.urls[0], f"--watchers={count}")
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=none, stdout=pipe, cwd=HERE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WITHIN_S):
            assert await process.stdout.readline() == b"watching\n"
        yield process
    finally:
        if process.returncode is None:
            process.terminate()


async def watched(lab: Lab, count: int) -> list[Row]:
    """What a watch costs etcd for each event, and to have it: the same churn with them and without."""
    first = lab.etcd.pids[0]

    async def churned() -> float:
        before = cpu_s(first)
        async with nodes(lab, RACK // 10, "--keep", f"--churn={WATCHED}", f"--seconds={WATCHED_S}") as process:
            await process.wait()
        return cpu_s(first) - before

    without, small = await churned(), memory_mb(first)
    async with watchers(lab, count) as process:
        held = (memory_mb(first) - small) / count * 1000
        with_them = await churned()
    assert process.stdout is not None
    events = int((await process.stdout.read()).decode())
    await process.wait()
    each = (with_them - without) / max(1, events) * 1e6
    text = f"{each:.0f} us an event and watch ({events:,} events), {held:.0f} KB a watch"
    return [Row(f"{count} watches of an etcd member cost it", text, "", None)]


def living(lab: Lab) -> set[str]:
    """The subnets that are leased."""
    found = lab.etcd.ctl("get", "--prefix", "--keys-only", f"{PREFIX}/subnets/").split()
    return {key.rpartition("/")[2].replace("-", "/") for key in found}


async def routed(host: Host) -> set[str]:
    text = await host.exec("ip", "route", "show", "proto", "102", "dev", "flannel.1", timeout_s=60)
    return {line.split()[0] for line in text.splitlines()}


async def settled_s(lab: Lab, began: float) -> float:
    """Seconds after ``began`` when each agent was seen to have exactly the others. Raises TimeoutError."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            leased = living(lab)
            seen = time.perf_counter()
            lacking = 0
            for host in lab.hosts:
                routes = await routed(host)
                lacking += len(leased - routes) != 1 or bool(routes - leased)  # but its own
            if not lacking:
                return seen - began
            await asyncio.sleep(0.5)


def converged(what: str, seconds: float) -> Row:
    return Row(f"{what}: all agents have exactly the living peers after", f"{seconds:.1f} s", "10 s", seconds < CONVERGED_S)


async def measure(given: argparse.Namespace, progress: Progress) -> list[Row]:
    """The whole run."""
    task = progress.add_task("a lab", total=None)
    rows: list[Row] = []
    topology = Topology(hosts=given.agents, containers=0, etcd=3, agent_options=("--probe=false",))
    async with Lab.up(topology, name="benchswm") as lab:
        await lab.put_config(NETWORK)
        await lab.start_agents(within_s=120)
        spent = Spent(lab)

        progress.update(task, description=f"{given.nodes:,} nodes come")
        spent.begin()
        async with nodes(lab, given.nodes, "--keep"):
            began = time.perf_counter()
            rows.append(converged(f"{given.nodes:,} nodes that come at once", await settled_s(lab, began)))
            rows += spent.rows()

        progress.update(task, description=f"{CHURN:g} changes a second, for a minute")
        async with nodes(lab, RACK, "--keep", f"--churn={CHURN}", f"--seconds={given.seconds}") as process:
            spent.begin()
            await process.wait()
            rows.append(Row(f"{CHURN:g} changes a second for {given.seconds} s", "", "", None))
            rows += spent.rows()
        rows.append(converged("after the last of them", await settled_s(lab, time.perf_counter())))

        progress.update(task, description=f"a rack of {RACK} comes and goes, three times")
        spent.begin()
        worst = 0.0
        for _ in range(3):
            async with nodes(lab, RACK):
                worst = max(worst, await settled_s(lab, time.perf_counter()))
            worst = max(worst, await settled_s(lab, time.perf_counter()))
        rows.append(converged(f"a rack of {RACK} comes, goes, three times", worst))
        rows += spent.rows()

        progress.update(task, description="each member of etcd is restarted")
        spent.begin()
        for member in range(3):
            lab.etcd.terminate(member)
            await asyncio.sleep(2)
            lab.etcd.restart(member)
            async with nodes(lab, RACK // 10):
                worst = await settled_s(lab, time.perf_counter())
            rows.append(converged(f"member {member} restarted, and {RACK // 10} nodes that come", worst))
        rows += spent.rows()

        progress.update(task, description="the config changes")
        before = lab.etcd.revision()
        spent.begin()
        await lab.put_config({**NETWORK, "Backend": {"Type": "vxlan", "Guard": "strict"}})
        await asyncio.sleep(REST_S)
        rows.append(Row("the config changes: writes to etcd, by all agents", f"{lab.etcd.revision() - before - 1}", "", None))
        rows += spent.rows(REST_S)
        rows.append(converged("after it", await settled_s(lab, time.perf_counter())))

        progress.update(task, description=f"{given.watchers} watches that nobody reads")
        rows += await watched(lab, given.watchers)

        progress.update(task, description="nothing happens")
        spent.begin()
        await asyncio.sleep(REST_S)
        rows.append(Row("nothing happens", "", "", None))
        rows += spent.rows()
    return rows


def main() -> int:
    """Run it; 0 where every target was met, 1 where one was missed."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=8, help="real ones, each in a namespace of its own")
    parser.add_argument("--watchers", type=int, default=1000, help="watches whose cost for etcd is counted")
    parser.add_argument("--seconds", type=int, default=60, help="of churn")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        rows = uvloop.run(measure(given, progress))
    show(rows, f"{given.nodes:,} nodes, {given.agents} agents among them, in one run on this machine", console)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
