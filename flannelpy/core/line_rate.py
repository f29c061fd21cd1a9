"""How many lines of a kind are written in a minute? So many; the rest is counted, and none is lost without a count."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Window:
    began: float
    passed: int = 0
    held: int = 0


@dataclass(slots=True)
class LineRate(Generic[K]):
    """At most ``most`` lines of a kind in ``window_s`` seconds; what is more is counted. Pure: ``now`` is handed in, in seconds.

    ``kinds`` bounds what is remembered: of so many kinds at a time the oldest is forgotten.
    """

    most: int = 20
    window_s: float = 60.0
    kinds: int = 1000
    _windows: dict[K, _Window] = field(default_factory=dict)

    def allows(self, kind: K, now: float, count: int = 1) -> bool:
        """True where one more line of ``kind`` may be written now; else the ``count`` that it stands for is held back."""
        window = self._windows.get(kind)
        if window is None or (not window.held and self._is_over(window, now)):
            self._windows.pop(kind, None)
            if len(self._windows) >= self.kinds:
                del self._windows[next(iter(self._windows))]
            window = self._windows[kind] = _Window(now)
        if window.passed < self.most:
            window.passed += 1
            return True
        window.held += count
        return False

    def take_held(self, now: float) -> dict[K, int]:
        """How many lines of each kind were held back in the windows that are over, to be written as one count each."""
        over = {kind: window for kind, window in self._windows.items() if self._is_over(window, now)}
        for kind in over:
            del self._windows[kind]
        return {kind: window.held for kind, window in over.items() if window.held}

    def next(self) -> float | None:
        """When ``take_held`` has something next; None where nothing is held back."""
        return min((window.began + self.window_s for window in self._windows.values() if window.held), default=None)

    def _is_over(self, window: _Window, now: float) -> bool:
        """Also where the clock was set back: a window that lies ahead would never end."""
        return not window.began <= now < window.began + self.window_s
