"""What does ``flannelpy ping`` do? It asks once a second, small and full, as the agent's probes do, and prints what came back."""

from __future__ import annotations

import asyncio

import click

from flannelpy.commands import terminal
from flannelpy.commands.doctor.about import knowing
from flannelpy.commands.trace import asking, target
from flannelpy.explain.trace import FAULT, WELL
from flannelpy.options import Given

EVERY_S = 1.0
UNSURE = 1400
"""Bytes of a full packet where the overlay's MTU is not known."""


def ping(given: Given, dst: str, count: int) -> int:
    """Print a line for each second and a sum; 0 where all came back, 3 where some did not. Raises UsageError, FlannelpyError."""
    import uvloop

    return uvloop.run(_ping(given, dst, count))


async def _ping(given: Given, dst: str, count: int) -> int:
    async with knowing(given) as about:
        to = await target.destination(about, dst)
        size = about.mtu or UNSURE
        small, full = (to.address, asking.SMALL), (to.address, size)
        came = {small: 0, full: 0}
        for turn in range(count):
            asked = {small: asking.Asked(), full: asking.Asked()}
            pause = asyncio.ensure_future(asyncio.sleep(EVERY_S if turn + 1 < count else 0))
            await asking.ask(about.kernel, asked, enough=[small, full], tries=1)
            for question, state in asked.items():
                came[question] += state.answered
            terminal.say(f"{to.address}: {'; '.join(_said(question[1], state) for question, state in asked.items())}")
            await pause
    click.echo()
    lost = [f"{count - number} of {count} with {size} bytes" for (_address, size), number in came.items() if number < count]
    if not lost:
        terminal.say(f"{to.address} answers: {count} of {count}, small and full")
        return WELL
    terminal.say(f"lost: {', '.join(lost)}; flannelpy trace {to.address} says what stops them")
    return FAULT


def _said(size: int, state: asking.Asked) -> str:
    if state.rtt_s is not None:
        return f"{size} bytes in {state.rtt_s * 1000:.2f} ms"
    if state.carries:
        return f"{size} bytes: too large, the way carries {state.carries}"
    return f"{size} bytes: {state.error or 'no answer'}"
