"""What if somebody else has our MAC or key, and an older lease? The peers go by that one, so we draw another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.identity import without_copies
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.view import Cursor
from flannelpy.core.model import Lease

GATHER_S = 0.2
"""So long those that come are left to gather before they are compared."""


def gathering(wake: Callable[[], None]) -> Callable[[], None]:
    """``wake``, so much later, and once for all who ask meanwhile: with each comparison all is worked out anew that says what the
    host carries, which thousands that come and go would have done each time.
    """
    awaited: asyncio.TimerHandle | None = None

    def woken() -> None:
        nonlocal awaited
        awaited = None
        wake()

    def ask() -> None:
        nonlocal awaited
        if awaited is None:
            awaited = asyncio.get_running_loop().call_later(GATHER_S, woken)

    return ask


class Copies:
    """Compares each lease that comes or changes with our identity."""

    def __init__(self, keys: HostKeys, newcomers: Cursor) -> None:
        self.keys = keys
        """By what the peers know us, where they do by a key."""
        self._newcomers = newcomers
        self._came: dict[str, Lease] = {}  # and was not compared yet
        self._own = 0  # as which lease we were compared

    async def differ(self, carriage: Carriage, own: Lease) -> Carriage:
        """``carriage`` with an identity that no older lease has. Raises KernelError; then what came is still to be compared."""
        if own.create_revision != self._own:  # a lease made anew: who was younger than the one before may be older than this one
            self._own = own.create_revision
            self._newcomers.rewind()
        self._came.update((key, lease) for key, lease in self._newcomers.take().items() if lease is not None)
        macs = without_copies(carriage.backend, own, carriage.macs, self._came.values())
        keys = carriage.keys
        if keys is not None:
            keys = await self.keys.differ(carriage.backend, own, keys, self._came.values())
        self._came.clear()
        return carriage if (macs, keys) == (carriage.macs, carriage.keys) else replace(carriage, macs=macs, keys=keys)
