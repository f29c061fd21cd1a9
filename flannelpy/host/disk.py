"""How does a loop wait for a disk? Beside it, one thing at a time, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from flannelpy.core.errors import FlannelpyError

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long a disk may take, in seconds, before it is told; what it was asked for goes on all the same."""


class Disk:
    """Work that may wait for a disk, one piece after the other whoever asks. A disk that does not answer holds one thread, however
    often it is asked.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._busy: asyncio.Future[Any] | None = None

    async def do(self, work: Callable[[], T], what: object) -> T:
        """What ``work`` returns, or raises. Raises FlannelpyError, with ``what`` in it, where the disk does not answer in time."""
        until = asyncio.get_running_loop().time() + self._patience_s
        while self._busy is not None and not self._busy.done():  # another may have been first when it was
            await self._wait(self._busy, until, what)
        doing = asyncio.ensure_future(asyncio.to_thread(work))
        self._busy = doing
        doing.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may be gone
        await self._wait(doing, asyncio.get_running_loop().time() + self._patience_s, what)
        return doing.result()

    async def drain(self) -> None:
        """Return when nothing is on its way any more; where the disk does not answer, after that time."""
        if self._busy is not None:
            await asyncio.wait([self._busy], timeout=self._patience_s)

    async def _wait(self, work: asyncio.Future[Any], until: float, what: object) -> None:
        await asyncio.wait([work], timeout=max(0.0, until - asyncio.get_running_loop().time()))
        if not work.done():
            raise FlannelpyError(f"{what}: the disk does not answer: {self._patience_s:g} s, and still waiting")
