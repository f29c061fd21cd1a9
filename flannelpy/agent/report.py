"""Who says what is wrong? One place takes every condition and reports it: in the log once when it begins and once when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence

from flannelpy.core.conditions import Health, Transition

log = logging.getLogger("flannelpy")

BURST = 5
"""Lines of one code that are logged in full at a time; the rest is counted in one more line."""

Clock = Callable[[], float]


class Reporter:
    """The health of this agent, reported as it changes. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Clock) -> None:
        self.health = Health()
        self.listeners: list[Callable[[Sequence[Transition]], None]] = [write]
        """Who is handed what begins, changes and ends."""
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._pending = False

    def set(self, code: str, details: Mapping[str, str]) -> None:
        """``code`` holds for exactly these subjects, with these details."""
        self.health.set(code, self._clock(), details)
        self._soon()

    def begin(self, code: str, detail: str, subject: str = "") -> None:
        """``code`` holds for ``subject`` from now on."""
        self.health.begin(code, self._clock(), detail, subject)
        self._soon()

    def end(self, code: str, subject: str = "") -> None:
        """``code`` holds no longer."""
        self.health.end(code, self._clock(), subject)
        self._soon()

    def end_all_but(self, code: str, subjects: Container[str]) -> None:
        """``code`` holds for none but these subjects."""
        self.health.end_all_but(code, self._clock(), subjects)
        self._soon()

    def _soon(self) -> None:
        """Report at the end of this turn of the loop, so that a burst is reported together."""
        if not self._pending:
            self._pending = True
            asyncio.get_running_loop().call_soon(self._report)

    def _report(self) -> None:
        self._pending = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        news, due = self.health.news(self._clock())
        if news:
            for listener in self.listeners:
                listener(news)
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._clock()), self._report)


def write(news: Sequence[Transition]) -> None:
    """Log what is new, the first few of each kind in full."""
    seen: Counter[tuple[str, bool]] = Counter()
    for item in news:
        code = item.active.condition.code
        seen[code, item.resolved] += 1
        if seen[code, item.resolved] > BURST:
            continue
        if item.resolved:
            log.info("resolved: %s", item.active.text)
        else:
            log.log(item.active.condition.severity, "%s", item.active.text)
    for (code, resolved), count in seen.items():
        if count > BURST:
            log.warning("%s%s: %d more of the kind", "resolved: " if resolved else "", code, count - BURST)
