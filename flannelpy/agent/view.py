"""What does this host know of the cluster? One value for those who look, and a cursor each for those who follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease


@dataclass(frozen=True, slots=True)
class View:
    """The cluster at one revision. ``own``: our lease; by key, ``peers``: the usable ones, ``leases``: every one that was read.

    The mappings show the cluster as it goes on; whoever keeps one across an ``await`` copies it.
    """

    config: NetworkConfig | None
    own: Lease | None
    peers: Mapping[str, Lease]
    leases: Mapping[str, Lease]
    revision: int


class Cursor:
    """One reader's place in what happens to the peers. ``wake`` is called when there is something to take."""

    def __init__(self, peers: Mapping[str, Lease], wake: Callable[[], None]) -> None:
        self.current = peers
        """The usable peers, as they are."""
        self._wake = wake
        self._changed: dict[str, Lease | None] = dict(peers)
        self._told: frozenset[str] | None = frozenset()  # while nobody takes: the peers that are known all the same

    def take(self) -> Mapping[str, Lease | None]:
        """What changed since it was last asked; None for a peer that went."""
        changed, self._changed, self._told = self._changed, {}, None
        return changed

    def leave(self) -> None:
        """Nobody takes for now, maybe for months: of a peer that comes and goes meanwhile nothing is kept."""
        if self._told is None:
            self._told = frozenset((*self.current, *self._changed))

    def rewind(self) -> None:
        """Have every peer once more."""
        self._changed |= self.current
        self._wake()

    def note(self, changed: Mapping[str, Lease | None]) -> None:
        """These changed (for the cluster)."""
        self._changed.update(changed)
        if self._told is not None:
            for key, lease in changed.items():
                if lease is None and key not in self._told:
                    del self._changed[key]
        self._wake()
