"""What does this host's firewall hold? Our nft table, our rules in the host's own chains, the blackhole: by what was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from netaddr import IPNetwork

from flannelpy.core.backend import Backend, Enclosed, Guard, Guarded
from flannelpy.core.config import NetworkConfig
from flannelpy.core.guard import Side, guard_elements, guard_sets, guards_chains
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, Key, Object, Route
from flannelpy.core.rules import FirewallOptions, firewall
from flannelpy.settings import Settings

LAST_METRIC = 2**32 - 1
"""Every other route to our own subnet wins over the blackhole: a bridge's comes after us, and is the one that containers need."""


ForwardRules = Callable[[Iterable[IPNetwork], str], HostState]
"""Makes the rules of the host's own chains that let these networks through, marked with a name."""


class Firewall:
    """The table named ``table`` for a host with these ``devices`` of the overlay that holds ``lease``, the rules beside it, and the
    blackhole where it was asked for. ``changed`` is called where what ``host`` gives is another than before: a peer's subnet has a
    length that none had.
    """

    def __init__(
        self,
        settings: Settings,
        config: NetworkConfig,
        backends: Sequence[Backend],
        devices: Collection[str],
        table: str,
        lease: Lease,
        forward: ForwardRules,
        uplink: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._forward = forward
        self._table = table
        checked = settings.container_source_check and all(isinstance(each, Enclosed) and each.enclosed for each in backends)
        self._entrances = (uplink, *devices) if checked else ()
        self._sides = [Side(config.v4.network, lease.subnet, config.v4.length)] if config.v4 and lease.subnet.prefixlen else []
        if config.v6 and lease.subnet6 is not None:
            self._sides.append(Side(config.v6.network, lease.subnet6, config.v6.length))
        self._changed = changed
        self._lengths: defaultdict[int, set[int]] = defaultdict(set)
        self._guards: list[tuple[Guard, list[Side]]] = []
        for backend in backends:
            if isinstance(backend, Guarded) and (guard := backend.guarded) is not None:
                self._guards.append((guard, [side for side in self._sides if side.version in guard.families]))

    def host(self) -> HostState:
        """What does not depend on the peers, but for the lengths that their subnets have."""
        settings = self._settings
        guards = [(guard, [self._asking(side) for side in sides]) for guard, sides in self._guards]
        options = FirewallOptions(settings.ip_masq, settings.forward_rules, settings.masq_fully_random, self._entrances)
        chains, sets = guards_chains(guards), dict[Key, Object]()
        state = firewall(self._table, [(side.network, side.own) for side in self._sides], options, chains)
        for guard, sides in guards:
            sets |= guard_sets(guard, self._table, sides).objects  # who is a peer is one set
        state |= HostState(sets)
        if settings.forward_rules:
            state |= self._forward([side.network for side in self._sides], self._table)
        if settings.blackhole_route:
            state |= HostState.of(*(Route(side.own, kind="blackhole", metric=LAST_METRIC) for side in self._sides))
        return state

    def peer(self, lease: Lease) -> HostState:
        """What lets a peer in, where somebody guards."""
        found = dict[Key, Object]()
        for guard, sides in self._guards:
            found |= guard_elements(guard, self._table, sides, lease).objects
        for side in self._sides if found else ():
            subnet = lease.subnet if side.version == 4 else lease.subnet6
            if subnet is not None and subnet.prefixlen not in {side.length, 0, *self._lengths[side.version]}:
                self._lengths[side.version].add(subnet.prefixlen)
                self._changed()
        return HostState(found)

    def _asking(self, side: Side) -> Side:
        return replace(side, others=tuple(sorted(self._lengths[side.version])))
