"""What does this host make of a network config? On the uplink that there is now, with what stays of what it carried by before."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

from flannelpy import plugins
from flannelpy.agent.carriage import Carriage, resolve
from flannelpy.agent.context import Context
from flannelpy.agent.datapath import Wanted, make_way
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.parts import Parts
from flannelpy.core.backend import Backend, LeavesBehind, Local
from flannelpy.core.config import NetworkConfig, differences
from flannelpy.core.model import Lease
from flannelpy.core.objects import Fou, Scope
from flannelpy.core.uplink_change import describe_change
from flannelpy.explain.events import CONFIG, UPLINK
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView

Asked = tuple[NetworkConfig, Backend]
Carried = tuple[Carriage | None, Carriage | None]
"""What is carried by now; and that of which something may have to stay beside: the same, or at a start what the last life had."""


@dataclass(frozen=True, slots=True)
class Making:
    """``keys``: of this host."""

    context: Context
    parts: Parts
    keys: HostKeys

    async def recall(self, view: KeptView | None, asked: Asked, known: State) -> Carriage | None:
        """What the last life carried by, where that is still in use. Raises KernelError."""
        facts = self.parts.facts
        assert facts.uplink is not None
        return await self.parts.migration.recall(view, asked[0], (facts.uplink, facts.reasons), known.macs, self.keys)

    async def make(
        self, text: str, asked: Asked, prepared: str | None, known: State, lease: Lease | None, carried: Carried
    ) -> Carriage:
        """``asked``: what ``text`` asks for; ``known``: what is ours on this host. Raises ConfigError, KernelError."""
        facts, (before, earlier) = self.parts.facts, carried
        assert facts.uplink is not None
        carriage = await resolve(self.context, text, asked, (facts.uplink, facts.reasons), known.macs, self.keys, before)
        beside = plugins.preferred(*asked, self.context.settings.host_options)
        had = None if before is None else before.preference
        preference = await self.parts.retirement.settle(beside, carriage.local(), self.keys, had, known.devices)
        carriage = replace(carriage, prepared=prepared, preference=preference, keys=carriage.keys or preference.keys)
        return self.parts.migration.settle(carriage, earlier, lease)

    def datapath(self, carriage: Carriage, local: Local, scope: Scope) -> tuple[Wanted, bool]:
        """What moves its packets, from now on; and whether all else waits until that was tried.

        A userspace datapath makes its device before addresses and routes go onto it. Nothing of ours goes onto what commands make,
        so these may take their time. One that another carrier takes the place of moves packets until that one is made, unless both
        want the same port.
        """
        self.parts.preparation.carried(carriage.backend)
        (source, datapath), wanted = carriage.moved_by(local), carriage.backend.host(local)
        last = datapath is None and self.parts.datapath.has_datapath and not any(isinstance(item, Fou) for item in wanted)
        in_the_way = None if datapath is None else source.host(local)
        clear = self.parts.reconciler.after_round if last else partial(make_way, self.context.kernel, scope, in_the_way)
        return Wanted(datapath, source, local, clear), not last and not isinstance(datapath, LeavesBehind)


def that_fits(carriage: Carriage, lease: Lease | None, carried: tuple[Carriage, Lease] | None) -> Carriage:
    """``carriage`` where the lease is one of its network's; until there is such a one, what is carried."""
    return carriage if carried is None or (lease is not None and carriage.fits(lease)) else carried[0]


def note_changes(context: Context, before: Carriage, carriage: Carriage) -> bool:
    """Have it among the events that config or uplink are others now; True where the config is."""
    changed = differences(before.config, carriage.config)
    if changed:
        context.events.note(CONFIG, "", f"the network config has changed, and is followed: {'; '.join(changed)}")
    if before.uplink != carriage.uplink:
        said = f"uplink: {describe_change(before.uplink, carriage.uplink)}"
        context.events.note(UPLINK, carriage.uplink.name, said, logging.WARNING)
    return bool(changed)
