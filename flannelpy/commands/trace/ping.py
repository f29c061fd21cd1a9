"""What does ``flannelpy ping`` do? It asks once a second, small and full, as the agent's probes do, and prints what came back."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import click

from flannelpy.commands import terminal
from flannelpy.commands.doctor.about import knowing
from flannelpy.commands.trace import asking, target
from flannelpy.explain.trace import FAULT, WELL
from flannelpy.options import Given

EVERY_S = 1.0
UNSURE = 1400
"""Bytes of a full packet where the overlay's MTU is not known."""


@dataclass(slots=True)
class Sum:
    """``asked``: how often; ``came``: how often a question was answered. ``address`` is not known before the first."""

    asked: int = 0
    came: Counter[int] = field(default_factory=Counter)
    sizes: tuple[int, int] = (0, 0)
    address: str = ""


def ping(given: Given, dst: str, count: int) -> int:
    """Print a line for each second and a sum; 0 where all came back, 3 where some did not. Raises UsageError, FlannelpyError.

    As with ping(8), ctrl-C ends it with the sum of what was asked until then.
    """
    import uvloop

    total = Sum()
    try:
        uvloop.run(_ping(given, dst, count, total))
    except KeyboardInterrupt:
        if not total.asked:
            raise
    return conclude(total)


async def _ping(given: Given, dst: str, count: int, total: Sum) -> None:
    async with knowing(given) as about:
        to = await target.destination(about, dst)
        total.address, total.sizes = str(to.address), (asking.SMALL, about.mtu or UNSURE)
        small, full = ((to.address, size) for size in total.sizes)
        for turn in range(count):
            asked = {small: asking.Asked(), full: asking.Asked()}
            pause = asyncio.ensure_future(asyncio.sleep(EVERY_S if turn + 1 < count else 0))
            await asking.ask(about.kernel, asked, enough=[small, full], tries=1)
            total.asked += 1
            total.came.update(question[1] for question, state in asked.items() if state.answered)
            terminal.say(f"{to.address}: {'; '.join(_said(question[1], state) for question, state in asked.items())}")
            await pause


def conclude(total: Sum) -> int:
    """Print the sum; the exit code by it."""
    click.echo()
    missing = [(size, total.asked - total.came[size]) for size in dict.fromkeys(total.sizes) if total.came[size] < total.asked]
    if not missing:
        terminal.say(f"{total.address} answers: {total.asked} of {total.asked}, small and full")
        return WELL
    lost = ", ".join(f"{number} of {total.asked} with {size} bytes" for size, number in missing)
    terminal.say(f"lost: {lost}; flannelpy trace {total.address} says what stops them")
    return FAULT


def _said(size: int, state: asking.Asked) -> str:
    if state.rtt_s is not None:
        return f"{size} bytes in {state.rtt_s * 1000:.2f} ms"
    if state.carries:
        return f"{size} bytes: too large, the way carries {state.carries}"
    return f"{size} bytes: {state.error or 'no answer'}"
