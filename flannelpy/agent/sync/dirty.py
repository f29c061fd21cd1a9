"""What must the next round look at? What arrives while one runs is collected here, and waits for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from flannelpy.core.objects import Key

ROUNDS, ROUNDS_PER_S = 50, 50.0
"""So many rounds follow each other at once; then so many a second. A round costs something of its own, however little it looks at:
thousands of changes a second, one by one, would take all the time that reading them needs."""


class Dirty:
    """What the next round must look at: keys, or everything."""

    def __init__(self) -> None:
        self._keys: set[Key] = set()
        self._everything = False
        self._event = asyncio.Event()
        self._left, self._left_at = float(ROUNDS), 0.0

    def add(self, keys: Iterable[Key]) -> None:
        """Look at these."""
        self._keys.update(keys)
        if self._keys:
            self._event.set()

    def add_everything(self) -> None:
        """Look at everything."""
        self._everything = True
        self._event.set()

    def put_back(self, taken: set[Key] | None) -> None:
        """What was taken was not looked at."""
        if taken is None:
            self.add_everything()
        else:
            self.add(taken)

    def poke(self) -> None:
        """Have a round now; what it looks at is found out then."""
        self._event.set()

    async def wait(self, at_most_s: float) -> None:
        """Until there is something to look at, or so many seconds."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._event.wait()
        except TimeoutError:
            return
        await self._gather()

    async def _gather(self) -> None:
        """Where one round has chased the other for long, wait for company."""
        now = asyncio.get_running_loop().time()
        self._left = min(ROUNDS, self._left + (now - self._left_at) * ROUNDS_PER_S) - 1.0
        self._left_at = now
        if self._left < 0.0:
            await asyncio.sleep(-self._left / ROUNDS_PER_S)

    @property
    def pending(self) -> bool:
        """True where a round is due."""
        return self._event.is_set()

    def take(self) -> set[Key] | None:
        """The keys that are dirty, None for everything; cleared."""
        keys, everything = self._keys, self._everything
        self._keys, self._everything = set(), False
        self._event.clear()
        return None if everything else keys
