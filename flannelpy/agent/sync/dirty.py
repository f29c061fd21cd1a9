"""What must the next round look at? What arrives while one runs is collected here, and waits for the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from flannelpy.core.objects import Key

BURST_S, SHARE, COMPANY_S = 0.25, 0.1, 0.014
"""Rounds that take so many seconds in all follow each other at once; then they have this share of the time, or each waits so long.
A round costs something of its own, however little it looks at: thousands of changes a second, one by one, would take all the time
that reading them needs."""

LULL_S, LISTENS, LISTEN_S = 0.005, 4.0, 1.0
"""Nothing new for so long is the end of what was to be read; at the most it is listened so many times as long as a round took, but
never for longer than that. Where more comes than can be done, most of the time goes into seeing what of it is over already."""


class Dirty:
    """What the next round must look at: keys, or everything."""

    def __init__(self) -> None:
        self._keys: set[Key] = set()
        self._everything = False
        self._event = asyncio.Event()
        self._left, self._left_at = BURST_S, 0.0
        self._news = 0
        self._began: float | None = None
        self._since: float | None = None
        self._taken_since = 0.0

    def add(self, keys: Iterable[Key]) -> None:
        """Look at these."""
        self._keys.update(keys)
        self._news += 1
        if self._keys:
            self._set()

    def add_everything(self) -> None:
        """Look at everything."""
        self._everything = True
        self._set()

    def put_back(self, taken: set[Key] | None) -> None:
        """What was taken was not looked at."""
        if taken is None:
            self.add_everything()
        else:
            self.add(taken)

    def poke(self) -> None:
        """Have a round now; what it looks at is found out then."""
        self._news += 1
        self._set()

    def _set(self) -> None:
        self._event.set()
        if self._since is None:
            self._since = time.monotonic()

    async def wait(self, at_most_s: float) -> None:
        """Until there is something to look at, or so many seconds; what is done until it is called again is a round."""
        took_s = self._took_s()
        if self._event.is_set() or at_most_s <= 0.0:
            await self._listen(took_s)
        try:
            async with asyncio.timeout(at_most_s):
                await self._event.wait()
            await self._gather(took_s)
        except TimeoutError:
            pass
        self._began = asyncio.get_running_loop().time()

    def _took_s(self) -> float:
        """How long the last round was."""
        return 0.0 if self._began is None else asyncio.get_running_loop().time() - self._began

    async def _listen(self, took_s: float) -> None:
        """Where a round is due at once after another: let what came meanwhile be read, which has more of the time than rounds have.

        Rounds without a pause leave the watch and the kernel's notices one message each between two: what is far behind would
        be done one by one, and not seen to be over already.
        """
        loop = asyncio.get_running_loop()
        heard, until = -1, loop.time() + min(LISTENS * took_s, LISTEN_S)
        while heard != self._news and loop.time() < until:
            heard = self._news
            await asyncio.sleep(min(LULL_S, took_s))

    async def _gather(self, took_s: float) -> None:
        """Where one round has chased the other for long, wait for company."""
        now = asyncio.get_running_loop().time()
        self._left = max(-COMPANY_S * SHARE, min(BURST_S, self._left + (now - self._left_at) * SHARE) - min(took_s, COMPANY_S))
        self._left_at = now
        if self._left < 0.0:
            await asyncio.sleep(-self._left / SHARE)

    @property
    def pending(self) -> bool:
        """True where a round is due."""
        return self._event.is_set()

    @property
    def age_s(self) -> float:
        """How long ago the first of what was last taken became dirty."""
        return time.monotonic() - self._taken_since

    def take(self) -> set[Key] | None:
        """The keys that are dirty, None for everything; cleared."""
        keys, everything = self._keys, self._everything
        self._keys, self._everything = set(), False
        self._event.clear()
        self._taken_since, self._since = self._since or time.monotonic(), None
        return None if everything else keys
