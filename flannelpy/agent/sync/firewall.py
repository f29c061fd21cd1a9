"""What does this host's firewall hold? Our nft table, our rules in the host's own chains, the blackhole: by what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from netaddr import IPNetwork

from flannelpy.core.backend import Backend, Engines
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, Route
from flannelpy.core.rules import EncapsulationGuard, FirewallOptions, firewall
from flannelpy.settings import Settings

LAST_METRIC = 2**32 - 1
"""Every other route to our own subnet wins over the blackhole: a bridge's comes after us, and is the one that containers need."""


ForwardRules = Callable[[Iterable[IPNetwork], str], HostState]
"""Makes the rules of the host's own chains that let these networks through, marked with a name."""


def compose(
    settings: Settings,
    config: NetworkConfig,
    backend: Backend,
    table: str,
    lease: Lease,
    forward: ForwardRules,
    peers: tuple[Lease, ...],
) -> HostState:
    """The table named ``table`` for a host that holds ``lease``, the rules beside it, and the blackhole where it was asked for."""
    pairs = [(config.v4.network, lease.subnet)] if config.v4 else []
    if config.v6 and lease.subnet6 is not None:
        pairs.append((config.v6.network, lease.subnet6))
    options = FirewallOptions(settings.ip_masq, settings.forward_rules, settings.masq_fully_random)
    guarded = backend.guarded if isinstance(backend, Engines) else None
    guard = None if guarded is None or config.v4 is None else EncapsulationGuard(guarded, config.v4.network, lease.subnet, peers)
    state = firewall(table, pairs, options, guard)
    if settings.forward_rules:
        state |= forward([network for network, _subnet in pairs], table)
    if settings.blackhole_route:
        state |= HostState.of(*(Route(subnet, kind="blackhole", metric=LAST_METRIC) for _network, subnet in pairs))
    return state


def speaks_of_peers(backend: Backend) -> bool:
    """True where the table changes with the peers: the port where the kernel decapsulates is guarded."""
    return isinstance(backend, Engines) and backend.guarded is not None
