"""What is to be said of a peer? One row each, put together in one place from the books that know a part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from flannelpy.agent.cluster import Cluster
from flannelpy.agent.departures import EXPIRED, LEAVING, RESET
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.backend import Path
from flannelpy.core.model import Lease

IN_SYNC, PENDING, REFUSED, EXCLUDED, STALE = "in-sync", "pending", "refused", "excluded", "stale"

_GONE = {
    LEAVING: "its key is gone",
    EXPIRED: "its lease has expired",
    RESET: "its lease was lost with the registry's data",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host's lease and what has become of it here. ``state``: one of the five above; ``seconds_left``: how long a stale one
    is kept.
    """

    lease: Lease
    state: str
    why: str | None = None
    seconds_left: float | None = None
    path: Path | None = None
    """By which way it is reached, where there is a choice."""


def rows(cluster: Cluster, reconciler: Reconciler, failed: Mapping[str, str]) -> Iterator[Peer]:
    """Every lease but our own, in the order of their addresses; ``failed``: those that the datapath fails for, and how."""
    view, left_out = cluster.view, reconciler.fragments.left_out
    own = None if view.own is None else view.own.key
    for lease in sorted(view.leases.values(), key=_place):
        if lease.key != own:
            row = _row(lease, cluster, reconciler, left_out, failed.get(lease.key))
            yield replace(row, path=reconciler.fragments.paths.get(lease.key))


def _row(lease: Lease, cluster: Cluster, reconciler: Reconciler, left_out: Mapping[str, str], failed: str | None) -> Peer:
    key = lease.key
    why = cluster.refused.get(key, left_out.get(key))
    if why is not None:
        return Peer(lease, EXCLUDED, why.removeprefix(f"{lease}: ") or _nothing_to_report(lease))
    departure = cluster.departures.kept.get(key)
    if departure is not None:
        return Peer(lease, STALE, _GONE[departure.state], cluster.departures.until(key))
    error = failed or reconciler.standing.why_not(key)
    return Peer(lease, REFUSED, error) if error else Peer(lease, IN_SYNC if error is None else PENDING)


def _nothing_to_report(lease: Lease) -> str:
    """Why a lease is no peer's although nothing is wrong with it (``core.membership``)."""
    if lease.reserved and not lease.attrs.backend_type:
        return "a reservation that waits for its host"
    return "it has this host's address or subnet"


def _place(lease: Lease) -> tuple[int, int]:
    """Orders leases as their addresses are."""
    return int(lease.subnet.value or 0), 0 if lease.subnet6 is None else int(lease.subnet6.value or 0)
