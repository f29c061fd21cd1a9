"""What does this host want, all told? Desired state as a sum of fragments: the host's, the firewall's, one a peer.

A change recomputes one fragment and says which keys it touched; the rest is not looked at. Where two fragments claim one key (two
leases with one VTEP MAC) the older rank keeps it and the other fragment is left out whole, until the claim is settled. What is the
same for whoever asks for it (``core.objects.SHARED``) is no such claim.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from flannelpy.core.objects import SHARED, HostState, Key, Object

AT_ONCE = 500
"""Fragments that are compared in a piece: some two milliseconds."""

HOST_RANK = -1
"""Rank of what is not a peer's: it always wins."""


class _Fragment(NamedTuple):
    """``rank`` decides between two that claim one key."""

    rank: int
    objects: tuple[Object, ...]


class Desired:
    """The sum. Mutable, single-owner; everything it hands out is a value."""

    def __init__(self) -> None:
        self._fragments: dict[str, _Fragment] = {}
        self._claims: dict[Key, str | tuple[str, ...]] = {}
        """Whose fragments speak of a key; almost always that is one, and then there is no list of them. What is desired under it
        is in their fragments: a book of that would be one more entry for each object of each peer.
        """
        self._conflicts: dict[str, tuple[str, Key]] = {}

    def put(self, owner: str, state: HostState, rank: int = HOST_RANK) -> set[Key]:
        """Set ``owner``'s fragment; ``rank`` is the create revision of a lease (lower is older). Returns the touched keys."""
        old = self._fragments.get(owner)
        if old is None and self._claims.keys().isdisjoint(state.objects):  # nobody else's, as almost always
            self._fragments[owner] = _Fragment(rank, tuple(state))
            self._claims.update(dict.fromkeys(state.objects, owner))
            return set(state.objects)
        if old is not None and {item.key: item for item in old.objects} == state.objects:
            if old.rank == rank:
                return set()
            if owner not in self._conflicts and not self._rivals(state):
                self._fragments[owner] = _Fragment(rank, old.objects)  # another rank among nobody else
                return set()
        touched = self._withdraw(owner)
        self._fragments[owner] = _Fragment(rank, tuple(state))
        for key in state.objects:
            claimants = self.claimants(key)
            self._claims[key] = (*claimants, owner) if claimants else owner
        return self._settle(touched | set(state.objects))

    def amend(self, owner: str, state: HostState) -> set[Key]:
        """As ``put``, by the rank that ``owner``'s fragment has; nothing where it has none."""
        old = self._fragments.get(owner)
        return set() if old is None else self.put(owner, state, old.rank)

    def _rivals(self, state: HostState) -> bool:
        """True where others claim one of these keys, too."""
        return any(not isinstance(self._claims[key], str) for key in state.objects if key.kind not in SHARED)

    def drop(self, owner: str) -> set[Key]:
        """Take ``owner``'s fragment out. Returns the keys to look at again; empty where there was none."""
        return self._settle(self._withdraw(owner))

    def get(self, key: Key) -> Object | None:
        """What is desired under ``key``: by the first who claims it and is not left out."""
        for owner in self.claimants(key):
            if owner not in self._conflicts:
                return self._item(owner, key)
        return None

    def only(self, keys: Iterable[Key]) -> HostState:
        """The desired state under these keys."""
        return HostState({key: item for key in keys if (item := self.get(key)) is not None})

    @property
    def state(self) -> HostState:
        """Everything that is desired, now."""
        found: dict[Key, Object] = {}
        for owner, entry in self._fragments.items():
            if owner not in self._conflicts:
                for item in entry.objects:
                    found.setdefault(item.key, item)
        return HostState(found)

    def differing(self, observed: Mapping[Key, Object]) -> Iterator[Key | None]:
        """The keys under which something else is observed than is desired. None now and then: others may have a turn, and change
        what is observed; then a key may come too much or too little, of which there will be news.
        """
        for number, (owner, entry) in enumerate(list(self._fragments.items()), 1):
            if owner not in self._conflicts:
                for item in entry.objects:
                    there = observed.get(item.key)
                    if there is not item and there != item:
                        yield item.key
            if not number % AT_ONCE:
                yield None
        for number, key in enumerate(list(observed), 1):
            if key not in self._claims or (self._conflicts and self.get(key) is None):
                yield key
            if not number % (4 * AT_ONCE):
                yield None

    def fragment(self, owner: str) -> HostState:
        """What ``owner`` asked for; empty where it asked for nothing."""
        entry = self._fragments.get(owner)
        return HostState() if entry is None else HostState({item.key: item for item in entry.objects})

    def kinds(self, kinds: Container[str]) -> list[Key]:
        """The keys of these kinds."""
        return [key for key in self._claims if key.kind in kinds and self.get(key) is not None]

    def claimants(self, key: Key) -> tuple[str, ...]:
        """Whose fragments speak of ``key``."""
        found = self._claims.get(key, ())
        return (found,) if isinstance(found, str) else found

    @property
    def owners(self) -> frozenset[str]:
        """Whoever has a fragment, left out or not."""
        return frozenset(self._fragments)

    @property
    def conflicts(self) -> Mapping[str, tuple[str, Key]]:
        """Owners that are left out: who holds the key they claim, and which."""
        return dict(self._conflicts)

    def _withdraw(self, owner: str) -> set[Key]:
        entry = self._fragments.pop(owner, None)
        self._conflicts.pop(owner, None)
        if entry is None:
            return set()
        keys = {item.key for item in entry.objects}
        for key in keys:
            left = tuple(other for other in self.claimants(key) if other != owner)
            if left:
                self._claims[key] = left[0] if len(left) == 1 else left
            else:
                del self._claims[key]
        return keys

    def _settle(self, touched: set[Key]) -> set[Key]:
        """Recompute what is desired under ``touched`` and under every key of a fragment whose fate that changes."""
        changed = set(touched)
        for owner in sorted(self._entangled(touched), key=self._age):
            before = owner in self._conflicts
            if self._judge(owner) != before:
                changed.update(self._keys(owner))
        return changed

    def _item(self, owner: str, key: Key) -> Object:
        for item in self._fragments[owner].objects:
            if item.key == key:
                return item
        raise KeyError(key)  # a claim without its object: it is made and withdrawn with its fragment

    def _age(self, owner: str) -> tuple[int, str]:
        return self._fragments[owner].rank, owner

    def _keys(self, owner: str) -> list[Key]:
        return [item.key for item in self._fragments[owner].objects]

    def _entangled(self, touched: Iterable[Key]) -> set[str]:
        """Who claims one of these keys beside somebody else, or is left out; and whoever shares a key with one of them."""
        new = set[str]()
        for key in touched:
            if key.kind not in SHARED:
                claimants = self.claimants(key)
                new.update(owner for owner in claimants if len(claimants) > 1 or owner in self._conflicts)
        found = set[str]()
        while new:
            found |= new
            keys = {key for owner in new for key in self._keys(owner) if key.kind not in SHARED}
            shared = {other for key in keys for other in self.claimants(key)}
            new = shared - found
        return found

    def _judge(self, owner: str) -> bool:
        """Decide whether ``owner`` is left out: it is where somebody older that is not left out claims one of its keys."""
        age = self._age(owner)
        for key in self._keys(owner):
            for other in () if key.kind in SHARED else self.claimants(key):
                if self._age(other) < age and other not in self._conflicts:
                    self._conflicts[owner] = (other, key)
                    return True
        self._conflicts.pop(owner, None)
        return False
