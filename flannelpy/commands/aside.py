"""How is something waited for that nobody can cut short (a disk, the resolver)? In a thread that holds up nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Found = TypeVar("Found")


async def aside(work: Callable[[], Found], name: str) -> Found:
    """What ``work`` returns or raises. In a daemon: whoever waits no more, goes, and so does the process, as it ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Found] = loop.create_future()

    def settle(outcome: Found | None, failure: Exception | None) -> None:
        if not done.done():
            done.set_result(outcome) if failure is None else done.set_exception(failure)  # type: ignore[arg-type]

    def run() -> None:
        outcome, failure = None, None
        try:
            outcome = work()
        except Exception as error:  # noqa: BLE001 - the edge of a thread
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
