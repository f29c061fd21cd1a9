"""Who keeps our lease, and what may it be? By the registry: one that we choose and keep alive, or one that is assigned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from netaddr import IPNetwork

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.context import Context
from flannelpy.agent.kept import Kept
from flannelpy.agent.lease import Keeper
from flannelpy.agent.node import NodeKeeper
from flannelpy.agent.parts import Parts
from flannelpy.core import lease_events as ev
from flannelpy.core.config import NetworkConfig
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import Lease, LeaseAttrs


class Keeping(Protocol):
    """Our lease, for as long as the agent runs: acquired, kept, and asked for again where it was lost. It ends no agent.

    Whatever it is told, it looks at how things are; it may be told too often. What is programmed stays while it has no lease.
    """

    held: Lease | None
    """The lease, as far as is known; the last one while it is asked for again."""
    lost: bool
    """True while it is asked for again."""

    @property
    def sure_until(self) -> float:
        """When our lease would end if nobody extended it, in the clock's seconds; infinity where it has no end."""
        ...

    def tell(self, event: ev.Event) -> None:
        """Something happened to a lease, as the watch saw it."""
        ...

    def move(self, config: NetworkConfig, after_s: float = 0.0) -> None:
        """The network is this now; the lease stays where it fits. Where it does not, another is looked for ``after_s`` seconds from
        now: all hosts have to have another then.
        """
        ...

    def publish(self, attrs: LeaseAttrs, after_s: float = 0.0) -> None:
        """Write these into the lease, ``after_s`` seconds from now; the last that was asked for counts."""
        ...

    def avoid(self, networks: Iterable[IPNetwork]) -> None:
        """Where another subnet has to be chosen, none of these."""
        ...

    async def run(self) -> None:
        """Acquire the lease and keep it, for ever."""
        ...


def keep(context: Context, kept: Kept, parts: Parts, carriage: Carriage, wake: Callable[[], None]) -> Keeping:
    """The keeper of this host's lease; ``wake``: what it holds is another one now."""
    promise, settings = parts.publisher.promise, context.settings
    if context.assigned is not None:
        leases = parts.cluster.view.leases  # as it goes on
        return NodeKeeper(context, context.assigned, carriage.config, carriage.attrs, wake, promise, leases.get)
    machine = Leasing(
        carriage.config,
        carriage.attrs,
        context.random,
        previous=kept.previous,
        kept=kept.own,
        promised=kept.promised,
        ttl_s=settings.lease_ttl_s,
        renew_margin_s=settings.renew_margin_s,
    )
    return Keeper(context, parts.cluster.refresh, machine, wake, promise)
