"""Is every fault that kills packets told, and does nothing else cry? Each fault of the lab is put in, and the agents are asked.

    python -m netns_lab gallery --backend vxlan        a table; exit 1 where packets die and neither host says a word

Of each fault: what containers notice, after how long a word stood in ``flannelpy status`` of either host, and what it said. Then
it is healed, and both have to fall silent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from netns_lab import faults
from netns_lab.errors import LabError, TimedOutError
from netns_lab.faults import FAULTS, FLOWS, Fault
from netns_lab.lab import Lab
from netns_lab.topology import Topology

TOLD_WITHIN_S, SILENT_WITHIN_S, LOOK_S = 60.0, 90.0, 0.5
STOPPED_WITHIN_S = 5.0
"""What kills no packets is looked at for so long: some of it is repaired before anybody is told."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was said of a fault: on which host, in which words, after so many seconds; or that nothing was."""

    fault: Fault
    host: str = ""
    words: str = ""
    after_s: float | None = None
    silent: bool = True

    @property
    def well(self) -> bool:
        """Whether a person learns of packets that die, and hears no more of it afterwards. Into a container no agent looks."""
        return self.silent and (self.fault.traffic is FLOWS or self.fault.where == "container" or self.after_s is not None)


async def conditions(lab: Lab) -> list[tuple[str, str]]:
    """(host, text) of what is wrong now on any host."""
    found = []
    for host in lab.hosts:
        status = await host.status()
        if not status:
            found.append((host.name, "no agent answers"))
        found += [(host.name, each["text"]) for each in status.get("conditions", ()) if each["severity"] != "info"]
    return found


async def ask(lab: Lab, fault: Fault) -> Told:
    """Put it in, wait for a word, take it out, wait for silence. Raises LabError."""
    began = time.monotonic()
    await faults.inject(lab, fault, lab.host(1))
    told = Told(fault)
    within_s = STOPPED_WITHIN_S if fault.traffic is FLOWS else TOLD_WITHIN_S
    try:
        while time.monotonic() - began < within_s:
            if said := await conditions(lab):
                host, words = said[0]
                told = Told(fault, host, words, time.monotonic() - began)
                break
            await asyncio.sleep(LOOK_S)
    finally:
        await faults.heal(lab)

    async def silent() -> bool:
        return not await conditions(lab)

    try:
        await lab.until(silent, timeout_s=SILENT_WITHIN_S, every_s=LOOK_S)
    except TimedOutError:
        return Told(fault, told.host, f"{told.words}; and still: {await conditions(lab)}", told.after_s, silent=False)
    return told


async def show(backend: str, console: Console) -> bool:
    """A lab of two hosts, every fault in turn; true where all are well."""
    table = Table(title=f"{backend}: two hosts, each fault on h1")
    for column in ("fault", "packets", "told after", "by", "in these words"):
        table.add_column(column, overflow="fold")
    well = True
    async with Lab.up(Topology(hosts=2, backend=backend), name=f"gal{os.getpid()}") as lab:
        await lab.start_agents()
        await lab.connect_containers()
        for fault in FAULTS:
            if not fault.fits(backend):
                continue
            told = await ask(lab, fault)
            well &= told.well
            after = "not" if told.after_s is None else f"{told.after_s:.0f} s"
            style = "" if told.well else "red"
            table.add_row(fault.name, fault.traffic.value, after, told.host, told.words, style=style)
            console.print(f"{fault.name}: told {after}{'' if told.well else '  <-- '}", highlight=False)
    console.print(table)
    return well


def main() -> int:
    """0 where everything that kills packets is told, and ends when it is healed."""
    parser = argparse.ArgumentParser(prog="gallery", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="vxlan", choices=("vxlan", "udp", "host-gw"))
    backend = parser.parse_args().backend
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        return 0 if asyncio.run(show(backend, console)) else 1
    except LabError as error:
        print(f"gallery: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
