"""What does a person see of each fault? The gallery in docs/troubleshooting.md, made from the table of causes and a lab.

    python -m netns_lab gallery_page        puts each fault into a lab, and writes what the commands really say into the page

What the table says (which faults there are, how they are put in and taken out, which command names them) is compared with the page
by a test; so is that the words of the table are in what was said.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netns_lab import causes, faults
from netns_lab.causes import CAUSES, STATUS, Cause
from netns_lab.errors import LabError
from netns_lab.faults import Fault
from netns_lab.lab import Lab
from netns_lab.topology import Topology

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- made: gallery -->\n", "<!-- end -->\n"
SHOWN = re.compile(r"^(ready|peers|conditions) ")
"""Of ``flannelpy status`` these lines and those that go on with one of them; the others say what is well."""
WITHIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Captured:
    """What was typed on which host, and what it said."""

    host: str
    typed: str
    lines: tuple[str, ...]


def section(captured: Mapping[str, Captured]) -> str:
    """What stands between the markers; a fault of which nothing was captured has no output."""
    return "".join(_entry(cause, captured.get(cause.name)) for cause in CAUSES)


def _entry(cause: Cause, said: Captured | None) -> str:
    fault = cause.fault
    head = textwrap.fill(f"{fault.says[0].upper()}{fault.says[1:]}. Packets of containers: {fault.traffic.value}.", 120)
    made = [
        f"netns-lab/lab fault {cause.name}",
        *_wrapped(fault, fault.inject, "typed in"),
        *_wrapped(fault, fault.heal, "mended in"),
    ]
    lines = [] if said is None else [f"{said.host}$ {said.typed}", *said.lines]
    return f"\n### {cause.name}\n\n{head}\n\n" + _fence("console", made) + "\n" + _fence("log", lines)


def _fence(language: str, lines: Sequence[str]) -> str:
    return f"```{language}\n" + "".join(line.rstrip() + "\n" for line in lines) + "```\n"


def _wrapped(fault: Fault, command: str, how: str) -> list[str]:
    words = command or "(the agent repairs it by itself)"
    return textwrap.wrap(
        f"# {how} {fault.where}: {words}" if command else f"# {words}",
        120,
        subsequent_indent="#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def captured_in(text: str) -> dict[str, Captured]:
    """What the page holds of earlier runs."""
    found = {}
    for name, block in re.findall(r"^### (\S+)\n.*?^```log\n(.*?)^```$", _between(text), re.MULTILINE | re.DOTALL):
        if block:
            first, *lines = block.splitlines()
            host, _dollar, typed = first.partition("$ ")
            found[name] = Captured(host, typed, tuple(lines))
    return found


def _between(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def with_section(text: str, made: str) -> str:
    """The page with what is between its markers made anew."""
    head, there, rest = text.partition(BEGIN)
    assert there, f"no {BEGIN.strip()} in the page"
    return head + BEGIN + made + END + rest.partition(END)[2]


def shown(cause: Cause, lines: Sequence[str]) -> tuple[str, ...]:
    """What of the output the page shows."""
    if cause.command != STATUS:
        return tuple(line.rstrip() for line in lines)
    kept, keep = [], True
    for line in lines:
        if not line.startswith(" "):
            keep = bool(SHOWN.match(line)) or ":" in line.split("  ")[0]
        if keep:
            kept.append(line.rstrip())
    return tuple(kept)


async def capture(lab: Lab) -> dict[str, Captured]:
    """Every fault in turn. Raises LabError where one is not named."""
    found = {}

    async def well() -> bool:
        return not await causes.wrong(lab)

    for cause in CAUSES:
        await lab.until(well, timeout_s=WITHIN_S, every_s=0.3, what=f"nothing is wrong before {cause.name}")
        try:
            named = await causes.look_for(lab, cause, WITHIN_S)
        finally:
            await faults.heal(lab)
        print(f"{cause.name}: {named.after_s:.1f} s")
        found[cause.name] = Captured(named.host, named.typed, shown(cause, named.lines))
    return found


async def _run() -> dict[str, Captured]:
    async with Lab.up(Topology(hosts=2), name=f"page{os.getpid()}") as lab:
        await lab.start_agents()
        await lab.connect_containers()
        return await capture(lab)


def main() -> int:
    """0 when the page is written."""
    try:
        made = section(asyncio.run(_run()))
    except LabError as error:
        print(f"gallery_page: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    PAGE.write_text(with_section(PAGE.read_text(), made))
    return 0
