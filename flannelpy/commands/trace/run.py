"""What does ``flannelpy trace`` do? It asks the agent, the kernel and the other end, and prints hop by hop what they say."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from flannelpy import __version__
from flannelpy.commands import terminal
from flannelpy.commands.doctor.about import About, knowing
from flannelpy.commands.trace import target
from flannelpy.commands.trace.drawing import draw
from flannelpy.commands.trace.live import Watched, shown, watch
from flannelpy.commands.trace.walk import walk
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import LINE, printable
from flannelpy.core.sightings import Sighting, Way
from flannelpy.core.trace import Hop, Journey
from flannelpy.explain.trace import exit_code, to_json, verdict
from flannelpy.options import Given

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 132
UNSURE = 1400
"""Bytes of a full packet where the overlay's MTU is not known."""
_STYLES = {"passes": "green", "note": "yellow", "large": "red", "stops": "red", "unknown": "yellow"}


def trace(given: Given, dst: str, source: str | None, *, live: bool, as_json: bool) -> int:
    """Print the journey, and with ``live`` what a real packet met; the exit code by what becomes of it.

    Raises UsageError, FlannelpyError.
    """
    import uvloop

    journey, watched = uvloop.run(_trace(given, dst, source, live=live))
    if as_json:
        click.echo(to_json(journey, __version__, _live(watched)))
    else:
        click.echo("\n".join(page(journey, terminal.width(WIDE), colours=terminal.has_colours())))
        click.echo()
        terminal.say(verdict(journey))
        if journey.stop is not None and journey.outcome != "unknown" and journey.stop.remedy:
            terminal.say(f"what to do: {journey.stop.remedy}")
        if watched is not None:
            click.echo()
            _show(watched)
    return exit_code(journey, None if watched is None else isinstance(watched, Watched) and watched.answered)


async def _trace(given: Given, dst: str, source: str | None, *, live: bool) -> tuple[Journey, Watched | str | None]:
    """The last: what a real packet met, or why that could not be found out; None where nobody asks."""
    async with knowing(given) as about:
        journey, way = await _walked(about, dst, source)
        if not live:
            return journey, None
        if not way.uplink and not way.overlay:
            return journey, f"--live: nothing would leave this host for {journey.destination}"
        try:
            return journey, watch(way, journey.source, journey.destination, about.mtu or UNSURE, invented=source is None)
        except FlannelpyError as error:
            return journey, printable(str(error), LINE)


async def journey_of(about: About, dst: str, source: str | None) -> Journey:
    """Raises UsageError, FlannelpyError."""
    return (await _walked(about, dst, source))[0]


async def _walked(about: About, dst: str, source: str | None) -> tuple[Journey, Way]:
    to = await target.destination(about, dst)
    journey, way = await walk(about, target.source(about, source, to.address.version), to)
    return replace(journey, hops=tuple(_printable(hop) for hop in journey.hops)), way


# ----------------------------------------------------------------------------------------------------------------- live


def _show(watched: Watched | str) -> None:
    if isinstance(watched, str):
        terminal.say(watched)
        return
    terminal.show(sightings(watched), wide=WIDE)
    if (frame := telling(watched)) is not None:
        click.echo()
        for line in _drawn(watched, frame):
            terminal.say(line)
    click.echo()
    for outcome in watched.outcomes:
        terminal.say(f"live: {outcome.said}")


def sightings(watched: Watched) -> Table:
    """Where the packets were seen: of each size the last that was sent."""
    from rich.table import Table
    from rich.text import Text

    shown_ = Table(box=None, pad_edge=False, header_style="bold")
    for column, side in (("live, ms", "right"), ("bytes", "right"), ("where", "left"), ("", "left"), ("what", "left")):
        shown_.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    for one in shown(watched):
        said = f"echo {one.kind}" if one.kind != "error" else one.said
        cells = (f"{one.after_s * 1000:.2f}", str(len(one.data)), one.place, "sent" if one.sent else "came in", said)
        shown_.add_row(*(Text(printable(cell)) for cell in cells))
    return shown_


def telling(watched: Watched) -> Sighting | None:
    """The frame that is worth drawing: as it left this host, else where it was last; of small and full ones what was lost."""
    lost = next((outcome for outcome in watched.outcomes if not outcome.answered), watched.outcomes[-1])
    sequence = 0 if lost.last is None else lost.last.sequence
    ours = [one for one in watched.seen if one.sequence == sequence and one.kind == "request"]
    return next((one for one in ours if one.place == watched.way.uplink), ours[-1] if ours else lost.last)


def _drawn(watched: Watched, one: Sighting) -> list[str]:
    title = f"{one.place}, {'sent' if one.sent else 'came in'}, {len(one.data)} bytes"
    return draw(one.data, title, watched.way.envelope if one.place == watched.way.uplink else None, watched.mark)


def _live(watched: Watched | str | None) -> dict[str, object] | None:
    """For programs."""
    if watched is None:
        return None
    if isinstance(watched, str):
        return {"error": watched}
    frame = telling(watched)
    return {
        "answered": watched.answered,
        "outcomes": [
            {"size": one.size, "answered": one.answered, "said": one.said, "lastSeen": None if one.last is None else one.last.place}
            for one in watched.outcomes
        ],
        "sightings": [
            {
                "place": one.place,
                "sent": one.sent,
                "kind": one.kind,
                "sequence": one.sequence,
                "afterMs": round(one.after_s * 1000, 3),
                "bytes": len(one.data),
                "said": one.said,
            }
            for one in watched.seen
        ],
        "drawing": [] if frame is None else _drawn(watched, frame),
    }


def page(journey: Journey, width: int, *, colours: bool) -> list[str]:
    """A hop a line, and those that what it says goes on in. Without rich, whose import takes a fifth of the time of it all."""
    names = max(len(hop.name) for hop in journey.hops)
    states = max(len(state) for state in _STYLES)
    sizes = [str(hop.mtu or "") for hop in journey.hops]
    said = [f"{hop.said}: {hop.remedy}" if hop.state == "note" and hop.remedy else hop.said for hop in journey.hops]
    head = f"{journey.source} to {journey.destination}"
    room = max(20, width - names - states - max(map(len, ("MTU", *sizes))) - 6)
    folded = [textwrap.wrap(text, room, break_on_hyphens=False) or [""] for text in said]
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
