"""Who was cancelled: this task, or only the call that it has waited for? Both end in the same exception."""

from __future__ import annotations

import asyncio


def cancelled() -> bool:
    """True where this very task was cancelled; else a CancelledError is the end of somebody's work, as another failure would be."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
