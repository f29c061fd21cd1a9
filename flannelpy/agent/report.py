"""Who says what is wrong? One place takes every condition and reports it: in the log once when it begins and once when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from flannelpy.core.conditions import RegistryName
from flannelpy.core.health import Health, Transition
from flannelpy.core.line_rate import LineRate

log = logging.getLogger("flannelpy")

BURST = 5
"""Lines of one code that are logged in full at a time; the rest is counted in one more line."""

Clock = Callable[[], float]
_Kind = tuple[str, bool]  # a condition's code, and whether it is resolved


class Reporter:
    """The health of this agent, reported as it changes. ``clock`` is monotonic, in seconds; ``registry``: how that is called."""

    def __init__(self, clock: Clock, registry: RegistryName = RegistryName.ETCD) -> None:
        self.health = Health(registry)
        self.listeners: list[Callable[[Sequence[Transition]], None]] = [_Log(clock)]
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


class _Log:
    """Logs what is new: the first few of a kind at a time, and so many in a minute, in full; what is more as a count.

    Whoever makes a condition begin and end all day long (a key in etcd, an interface that flaps) fills no disk with it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rate = LineRate[_Kind]()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, news: Sequence[Transition]) -> None:
        now = self._clock()
        full, more = Counter[_Kind](), Counter[_Kind]()
        for item in news:
            kind = item.active.condition.code, item.resolved
            if item.count > 1 or full[kind] >= BURST:
                more[kind] += item.count
                continue
            full[kind] += 1
            if not self._rate.allows(kind, now):
                continue
            if item.resolved:
                log.info("resolved: %s", item.active.text)
            else:
                log.log(item.active.condition.severity, "%s", item.active.text)
        for kind, count in more.items():
            if self._rate.allows(kind, now, count):
                _log_more(kind, count)
        self._come_back(now)

    def _come_back(self, now: float) -> None:
        due = self._rate.next()
        if self._timer is None and due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._tell_held)

    def _tell_held(self) -> None:
        self._timer, now = None, self._clock()
        for kind, count in self._rate.take_held(now).items():
            _log_more(kind, count)
        self._come_back(now)


def _log_more(kind: _Kind, count: int) -> None:
    code, resolved = kind
    log.warning("%s%s: %d more of the kind", "resolved: " if resolved else "", code, count)
