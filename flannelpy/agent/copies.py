"""What if somebody else has our MAC or key, and an older lease? The peers go by that one, so we draw another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.identity import without_copies
from flannelpy.agent.keys import HostKeys
from flannelpy.core.model import Lease


class Copies:
    """The leases that were not compared with our identity yet."""

    def __init__(self, keys: HostKeys) -> None:
        self._keys = keys
        self._came: dict[str, Lease] = {}

    async def differ(self, carriage: Carriage, own: Lease, came: Mapping[str, Lease | None]) -> Carriage:
        """``carriage`` with an identity that none of those that came or changed has. Raises KernelError; then they are still to be
        compared."""
        self._came.update((key, lease) for key, lease in came.items() if lease is not None)
        macs = without_copies(carriage.backend, own, carriage.macs, self._came.values())
        keys = carriage.keys
        if keys is not None:
            keys = await self._keys.differ(carriage.backend, own, keys, self._came.values())
        self._came.clear()
        return carriage if (macs, keys) == (carriage.macs, carriage.keys) else replace(carriage, macs=macs, keys=keys)
