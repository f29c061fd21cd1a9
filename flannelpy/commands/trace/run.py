"""What does ``flannelpy trace`` do? It asks the agent, the kernel and the other end, and prints hop by hop what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from flannelpy import __version__
from flannelpy.commands import terminal
from flannelpy.commands.doctor.about import About, knowing
from flannelpy.commands.trace import target
from flannelpy.commands.trace.walk import walk
from flannelpy.core.foreign import LINE, printable
from flannelpy.core.trace import Hop, Journey
from flannelpy.explain.trace import exit_code, to_json, verdict
from flannelpy.options import Given

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 132
_STYLES = {"passes": "green", "note": "yellow", "large": "red", "stops": "red", "unknown": "yellow"}


def trace(given: Given, dst: str, source: str | None, *, as_json: bool) -> int:
    """Print the journey; the exit code by what becomes of the packet. Raises UsageError, FlannelpyError."""
    import uvloop

    journey = uvloop.run(_trace(given, dst, source))
    if as_json:
        click.echo(to_json(journey, __version__))
    else:
        terminal.show(page(journey), wide=WIDE)
        click.echo()
        terminal.say(verdict(journey))
        if journey.stop is not None and journey.outcome != "unknown" and journey.stop.remedy:
            terminal.say(f"what to do: {journey.stop.remedy}")
    return exit_code(journey)


async def _trace(given: Given, dst: str, source: str | None) -> Journey:
    async with knowing(given) as about:
        return await journey_of(about, dst, source)


async def journey_of(about: About, dst: str, source: str | None) -> Journey:
    """Raises UsageError, FlannelpyError."""
    to = target.destination(about, dst)
    journey = await walk(about, target.source(about, source, to.address.version), to)
    return replace(journey, hops=tuple(_printable(hop) for hop in journey.hops))


def page(journey: Journey) -> Table:
    """A hop a line."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("hop", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column(f"{journey.source} to {journey.destination}", overflow="fold")
    shown.add_column("MTU", justify="right", no_wrap=True)
    for hop in journey.hops:
        style = _STYLES[hop.state]
        said = f"{hop.said}: {hop.remedy}" if hop.state == "note" and hop.remedy else hop.said
        shown.add_row(Text(hop.name), Text(hop.state, style=style), Text(said), Text(str(hop.mtu or "")))
    return shown


def _printable(hop: Hop) -> Hop:
    return replace(hop, said=printable(hop.said, LINE), remedy=printable(hop.remedy, LINE))
