"""How much may be said in how short a time? A bucket of tokens; pure, ``now`` is handed in, in seconds."""

from __future__ import annotations


class Rate:
    """``burst`` at once, and ``burst`` more every ``every_s``. What may not be said is counted."""

    def __init__(self, burst: int, every_s: float) -> None:
        self.left_out = 0
        """What was not allowed since this was last read and set to 0."""
        self._burst, self._every_s = float(burst), every_s
        self._tokens, self._at = float(burst), 0.0

    def allows(self, now: float) -> bool:
        """True where one more may be said now."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._burst / self._every_s)
        self._at = now
        if self._tokens < 1.0:
            self.left_out += 1
            return False
        self._tokens -= 1.0
        return True
