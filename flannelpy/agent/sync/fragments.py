"""What does this host want, now? The fragments of the desired state, kept up to what the host is to be and to its peers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from typing import TYPE_CHECKING, Protocol

from netaddr import IPAddress

from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.near import addresses, taken_along
from flannelpy.agent.sync.nexthops import Nexthops
from flannelpy.core.backend import Local, Path
from flannelpy.core.desired import Desired
from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, Key, Object, Scope, WireguardPeer
from flannelpy.core.offer import spoken
from flannelpy.core.select import Preferring
from flannelpy.core.underlay import Shield

if TYPE_CHECKING:
    from flannelpy.agent.sync.sources import Gateways, Peers
    from flannelpy.kernel import Notice

log = logging.getLogger(__name__)

HOST, FIREWALL = "host", "firewall"
"""Owners of the fragments that are not a peer's (a lease key never looks like this)."""


AT_ONCE = 200
"""Peers whose change is taken up in one round, which is some 100 ms: the watch reads on between two, and what waits is one change
each, however often they change."""


class Carrier(Protocol):
    """What carries the overlay: a backend, alone or with others beside it (``core.select``)."""

    @property
    def wants_on_link(self) -> bool: ...
    @property
    def accepts(self) -> Container[str] | None: ...
    def host(self, local: Local) -> HostState: ...
    def path(self, lease: Lease, local: Local) -> Path: ...


@dataclass(frozen=True, slots=True)
class Target:
    """What this host is to be; a value, swapped whole. ``firewall`` makes the firewall's part, ``admit`` a peer's share in it; no
    route may cover what ``shield`` keeps out of the overlay.
    """

    backend: Carrier
    local: Local
    scope: Scope
    firewall: Callable[[], HostState]
    admit: Callable[[Lease], HostState] = lambda _lease: HostState()
    shield: Shield = Shield()  # noqa: RUF009 - never changed in place

    @property
    def spare(self) -> Collection[Key]:
        """Of the host's own, what packets flow without."""
        return self.backend.spare(self.local) if isinstance(self.backend, Preferring) else ()


