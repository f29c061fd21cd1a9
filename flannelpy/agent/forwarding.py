"""Does the host's own firewall forward the overlay? Looked at now and then: the kernel tells of iptables' chains to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from netaddr import IPNetwork

from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.reconcile import SILENT_S
from flannelpy.core.forwarding import Hindrance, forward_rules
from flannelpy.core.objects import HostState
from flannelpy.kernel import Kernel


class Forwarding:
    """The chains that are in the way, as they were last seen; ``changed`` is called where they are others."""

    def __init__(self, kernel: Kernel, reporter: Reporter, changed: Callable[[], None]) -> None:
        self._kernel = kernel
        self._reporter = reporter
        self._changed = changed
        self._found: tuple[Hindrance, ...] = ()

    async def run(self) -> None:
        """Look, for ever. Raises KernelError."""
        while True:
            found = tuple(await self._kernel.hindrances())
            if found != self._found:
                self._found = found
                self._changed()
            await asyncio.sleep(SILENT_S)

    def rules(self, networks: Iterable[IPNetwork], owner: str) -> HostState:
        """The rules by which this host forwards ``networks``; what no rule of ours can mend is a condition."""
        state, blocked = forward_rules(self._found, networks, owner)
        self._reporter.set("forward-blocked", {"": blocked} if blocked else {})
        return state
