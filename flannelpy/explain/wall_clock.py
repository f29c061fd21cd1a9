"""What does a calendar say of a moment that the agent's clocks know? For people to read; nothing is decided by it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def wall_clock() -> float:
    """Seconds since the epoch, as far as this machine knows."""
    return time.time()


class Calendar:
    """Turns moments of the agent's clocks into what a calendar says, by what the time is ``now`` (seconds since the epoch)."""

    def __init__(self, now: float) -> None:
        self._now = now

    def ago(self, seconds: float) -> str:
        """That long before now; ISO 8601 in UTC."""
        return datetime.fromtimestamp(self._now - seconds, UTC).isoformat(timespec="milliseconds")
