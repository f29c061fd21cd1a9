"""How does a day pass in a second? An event loop whose clock jumps to the next timer as soon as nothing is left to be done.

    run(main())        as asyncio.run, in virtual time

Work for threads (``asyncio.to_thread``) is done at once and takes no time: a clock that jumped while a thread works would make of
every file that is written a matter of chance. Descriptors that something of this process makes readable are seen before the clock
moves; what another process may send later is not waited for, so it has no place in here.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")
Events = list[tuple[selectors.SelectorKey, int]]


class NothingLeftError(Exception):
    """Nobody waits for a time, and nothing is readable: this would be a standstill for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """``time`` begins at 0 and moves only by what was waited for."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(JumpingSelector(self._jump))
        self.set_default_executor(AtOnce())

    def time(self) -> float:
        return self.now

    @property
    def timers(self) -> list[str]:
        """The timers that are pending, each in words."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return sorted(str(handle) for handle in scheduled if not handle.cancelled())

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is no thread to be waited for: asyncio's own way takes one, which this clock does not wait for either."""

    def _jump(self, seconds: float | None) -> None:
        if seconds is None:
            raise NothingLeftError("nobody waits for a time, and nothing is readable")
        self.now += seconds


class JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Where nothing is readable at once, ``jump`` is told how long the loop wanted to wait, and it is as if that had passed."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> Events:
        found: Events = super().select(0)
        if not found and (timeout is None or timeout > 0):
            self._jump(timeout)
        return found


class AtOnce(ThreadPoolExecutor):
    """Whatever is to be done in a thread is done here and now."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
            done.set_exception(error)
        return done


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run ``main`` to its end in virtual time. Raises what it raises, and NothingLeftError where it can never end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
