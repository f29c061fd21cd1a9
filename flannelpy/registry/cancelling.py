"""Who was cancelled: this task, or only the call that it has waited for? Both end in the same exception.

And the other way round: what a cancelled task waits for may fail at that very moment, and then asyncio tells of the failure only.
``asyncio.TaskGroup`` of Python 3.11 and 3.12 does so; and where a task of its fails while it waits for them, it leaves the task
that it is in counted as cancelled (gh-116720). Who tries anew whatever fails would do so for ever, or never again.
"""

from __future__ import annotations

import asyncio


def cancelled() -> bool:
    """True where this very task was cancelled; else a CancelledError is the end of somebody's work, as another failure would be."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def end_if_cancelled() -> None:
    """Of use after a failure, before a new try. Raises CancelledError where this task was cancelled meanwhile."""
    if cancelled():
        raise asyncio.CancelledError
