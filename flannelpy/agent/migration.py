"""How does a host move to another Type of the network without a lost packet? It keeps what it had beside the new one, until nobody
sends by that any more: make before break.

What stands beside the Type follows from two configs, this one and the one before (``core.moving``); when which is published, and
when the old one goes, from what the kernel holds and the peers say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from flannelpy.agent import beside
from flannelpy.agent.carriage import Carriage, parsed, resolve
from flannelpy.agent.cluster import Cluster
from flannelpy.agent.context import Context
from flannelpy.agent.datapath import DatapathSupervisor
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.sync.fragments import FIREWALL, HOST
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.backend import Keyed, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError, FlannelpyError
from flannelpy.core.model import Lease
from flannelpy.core.moving import Outgoing, obstacle
from flannelpy.core.offer import announces, type_of
from flannelpy.core.select import Preferring
from flannelpy.explain.events import CONFIG
from flannelpy.host.view_file import KeptView

log = logging.getLogger("flannelpy")

UNFINISHED = "type-unfinished"

LOOK_S = 0.5
"""While a network moves, how often it is looked at besides after each round, in seconds."""

_CARRIED = frozenset({"link", "fou", "wg", "addr"})
"""Kinds of the host's own objects without which a backend carries nothing."""

_NAMED = 3
"""Peers that a condition names."""


