"""What if somebody else changes a kernel object as often as we repair it? A few repairs are made at once, the rest with pauses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flannelpy.core.objects import Key

AT_ONCE = 5
"""Repairs of one key in a row that are made without a pause."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.4, 30.0

QUIET_S = 60.0
"""A key that nobody touched for so long is contested no longer."""


@dataclass(slots=True)
class Contest:
    """One key: repairs in a row, when the last one was due, whether the next one waits, or has waited."""

    count: int = 0
    last: float = 0.0
    waiting: bool = False
    granted: bool = False


class Contests:
    """The keys that were repaired lately."""

    def __init__(self) -> None:
        self._contests: dict[Key, Contest] = {}

    def put_off(self, keys: Iterable[Key], now: float) -> dict[Key, float | None]:
        """Of these keys, to be repaired now, those that must wait: for so many seconds, or (None) as was said before."""
        late: dict[Key, float | None] = {}
        for key in keys:
            contest = self._contests.setdefault(key, Contest(last=now))
            if contest.waiting:
                late[key] = None
                continue
            contest.count = contest.count + 1 if now - contest.last < QUIET_S else 1
            contest.last = now
            if contest.count > AT_ONCE and not contest.granted:
                contest.waiting = True
                late[key] = min(FIRST_PAUSE_S * 2.0 ** (contest.count - AT_ONCE - 1), LAST_PAUSE_S)
            contest.granted = False
        return late

    def grant(self, key: Key) -> None:
        """The pause of ``key`` is over: its next repair is made."""
        contest = self._contests.get(key)
        if contest is not None:
            contest.waiting, contest.granted = False, True

    def settle(self, now: float) -> list[Key]:
        """The keys that nobody has touched for QUIET_S; they are forgotten."""
        quiet = [key for key, contest in self._contests.items() if not contest.waiting and now - contest.last >= QUIET_S]
        for key in quiet:
            del self._contests[key]
        return quiet
