"""What does ``flannelpy trace`` do? It asks the agent, the kernel and the other end, and prints hop by hop what they say."""

from __future__ import annotations

import textwrap
from dataclasses import replace

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

WIDE = 132
_STYLES = {"passes": "green", "note": "yellow", "large": "red", "stops": "red", "unknown": "yellow"}


def trace(given: Given, dst: str, source: str | None, *, as_json: bool) -> int:
    """Print the journey; the exit code by what becomes of the packet. Raises UsageError, FlannelpyError."""
    import uvloop

    journey = uvloop.run(_trace(given, dst, source))
    if as_json:
        click.echo(to_json(journey, __version__))
    else:
        click.echo("\n".join(page(journey, terminal.width(WIDE), colours=terminal.has_colours())))
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


def page(journey: Journey, width: int, *, colours: bool) -> list[str]:
    """A hop a line, and those that what it says goes on in. Without rich, whose import takes a fifth of the time of it all."""
    names = max(len(hop.name) for hop in journey.hops)
    states = max(len(state) for state in _STYLES)
    sizes = [str(hop.mtu or "") for hop in journey.hops]
    said = [f"{hop.said}: {hop.remedy}" if hop.state == "note" and hop.remedy else hop.said for hop in journey.hops]
    head = f"{journey.source} to {journey.destination}"
    room = max(20, width - names - states - max(map(len, ("MTU", *sizes))) - 6)
    folded = [textwrap.wrap(text, room) or [""] for text in said]
    column = max(len(head), *(len(line) for lines in folded for line in lines))
    bold = (lambda text: click.style(text, bold=True)) if colours else str
    lines = [bold(f"{'hop':{names}}  {'':{states}}  {head:{column}}   MTU")]
    for hop, texts, size in zip(journey.hops, folded, sizes, strict=True):
        state = f"{hop.state:{states}}"
        shown = click.style(state, fg=_STYLES[hop.state]) if colours else state
        lines.append(f"{hop.name:{names}}  {shown}  {texts[0]:{column}}  {size:>4}".rstrip())
        lines += [f"{'':{names}}  {'':{states}}  {text}" for text in texts[1:]]
    return lines


def _printable(hop: Hop) -> Hop:
    return replace(hop, said=printable(hop.said, LINE), remedy=printable(hop.remedy, LINE))
