"""What if nobody tells? Everything is looked at now and then, and at short intervals what the kernel changes without a word."""

from __future__ import annotations

import asyncio
from random import Random

from flannelpy.agent.beat import beat
from flannelpy.agent.heap import give_back
from flannelpy.agent.sync.reconcile import SILENT_S, Reconciler

AUDIT_S = 300.0
"""A full observation about this often, in seconds, under the notifications."""

SETTLES_S = 3.0
"""So long after a full look what it took for a moment is free: answers of libraries in other threads, too."""


def look_anew(reconciler: Reconciler) -> None:
    """Have it look at everything, and try at once what waits: what that waited for has come."""
    reconciler.hasten()
    reconciler.resync()


async def audit(reconciler: Reconciler) -> None:
    """Have the reconciler look, for ever; and some seconds after each full look, give back the memory that it took."""
    loop = asyncio.get_running_loop()
    due = loop.time() + AUDIT_S * Random().uniform(0.8, 1.0)
    settled_at: float | None = None
    full = True
    while True:
        await beat(SILENT_S)
        now = loop.time()
        if full and reconciler.settled:
            full, settled_at = False, now
        if settled_at is not None and now >= settled_at + SETTLES_S:
            settled_at = None
            give_back()
        if now >= due:
            due = now + AUDIT_S
            full = True
            reconciler.resync()
        reconciler.look_at_silent()
