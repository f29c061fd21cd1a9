"""When do those look who look now and then? Together: a process that wakes once a second costs a third of one that wakes thrice."""

from __future__ import annotations

import asyncio
from random import SystemRandom

PHASE_S = SystemRandom().uniform(0.0, 15.0)
"""Where a beat begins: each process has its own, or all agents of a lab would wake at once."""

EARLY = 0.05
"""Of a period."""


async def beat(period_s: float) -> float:
    """Until the next beat; returns how late it is, in seconds. All who wait so in one process wake at one moment, as the kernel
    does it with what it may defer (timer slack, prctl(2) PR_SET_TIMERSLACK).
    """
    loop = asyncio.get_running_loop()
    due = next_beat(loop.time(), period_s)
    await asyncio.sleep(due - loop.time())
    return loop.time() - due


def next_beat(now: float, period_s: float, phase_s: float = PHASE_S) -> float:
    """The next whole multiple of the period, unless that is all but here: a timer that ends a moment too early ends once."""
    due = phase_s + ((now - phase_s) // period_s + 1.0) * period_s
    return due if due - now >= EARLY * period_s else due + period_s
