"""Do this host's routes go by nexthop objects? By how many peers there are, and where the kernel has them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Container

from flannelpy.core.desired import Desired
from flannelpy.core.nexthops import by_nexthops, pays, without
from flannelpy.core.objects import HostState, Key

log = logging.getLogger(__name__)


class Nexthops:
    """``able`` asks the kernel, None: nobody wants them; ``used`` is the answer to the question."""

    def __init__(self, able: Callable[[], Awaitable[bool]] | None) -> None:
        self.used = False
        self._able = able
        self._has: bool | None = None
        self._taken = set[int]()

    async def settle(self, peers: int) -> bool:
        """Decide for so many peers; True where it is another answer, and every fragment is to be made anew. Raises KernelError."""
        wanted = self._able is not None and pays(peers, used=self.used)
        if wanted and self._able is not None and self._has is None:
            self._has = await self._able()
        if (wanted and bool(self._has)) == self.used:
            return False
        self.used = not self.used
        self._taken.clear()
        return True

    def shaped(self, state: HostState, devices: Container[str | None]) -> HostState:
        """A fragment as it is to be, on ``devices`` of ours."""
        return by_nexthops(state, devices, self._taken) if self.used else state

    def avoid(self, keys: Collection[Key], desired: Desired) -> set[Key]:
        """Somebody else has these numbers: routes go without. The keys to look at."""
        self._taken.update(int(key.id) for key in keys)
        for key in keys:
            log.info("%s is there and is not ours: the route by it goes without", key)
        touched = set[Key]()
        for owner in {owner for key in keys for owner in desired.claimants(key)}:
            touched |= desired.amend(owner, without(desired.fragment(owner), self._taken))
        return touched
