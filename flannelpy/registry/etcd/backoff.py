"""How long is waited before the next try? Longer each time, with chance in it: hosts that lost etcd together return one by one."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Pauses that double from ``first_s`` to ``longest_s``, each between half of it and all of it. ``settled`` begins anew."""

    first_s: float = 0.2
    longest_s: float = 2.0
    tries: int = 0

    def pause(self) -> float:
        """The next pause, in seconds."""
        whole = min(self.longest_s, self.first_s * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return whole * random.uniform(0.5, 1.0)

    def settled(self) -> None:
        """It went well: the next failure is a first one again."""
        self.tries = 0
