"""What if somebody else has our MAC or key, and an older lease? The peers go by that one, so we draw another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.identity import copied, without_copies
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.view import Cursor
from flannelpy.core.model import Lease


class Copies:
    """Compares each lease that comes or changes with our identity. ``wake`` is called where one has it: ``differ`` is due.

    Where none has, nothing is: to work out anew what the host carries takes some milliseconds, and each join would wait for it.
    """

    def __init__(self, keys: HostKeys, cursor: Callable[[Callable[[], None]], Cursor], wake: Callable[[], None]) -> None:
        self.keys = keys
        """By what the peers know us, where they do by a key."""
        self._newcomers = cursor(self._compare)
        self._wake = wake
        self._compared: tuple[Carriage, Lease] | None = None
        """As what we were: with that all peers were compared."""
        self._came: dict[str, Lease] = {}

    async def differ(self, carriage: Carriage, own: Lease) -> Carriage:
        """``carriage`` with an identity that no older lease has. Raises KernelError; then what came is still to be compared."""
        came = {key: lease for key, lease in self._newcomers.take().items() if lease is not None}
        if self._as_before(carriage, own):
            self._came |= came
        else:
            self._came = dict(self._newcomers.current)
        macs = without_copies(carriage.backend, own, carriage.macs, self._came.values())
        keys = carriage.keys
        if keys is not None:
            keys = await self.keys.differ(carriage.backend, own, keys, self._came.values())
        self._came.clear()
        changed = carriage if (macs, keys) == (carriage.macs, carriage.keys) else replace(carriage, macs=macs, keys=keys)
        self._compared = changed, own
        return changed

    def _as_before(self, carriage: Carriage, own: Lease) -> bool:
        """False for one made anew, too: who was younger than the lease before may be older than this one."""
        if self._compared is None:
            return False
        before, lease = self._compared
        return own.create_revision == lease.create_revision and carriage.same(before)

    def _compare(self) -> None:
        if self._compared is None:  # all will be
            return
        carriage, own = self._compared
        came = {key: lease for key, lease in self._newcomers.take().items() if lease is not None}
        if copied(carriage.backend, own, _identities(carriage), came.values()):
            self._came |= came
            self._wake()


def _identities(carriage: Carriage) -> Mapping[str, str]:
    """By device; the key is no device's."""
    return carriage.macs if carriage.keys is None else {**carriage.macs, "": carriage.keys.public}
