"""Who says what is wrong? One place takes every condition and tells it: to the log once when it begins and once when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from flannelpy.core.conditions import Health, News

log = logging.getLogger("flannelpy")

BURST = 5
"""Lines of one code that are logged in full at a time; the rest is counted in one more line."""

Clock = Callable[[], float]


class Reporter:
    """The health of this agent, told as it changes. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Clock, changed: Callable[[], None] = lambda: None) -> None:
        self.health = Health()
        self._clock = clock
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._pending = False

    def begin(self, code: str, detail: str, subject: str = "") -> None:
        """``code`` holds for ``subject`` from now on."""
        self.health.begin(code, self._clock(), detail, subject)
        self._soon()

    def end(self, code: str, subject: str = "") -> None:
        """``code`` holds no longer."""
        self.health.end(code, subject)
        self._soon()

    def end_all_but(self, code: str, subjects: set[str]) -> None:
        """``code`` holds for none but these subjects."""
        self.health.end_all_but(code, subjects)
        self._soon()

    def forget(self) -> None:
        """Start anew, without a word: whatever still holds will be said again."""
        self.health = Health()

    def _soon(self) -> None:
        """Tell at the end of this turn of the loop, so that a burst is told together."""
        if not self._pending:
            self._pending = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._pending = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        news, due = self.health.news(self._clock())
        write(news)
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._clock()), self._tell)
        self._changed()


def write(news: list[News]) -> None:
    """Log what is new, the first few of each kind in full."""
    seen: Counter[tuple[str, bool]] = Counter()
    for item in news:
        code = item.active.condition.code
        seen[code, item.over] += 1
        if seen[code, item.over] > BURST:
            continue
        if item.over:
            log.info("over: %s", item.active.text)
        else:
            log.log(item.active.condition.severity, "%s", item.active.text)
    for (code, over), count in seen.items():
        if count > BURST:
            log.warning("%s%s: %d more of the kind", "over: " if over else "", code, count - BURST)
