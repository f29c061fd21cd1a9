"""What becomes of a part of the agent that fails? It is reported, and begins anew; nothing but its owner ends the agent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from flannelpy.agent.report import Reporter
from flannelpy.core.errors import FlannelpyError
from flannelpy.registry.cancelling import end_if_cancelled

log = logging.getLogger("flannelpy")

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 10.0
STEADY_S = 5.0
"""A part that has run for so long has recovered."""


class EndAgentError(FlannelpyError):
    """The owner wants the agent to end here (``--exit-on-subnet-change``). With a signal, wrong options and a lost lock, the whole
    list of what ends it.
    """


async def guarded(name: str, work: Callable[[], Awaitable[None]], reporter: Reporter) -> None:
    """Run ``work`` until it returns, however often it raises. Raises EndAgentError, and CancelledError when it is cancelled.

    A CancelledError that nobody meant for this task is a failure like another: a TaskGroup would let the part go in silence.
    """
    loop = asyncio.get_running_loop()
    delay, said = FIRST_RETRY_S, ""
    while True:
        began = loop.time()
        recovered = loop.call_later(STEADY_S, reporter.end, "task-failed", name)
        try:
            await work()
        except EndAgentError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            end_if_cancelled()
            delay = FIRST_RETRY_S if loop.time() - began > STEADY_S else delay
            words = f"{type(error).__name__}: {error}"
            reporter.begin("task-failed", f"{name}: {words}", name)
            if words != said and not isinstance(error, FlannelpyError):
                log.debug("%s failed", name, exc_info=error)
            said = words
        else:
            reporter.end("task-failed", name)
            return
        finally:
            recovered.cancel()
        await asyncio.sleep(delay)
        delay = min(delay * 2, LAST_RETRY_S)
