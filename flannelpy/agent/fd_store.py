"""Where do descriptors outlive the agent? In systemd's descriptor store, and a duplicate of each here.

systemd hands back what it keeps only at a start. So what is taken from the store or kept in it in one life stays here, too, and a
datapath that is opened anew in the same process finds it just as after a restart. See ``core.backend.FdStore``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from flannelpy.agent.systemd import Notifier


class SystemdFdStore:
    """What systemd keeps for us; ``left`` is what it handed over at the start, and the fd store's own from now on."""

    def __init__(self, notifier: Notifier, left: Mapping[str, int]) -> None:
        self._notifier = notifier
        self._kept = dict(left)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._kept)

    def take(self, name: str) -> int | None:
        fd = self._kept.get(name)
        return None if fd is None else os.dup(fd)  # os.dup: children do not get it

    def keep(self, name: str, fd: int) -> None:
        if name in self._kept:
            self._forget(name)
        self._kept[name] = os.dup(fd)
        self._notifier.store(name, fd)

    async def drop(self, *names: str) -> None:
        known = [name for name in names if name in self._kept]
        for name in known:
            self._forget(name)
        if known:
            await self._notifier.barrier()

    def _forget(self, name: str) -> None:
        os.close(self._kept.pop(name))
        self._notifier.forget(name)