class Fragments:
    """The sum of the fragments, and which of them are to be made anew. ``nexthops``: has the kernel nexthop objects?"""

    def __init__(
        self, reporter: Reporter, peers: Peers, gateways: Gateways, nexthops: Callable[[], Awaitable[bool]] | None
    ) -> None:
        self.desired = Desired()
        self._reporter = reporter
        self._peers = peers
        self._gateways = gateways
        self._target: Target | None = None
        self._made: Target | None = None  # what the fragments were made for
        self._members: dict[str, Lease] = {}
        self._pending: dict[str, Lease | None] = {}
        self._turns = Counter[str]()  # how often each was made since all that waited were made
        self._facts = _Facts(Nexthops(nexthops))
        self.paths: dict[str, Path] = {}
        """By which way each peer is reached, by lease key, where there is a choice."""
        self._unreadable: dict[str, str] = {}
        self._firewall_changed = False
        self.broken: dict[str, str] = {}
        """HOST and FIREWALL, where they could not be made: why."""

    @property
    def has_target(self) -> bool:
        """True once it is known what the host is to be."""
        return self._target is not None

    @property
    def target(self) -> Target:
        """What the host is to be."""
        assert self._target is not None
        return self._target

    @property
    def scope(self) -> Scope:
        """Where in the kernel what is ours may be."""
        return self.target.scope

    @property
    def peer_count(self) -> int:
        """Peers that are to be programmed."""
        return len(self._members)

    def knows(self, owner: str) -> bool:
        """True once the fragment of this peer was made."""
        return owner in self._members

    @property
    def left_out(self) -> Mapping[str, str]:
        """Peers whose fragment cannot be had, or not beside an older one's: why, by lease key."""
        return {**self._unreadable, **self._conflicts()}

    def set_target(self, target: Target) -> None:
        """The host is to be this."""
        self._target = target

    def change_firewall(self) -> None:
        """What the firewall's part is made from is another one now."""
        self._firewall_changed = True

    def reroute(self, families: Collection[int]) -> bool:
        """Routes of these IP versions have changed; True where that means anything here."""
        if self._target is None or not self._target.backend.wants_on_link:
            return False
        self._facts.moved.update(families)
        return bool(families)

    def taken_along(self, notice: Notice) -> Iterable[Key]:
        """The routes that may have gone with a link, without a word."""
        return taken_along(notice, self._facts.on_link, self._members, self.desired)

    async def refresh(self) -> set[Key]:
        """Make anew what has changed; the keys to look at. Raises KernelError; then it is still to be made."""
        target = self.target
        anew = self._made is not target
        self._pending.update(self._peers.take())
        anew |= await self._facts.nexthops.settle(self._count() if anew else len(self._members))
        taken = dict(self._pending) if anew else self._next()
        changed = {**self._members, **taken} if anew else dict(taken)
        if target.backend.wants_on_link:
            changed |= await self._look_up(changed, anew=anew)
        local = replace(target.local, on_link=dict(self._facts.on_link)) if target.backend.wants_on_link else target.local
        local = replace(local, answered=frozenset(self._facts.answered)) if self._facts.answered else local
        touched = self._set_own(HOST, lambda: target.backend.host(local)) if anew or HOST in self.broken else set()
        for owner, lease in changed.items():
            by_facts = target.backend.wants_on_link or isinstance(target.backend, Preferring)
            same = None if anew or by_facts else self._re_ranked(owner, lease)
            touched |= self._set_peer(owner, lease, target, local) if same is None else same
        self._took(taken.keys())
        if anew or self._firewall_changed or FIREWALL in self.broken:
            self._firewall_changed = False
            touched |= self._set_own(FIREWALL, target.firewall)
        self._made = target
        self._reporter.set("backend-failed", {owner: f"{owner}: {why}" for owner, why in self.broken.items()})
        if changed:
            unreadable = {owner: f"{self._members[owner]}: {why}" for owner, why in self._unreadable.items()}
            self._reporter.set("peer-unreadable", unreadable)
            self._reporter.set("peer-conflict", self._conflicts())
        return touched

    def hear_answers(self, observed: Iterable[Object]) -> None:
        """Take in which peers of WireGuard have answered, where that decides by what they are reached."""
        if not isinstance(self.target.backend, Preferring) or not self.target.backend.wants_answers:
            return
        for item in observed:
            if not isinstance(item, WireguardPeer) or not item.answered or item.key in self._facts.answered:
                continue
            for owner in self.desired.claimants(item.key):  # none where it is about to go
                self._facts.answered.add(item.key)
                self._pending.setdefault(owner, self._members[owner])

    def avoid_nexthops(self, keys: Collection[Key]) -> set[Key]:
        """Somebody else has the numbers of these nexthop objects: their routes go without. The keys to look at."""
        return self._facts.nexthops.avoid(keys, self.desired)

    def _count(self) -> int:
        """Peers, with those that wait."""
        return len({**self._members, **self._pending}) - sum(lease is None for lease in self._pending.values())

    @property
    def waiting(self) -> bool:
        """True where peers have changed that the next refresh takes."""
        return bool(self._pending)

    def _next(self) -> dict[str, Lease | None]:
        """Those that changed; of more than AT_ONCE the ones that have changed least of late, so that whoever changes all the time
        keeps nobody else away, and has in one step what he did meanwhile.
        """
        if len(self._pending) <= AT_ONCE:
            return dict(self._pending)
        return {owner: self._pending[owner] for owner in nsmallest(AT_ONCE, self._pending, key=self._turns.__getitem__)}

    def _re_ranked(self, owner: str, lease: Lease | None) -> set[Key] | None:
        """The keys to look at where a peer's key only went or came back, and its fragment is as it was; None where it is not."""
        before = self._members.get(owner)
        if lease is None or before is None or owner in self._unreadable or not lease.same_content(before):
            return None
        self._members[owner] = lease
        return self.desired.put(owner, self.desired.fragment(owner), rank=lease.create_revision)

    def _took(self, owners: Collection[str]) -> None:
        for owner in owners:
            del self._pending[owner]
        if self._pending:
            self._turns.update(owners)
        else:
            self._turns.clear()

    def _set_own(self, owner: str, make: Callable[[], HostState]) -> set[Key]:
        """What the host itself needs, from a plugin that may raise anything: then what there is stays."""
        try:
            state = self.target.shield.carved(make())
        except Exception as error:
            if not isinstance(error, FlannelpyError):
                log.debug("%s: its fragment cannot be made", owner, exc_info=error)
            self.broken[owner] = str(error) if isinstance(error, FlannelpyError) else f"{type(error).__name__}: {error}"
            return set()
        self.broken.pop(owner, None)
        return self.desired.put(owner, state)

    def _set_peer(self, owner: str, lease: Lease | None, target: Target, local: Local) -> set[Key]:
        touched = self._put_peer(owner, lease, target, local)
        self._facts.answered -= {key for key in touched if key.kind == "wgpeer" and self.desired.get(key) is None}
        return touched

    def _put_peer(self, owner: str, lease: Lease | None, target: Target, local: Local) -> set[Key]:
        self._unreadable.pop(owner, None)
        self.paths.pop(owner, None)
        if lease is None:
            self._members.pop(owner, None)
            return self.desired.drop(owner)
        self._members[owner] = lease
        try:
            path = target.backend.path(spoken(lease, target.backend.accepts), local)
            state = path.state | target.admit(lease)
            for route, words in target.shield.crossing(state):
                raise MalformedError(f"{route} would take {words} into the overlay")
            state = self._facts.nexthops.shaped(state, target.scope.links)
        except Exception as error:
            if not isinstance(error, FlannelpyError):
                log.debug("%s: its fragment cannot be made", lease, exc_info=error)
            self._unreadable[owner] = str(error) if isinstance(error, FlannelpyError) else f"{type(error).__name__}: {error}"
            return self.desired.drop(owner)
        if path.carrier:
            self.paths[owner] = path
        return self.desired.put(owner, state, rank=lease.create_revision)

    def _reached(self) -> tuple[Lease, ...]:
        """The peers that are not left out."""
        left_out = self.left_out
        return tuple(lease for owner, lease in self._members.items() if owner not in left_out)

    def _conflicts(self) -> dict[str, str]:
        found = {}
        for owner, (other, key) in self.desired.conflicts.items():
            lease, holder = self._members.get(owner), self._members.get(other)
            if lease is None or not lease.departing:
                found[owner] = f"{lease} claims {key}, which is held by {holder or 'this host'}"
        return found

    async def _look_up(self, changed: Mapping[str, Lease | None], *, anew: bool) -> dict[str, Lease | None]:
        """Find out who is reached without a gateway, of those that changed or where routes have; who is to be made anew for it."""
        moved, self._facts.moved = self._facts.moved, set()
        came = {owner: lease for owner, lease in changed.items() if lease is not None}
        stay = {owner: lease for owner, lease in self._members.items() if owner not in changed}
        asked = {**stay, **came} if anew or moved else came
        asked_for = {address for lease in asked.values() for address in addresses(lease)}
        try:
            found = await self._gateways.on_link(asked_for)
        except BaseException:
            self._facts.moved |= moved
            raise
        known = self._facts.on_link
        if len(known) > 2 * len(self._members) + AT_ONCE:  # of peers that went
            known = {address: known[address] for lease in stay.values() for address in addresses(lease) if address in known}
        before = {address: known[address] for address in asked_for if address in known}
        self._facts.on_link = {**{address: dev for address, dev in known.items() if address not in asked_for}, **found}
        turned = {address for address in asked_for if before.get(address) != found.get(address)}
        return {owner: lease for owner, lease in asked.items() if turned.intersection(addresses(lease))}


@dataclass(slots=True)
class _Facts:
    """What paths depend on. ``moved``: IP versions of which routes have changed; ``answered``: peers of WireGuard."""

    nexthops: Nexthops
    on_link: dict[IPAddress, str] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    answered: set[Key] = field(default_factory=set)
