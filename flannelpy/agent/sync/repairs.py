"""What has somebody else changed, and what was put right? Said in the log and as events, the first few of a round one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from flannelpy.agent.sync.drift import Damping
from flannelpy.core.objects import Key
from flannelpy.core.plan import Step

log = logging.getLogger(__name__)

LOGGED = 3
"""Repairs of one round that are logged one by one."""


class Repairs:
    """What somebody else has changed, and was put right. ``count``: how often; ``last``: when (in the loop's time) and what."""

    def __init__(self) -> None:
        self.count = 0
        self.last: tuple[float, Step] | None = None
        self.damping = Damping()
        self.listener: Callable[[str, str], None] = lambda _subject, _text: None
        """Who is told the first few of each round, by object and step, and how many more there were."""
        self._late: set[Key] = set()

    def suppress(self, keys: Iterable[Key], now: float) -> set[Key]:
        """Those of these that must wait."""
        late = self.damping.suppress(keys, now)
        self._late |= late
        return late

    @property
    def next_due(self) -> float | None:
        """When one that waits may be repaired."""
        return self.damping.next_due(self._late)

    def take_due(self, now: float) -> list[Key]:
        """Those that may be repaired now."""
        due = [key for key in self._late if (when := self.damping.next_due([key])) is None or when <= now]
        self._late.difference_update(due)
        return due

    def note(self, steps: Sequence[Step]) -> None:
        """These are made now."""
        self.count += len(steps)
        if steps:
            self.last = asyncio.get_running_loop().time(), steps[-1]
        for step in steps[:LOGGED]:
            self.listener(str(step.key), str(step))
            log.warning("%s was changed by somebody else; repairing: %s", step.key, step)
        if (more := len(steps) - LOGGED) > 0:
            objects = "kernel object was" if more == 1 else "kernel objects were"
            self.listener("", f"{more:,} more {objects} changed by somebody else, and repaired")
            log.warning("%d more %s changed by somebody else; repairing them, too", more, objects)