class Migration:
    """What stays of the Types before. ``again`` has what the host carries by worked out anew."""

    def __init__(
        self, context: Context, reconciler: Reconciler, cluster: Cluster, datapath: DatapathSupervisor, again: Callable[[], None]
    ) -> None:
        self._context = context
        self._reconciler = reconciler
        self._cluster = cluster
        self._datapath = datapath
        self._again = again
        self._up = frozenset[str]()
        self._needed = frozenset[str]()
        self._idle: dict[str, float] = {}  # since when nobody sends by it
        self._gone = set[str]()
        self._refused: tuple[str, str] | None = None  # what was said last

    # -------------------------------------------------------------------------------------------- what is to stand

    async def recall(
        self,
        view: KeptView | None,
        config: NetworkConfig,
        uplink: tuple[Uplink, tuple[str, ...]],
        macs: Mapping[str, str],
        keys: HostKeys,
    ) -> Carriage | None:
        """What the host carried by in its last life, where that was of another Type than ``config``, or was moving; else None.

        Raises KernelError.
        """
        if view is None or view.own is None:
            return None
        found: Carriage | None = None
        for each in reversed((view.config, *view.former)):
            with suppress(ConfigError):  # of a backend that is gone, or that this host cannot have any more
                wanted = parsed(self._context.settings, each)
                if not view.former and wanted[0].backend_type == config.backend_type:
                    return None
                carriage = await resolve(self._context, each, wanted, uplink, macs, keys, None)
                found = self.settle(carriage, found, view.own)
        if found is None:
            return None
        preference = found.preference
        return replace(found, preference=replace(preference, up=preference.up | {type_of(view.own.attrs)}))

    def settle(self, carriage: Carriage, before: Carriage | None, lease: Lease | None) -> Carriage:
        """``carriage`` with what is to stay beside it of what there was ``before``."""
        if before is None or lease is None:
            return carriage
        had = before.preference
        candidates = had.outgoing
        turned = before.backend.name != carriage.backend.name
        up = had.up if had.outgoing else frozenset({before.backend.name})
        if turned:
            candidates = (Outgoing(before.backend, before.text), *candidates)
            self._up, self._needed = frozenset(), frozenset(each.name for each in candidates)
            self._idle.clear()
            self._gone.clear()
        outgoing: list[Outgoing] = []
        for each in candidates:
            if each.name == carriage.backend.name or each.name in self._gone or each.name in {other.name for other in outgoing}:
                continue
            both = wider(carriage, before, each)
            why = obstacle((before.config, each.backend), (carriage.config, carriage.backend), both.local(lease))
            if why:
                self._refuse(f"{each.name} -> {carriage.backend.name}", why)
                continue
            outgoing.append(each)
            carriage = both
        preference = replace(carriage.preference, outgoing=tuple(outgoing), up=(up | self._up) if outgoing else frozenset())
        return replace(carriage, preference=replace(preference, needed=self._needed & frozenset(preference.leaving)))

    def _refuse(self, what: str, why: str) -> None:
        if self._refused != (what, why):
            self._refused = what, why
            log.info("Type %s: not one beside the other, but one after the other: %s", what, why)

    # ------------------------------------------------------------------------------------------------ where we are

    async def run(self, now: Callable[[], tuple[Carriage | None, Lease | None, Lease | None]]) -> None:
        """Publish what is set up, and let go of what nobody sends by any more, for ever. ``now``: by what we carry, for which
        lease, and that as etcd has it.
        """
        loop = asyncio.get_running_loop()
        moving = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if moving else None):
                    await self._reconciler.after_round()
            carriage, lease, held = now()
            if carriage is None or lease is None:
                continue
            moving = bool(carriage.preference.outgoing)
            if moving:
                self._look(carriage, lease, held, loop.time())
            else:
                self._context.reporter.set(UNFINISHED, {})

    def _look(self, carriage: Carriage, lease: Lease, held: Lease | None, now: float) -> None:
        target = self._reconciler.fragments.target.backend if self._reconciler.fragments.has_target else None
        preference, name = carriage.preference, carriage.backend.name
        if not isinstance(target, Preferring) or (target.base.name, target.leaving) != (name, preference.leaving):
            return  # it is still to be swapped in
        if not target.ready:
            if self._reconciler.settled and self._datapath.begun and self._carries(carriage, lease):
                self._up |= {name}
                self._again()
            self._context.reporter.set(UNFINISHED, {"": f"{name} is not set up on this host; it keeps {preference.leaving[0]}"})
            return
        paths = self._reconciler.fragments.paths
        reached = {key: path.carrier for key, path in paths.items() if not path.preferred}  # what is preferred stays in any case
        needed = frozenset(reached.values()) & frozenset(preference.leaving)
        self._tell(name, reached, needed)
        if needed != self._needed and self._reconciler.settled:
            self._needed = needed
            self._again()
            return
        for each in preference.leaving:
            told = held is None or type_of(held.attrs) == each
            # Of what is preferred, too, only who does not have the Type for sure: the others take packets by it for good.
            lasting = each in preference.carriers
            peers = [peer for peer in self._cluster.view.peers.values() if not (lasting and type_of(peer.attrs) == name)]
            if each in needed or told or any(announces(peer, each) for peer in peers):
                self._idle.pop(each, None)
            elif now - self._idle.setdefault(each, now) >= beside.LINGER_S:
                self._gone.add(each)
                said = f"no host is reached by {each} any more: it is taken away; the network's Type is {name}"
                self._context.events.note(CONFIG, "", said)
                self._again()

    def _carries(self, carriage: Carriage, lease: Lease) -> bool:
        """True where the kernel holds all that the Type needs on this host."""
        standing, desired = self._reconciler.standing, self._reconciler.desired
        own = desired.fragment(HOST).objects
        wanted = [key for key in carriage.backend.host(carriage.local(lease)).objects if key.kind in _CARRIED]
        guarded = not any(key in desired.fragment(FIREWALL).objects for key in standing.failing)
        return guarded and all(key in own and standing.in_sync(key) for key in wanted)

    def _tell(self, name: str, reached: Mapping[str, str], needed: frozenset[str]) -> None:
        """Who keeps a Type before it in use."""
        details = {}
        for each in sorted(needed):
            keys = sorted(key for key, carrier in reached.items() if carrier == each)
            first = ", ".join(str(self._cluster.view.leases[key]) for key in keys[:_NAMED] if key in self._cluster.view.leases)
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            details[each] = f"it is {name}, and by {each} there are still reached {first}{more}"
        self._context.reporter.set(UNFINISHED, details)


def wider(carriage: Carriage, before: Carriage, each: Outgoing) -> Carriage:
    """``carriage`` with the identity that ``each`` has had, and an MTU that fits through both."""
    macs = {device: before.macs[device] for device in each.devices(carriage.config) if device in before.macs}
    keys = carriage.keys or (before.keys if isinstance(each.backend, Keyed) else None)
    both = replace(carriage, macs={**macs, **carriage.macs}, keys=keys)
    with suppress(FlannelpyError):  # then it is no use: ``obstacle`` says why
        both = replace(both, mtu=min(both.mtu, each.mtu(both.local())))
    return both
