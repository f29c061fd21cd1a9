"""Does it work? Three hosts on a real etcd, flannelpy on each, every container pings every other: over vxlan, then over udp.

Run by ``make demo``. Exit 0 only if every ping came back. Nothing is left running, whatever way it ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from netns_lab.drawing import draw
from netns_lab.errors import LabError
from netns_lab.etcd import EtcdFailedError
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import PREFIX, Lab
from netns_lab.listing import lease_table, leases, matrix_summary, matrix_table
from netns_lab.topology import Topology

BACKENDS = ("vxlan", "udp")
NAME = f"demo{os.getpid()}"
DRAWING = Path(__file__).resolve().parents[2] / "lab-out" / "topology.svg"

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


async def show(backend: str) -> tuple[int, int]:
    """One lab from up to down with everything it has to show; (pings that came back, pings sent)."""
    topology = Topology(hosts=3, network="10.1.0.0/16", backend=backend)
    console.rule(f"[bold]{backend}[/], Network {topology.network}")
    started = time.monotonic()
    async with Lab.up(topology, name=NAME) as lab:
        _step(f"{topology.hosts} hosts and etcd at {', '.join(lab.etcd.urls)} are up", started)
        await lab.start_agents()
        _step("flannelpy is ready on every host", started)
        await lab.connect_containers()
        _step("containers are connected", started)
        console.print(f"[bold]etcdctl get --prefix {PREFIX}/subnets/[/], and the leases' time to live")
        console.print(lease_table(await leases(lab)))
        await _show_host(lab)
        results = await lab.matrix()
        console.print("[bold]ping from every container (row) to every other (column)[/]")
        console.print(matrix_table(lab, results))
        if backend == BACKENDS[0]:
            _draw(lab)
        came, sent = sum(result.ok for result in results.values()), len(results)
        if came < sent:
            _complain(lab)
        console.print(f"{backend}: {matrix_summary(results)}")
    _step("everything is removed", started)
    return came, sent


async def _show_host(lab: Lab) -> None:
    host = lab.host(1)
    console.print(f"[bold]{host.name}: subnet.env[/]")
    console.print(host.subnet_file.read_text().rstrip(), markup=False)
    console.print(f"[bold]{host.name}: ip route[/]")
    console.print((await host.exec("ip", "route")).rstrip(), markup=False, soft_wrap=True)


def _draw(lab: Lab) -> None:
    DRAWING.parent.mkdir(exist_ok=True)
    DRAWING.write_text(draw(lab.topology, "demo", {host.name: host.subnet_env() for host in lab.hosts}))
    console.print(f"a drawing of it: {DRAWING.relative_to(DRAWING.parents[1])}")


def _complain(lab: Lab) -> None:
    for host in lab.hosts:
        console.print(f"[red]{host.name}'s agent said last:[/] ", end="")
        console.print(host.agent.process.tail(), markup=False)


def _step(text: str, since: float) -> None:
    console.print(f"[dim]{time.monotonic() - since:5.1f} s[/]  {text}")


async def demo() -> int:
    """Every backend in turn; the exit code."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    totals = []
    for backend in BACKENDS:
        came, sent = await show(backend)
        totals.append(f"{backend} {came} of {sent}")
        if came < sent:
            break
    good = len(totals) == len(BACKENDS) and came == sent
    console.rule()
    verdict = "[bold green]all pings came back[/]" if good else "[bold red]pings were lost[/]"
    console.print(f"{verdict}: {', '.join(totals)}")
    return 0 if good else 1


def main() -> int:
    """The exit code of the whole; errors are one line."""
    heed_interrupts()
    if os.geteuid() != 0:
        print("demo: network namespaces need root: start it with sudo", file=sys.stderr)
        return 1
    try:
        return asyncio.run(demo())
    except (LabError, EtcdFailedError) as error:
        print(f"demo: {error}", file=sys.stderr)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("demo: interrupted; everything is removed", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
