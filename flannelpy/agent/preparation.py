"""What does a backend have to find out before there is a lease? It is asked once, again after a failure, and nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from flannelpy.agent.report import Reporter
from flannelpy.core.backend import Backend, Prepares
from flannelpy.core.errors import FlannelpyError

FAILED = "preparation-failed"
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0

_Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """``text``: what came of it, for ``Local.prepared``."""

    text: str | None


NOTHING = Prepared(None)


class Preparation:
    """The preparation of one backend at a time. ``wake`` is called when one is done."""

    def __init__(self, reporter: Reporter, wake: Callable[[], None]) -> None:
        self._reporter = reporter
        self._wake = wake
        self._wanted: tuple[_Name, Prepares] | None = None
        self._done: tuple[_Name, Prepared] | None = None
        self._changed = asyncio.Event()

    def of(self, backend: Backend) -> Prepared | None:
        """What came of it; None while it is under way, which ``wake`` ends."""
        name, done = _name(backend), NOTHING
        if isinstance(backend, Prepares) and name is not None:
            if self._done is None or self._done[0] != name:
                if self._wanted is None or self._wanted[0] != name:
                    self._wanted = name, backend
                    self._changed.set()
                return None
            done = self._done[1]
        if self._wanted is not None:  # another's, which is given up
            self._wanted = None
            self._changed.set()
        return done

    def carried(self, backend: Backend) -> None:
        """The host carries the overlay by this now: what another one's has made may be gone when that is wanted again."""
        if self._done is not None and self._done[0] != _name(backend):
            self._done = None

    async def run(self) -> None:
        """Prepare what is wanted, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._reporter.set(FAILED, {})
            if self._wanted is None:
                continue
            preparing = asyncio.create_task(self._prepare(*self._wanted), name="prepare")
            changed = asyncio.create_task(self._changed.wait(), name="preparation changed")
            try:
                await asyncio.wait({preparing, changed}, return_when=asyncio.FIRST_COMPLETED)
                if preparing.done():
                    preparing.result()
            except Exception:
                self._changed.set()  # whoever begins this task anew finds it wanted
                raise
            finally:
                changed.cancel()
                preparing.cancel()
                await asyncio.gather(preparing, return_exceptions=True)

    async def _prepare(self, name: _Name, backend: Prepares) -> None:
        delay = FIRST_RETRY_S
        while True:
            try:
                text = await backend.prepare()
            except (FlannelpyError, OSError) as error:
                self._reporter.set(FAILED, {"": str(error)})
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY_S)
                continue
            self._reporter.set(FAILED, {})
            self._done, self._wanted = (name, Prepared(text)), None
            self._wake()
            return


def _name(backend: Backend) -> _Name | None:
    return (backend.name, backend.preparation) if isinstance(backend, Prepares) else None
