"""Does the host's own firewall forward the overlay? Looked at now and then: the kernel tells of iptables' chains to nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from netaddr import IPNetwork

from flannelpy.agent.beat import beat
from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.reconcile import SILENT_S
from flannelpy.core.errors import KernelError
from flannelpy.core.forwarding import Hindrance, forward_rules
from flannelpy.core.objects import HostState
from flannelpy.kernel import Kernel

log = logging.getLogger("flannelpy")


class Forwarding:
    """The chains that are in the way, as they were last seen; ``changed`` is called where they are others."""

    def __init__(self, kernel: Kernel, reporter: Reporter, changed: Callable[[], None]) -> None:
        self._kernel = kernel
        self._reporter = reporter
        self._changed = changed
        self.blocked: dict[str, str] = {}
        """What no rule of ours can mend, as it is told, by chain."""
        self._found: tuple[Hindrance, ...] = ()
        self._unseen = ""

    async def run(self) -> None:
        """Look, for ever. What cannot be looked at is as it was: an agent that is not root may not ask iptables-legacy."""
        while True:
            try:
                found, unseen = tuple(await self._kernel.hindrances()), ""
            except KernelError as error:
                found, unseen = self._found, str(error)
            if unseen and unseen != self._unseen:
                log.warning("whether this host forwards the overlay cannot be seen: %s; all else goes on", unseen)
            self._unseen = unseen
            if found != self._found:
                self._found = found
                self._changed()
            await beat(SILENT_S)

    def rules(self, networks: Iterable[IPNetwork], owner: str) -> HostState:
        """The rules by which this host forwards ``networks``; what no rule of ours can mend is a condition."""
        state, self.blocked = forward_rules(self._found, networks, owner)
        self._reporter.set("forward-blocked", self.blocked)
        return state
