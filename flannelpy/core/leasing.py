"""Which subnet is ours, and what keeps it so? Acquiring, keeping and losing a lease, as a machine without I/O or clock.

``step`` takes the time and one event and answers with actions (both in ``lease_events``). Inside it is no protocol of states but a
few facts, and one rule that looks at them and says what to ask of the registry next. What is not sure is listed again before
anything is written; every write is a compare-and-swap. Source: flannel-compat 4.6, 5, 14; its flaws are not repeated:

- Losing a race is no failure: list again, pick again. A lost lease is asked for again in process, the same subnet first.
- The owner of a key is whose address stands in it. Who finds another's address in its key moves on and never writes over it: a
  put does not change the create revision, so there is nothing by which the key could be given back.
- Two keys whose subnets overlap are settled in favour of the older create revision; the owner of the younger releases it.
- A key without an etcd lease is a reservation. It is preferred, kept in place, never given an end, and never deleted by us.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from random import Random

from netaddr import IPNetwork

from flannelpy.core.claims import EVERYTHING, halves, is_kept, older, overlapping, possible, same_host, unusable
from flannelpy.core.config import NetworkConfig, Pool
from flannelpy.core.lease_events import (
    Action,
    Ask,
    AttrsChanged,
    Clear,
    ConfigChanged,
    Create,
    Created,
    CreateFailed,
    CreateTaken,
    Event,
    Hold,
    KeepAlive,
    KeepAliveFailed,
    KeepAliveLost,
    KeptAlive,
    List,
    Listed,
    ListFailed,
    Lost,
    Overheard,
    OwnDefaced,
    OwnDeleted,
    OwnPut,
    Reconnected,
    Release,
    ReleaseConflict,
    Released,
    ReleaseFailed,
    Renew,
    RenewConflict,
    Renewed,
    RenewFailed,
    Started,
    SubnetFreed,
    Tell,
    WakeAt,
    Woke,
)
from flannelpy.core.model import LEASE_TTL_S, Lease, LeaseAttrs, subnet_key
from flannelpy.core.pool import Memory, free_runs, fullness

FAILURE_S = (0.1, 5.0)
"""After a failed call: the first and the longest wait, doubling between them."""
RACE_S = (0.02, 2.0)
"""After losing a race, likewise."""
EDIT_S = (0.4, 60.0)
"""Before writing our value once more over somebody's edit of it, from the second edit on, likewise."""
NO_ROOM_S = (5.0, 60.0)
"""While no subnet is free, likewise; a subnet that is freed is asked for at once."""
QUIET_S = 600.0
"""Edits further apart than this have nothing to do with each other."""
UNKNOWN_S = 60.0
"""How long a lease is believed in whose remaining time nobody has told us."""
EARLIEST = 0.95
"""Of the time until a value is written anew, by chance between this and all of it: a write is told to every host, and hosts that
were switched on together would else write together for ever.
"""
MANY_EDITS = 3
MANY_UNHEARD = 15
"""Values that we wrote without an answer, of which each may stand in etcd by now; older ones are forgotten."""


class Leasing:
    """The lease of one host. ``now`` is in seconds of a monotonic clock that also counts sleep (CLOCK_BOOTTIME, clock_gettime(2)).

    ``attrs`` say who we are and what we publish. ``previous`` are subnets that were ours before, of any family, the best first;
    ``kept`` is the lease that this very machine held last, as it wrote it, and ``promised`` the same as it was going to be written:
    where one of them still stands in the registry word for word, it is taken over, whatever our address is now. ``avoid`` are the
    host's own networks, which are not to be leased.
    ``renew_margin_s`` is how long before the end of its time the value is written anew, although it is kept alive: real flannel
    nodes heal only on a put.
    """

    def __init__(
        self,
        config: NetworkConfig,
        attrs: LeaseAttrs,
        random: Random,
        *,
        previous: Iterable[IPNetwork] = (),
        kept: Lease | None = None,
        promised: Lease | None = None,
        ttl_s: int = LEASE_TTL_S,
        renew_margin_s: float = 3600.0,
    ) -> None:
        self._config = config
        self._attrs = _as_read(attrs)
        self._random = random
        self._kept = (kept, promised)
        self.avoid: tuple[IPNetwork, ...] = ()
        self._ttl_s = ttl_s
        self._renew_every_s = max(ttl_s - renew_margin_s, ttl_s / 2)

        self._now = 0.0
        self._actions: list[Action] = []
        self._told: dict[str, str] = {}

        self._held: Lease | None = None
        self._acquired = 0  # the revision at which we took it: who writes with our address after it lives beside us
        self._announced = False  # the agent knows of the held lease
        self._asked: Ask | None = None  # what is under way
        self._asked_at = 0.0
        self._listing: tuple[Lease, ...] | None = None  # what to choose from; None: list first
        self._defaced: tuple[Lease, ...] = ()  # in that listing: subnets whose value nobody can read
        self._doubt = False  # the held lease may be ours no longer: list before writing
        self._doubt_at = 0.0  # what casts it happened at this revision: no listing from before settles it
        self._rivals: dict[str, str] = {}  # keys that get in our way -> condition
        self._tried: set[str] = set()  # keys that we asked for without hearing what became of it
        self._unheard: list[LeaseAttrs] = []  # what we wrote under the held key without hearing what became of it
        self._stray: Lease | None = None  # one of those that came to be although we hold another

        self._not_before = -inf  # nothing is asked until then
        self._failures = self._races = self._no_room = self._edits = 0
        self._refused = False  # a listing or a renewal failed; the lease itself may be extended all the same
        self._edited_at = -inf
        self._reput_at = -inf
        self._renew_at = self._keep_at = inf
        self.sure_until = inf
        """When the held lease ends if nobody extends it, in the seconds of ``now``; infinity for a reservation."""
        self._unconfirmed = False  # sure_until has passed
        self._memory = Memory(previous)

    @property
    def held(self) -> Lease | None:
        """The lease that we hold, as far as we know."""
        return self._held if self._announced else None

    @property
    def _pools(self) -> list[Pool]:
        return [pool for pool in (self._config.v4, self._config.v6) if pool is not None]

    def step(self, now: float, event: Event) -> list[Action]:
        """Take in one event; the answer is what to do, in order, with at most one action for the registry."""
        self._now = now
        self._actions = []
        self._take_in(event)
        self._look_at_the_clock()
        self._decide()
        return self._actions

    # ------------------------------------------------------------------------------------------------- taking in

    def _take_in(self, event: Event) -> None:
        match event:
            case Started() | Woke():
                pass
            case Listed(leases, _, defaced):
                if self._answered(List):
                    self._doubt_at = self._doubt_at if self._doubt else 0.0
                    self._on_listing(leases, defaced)
            case Overheard(leases, revision, defaced):
                known_at = self._doubt_at if self._held is None else max(self._doubt_at, self._held.mod_revision)
                if self._asked is None and revision >= known_at:
                    self._doubt, self._doubt_at = False, 0.0
                    self._on_listing(leases, defaced)
            case Created(lease) | Renewed(lease):
                self._on_written(lease)
            case KeptAlive(remaining_s):
                self._on_kept_alive(remaining_s)
            case Released():
                self._on_released()
            case CreateTaken() | RenewConflict() | KeepAliveLost() | ReleaseConflict():
                self._on_conflict()
            case ListFailed() | CreateFailed() | RenewFailed() | KeepAliveFailed() | ReleaseFailed():
                self._on_failure()
            case OwnPut(lease):
                self._on_put(lease)
            case OwnDeleted(revision):
                # A deletion from before our creation is history that arrives late.
                if self._held is not None and not 0 < revision < self._held.create_revision:
                    self._cast_doubt(revision or inf)
            case OwnDefaced(key, revision):
                self._on_defaced(key, revision)
            case Reconnected():
                if self._held is None or not self._held.reserved:
                    self._keep_at = self._now  # the cheapest question that tells whether etcd still knows us
            case SubnetFreed(subnet, subnet6, revision):
                self._on_freed(subnet, subnet6, revision)
            case AttrsChanged(attrs):
                self._attrs = _as_read(attrs)
            case ConfigChanged(config):
                self._config, self._listing = config, None
                # A lease that fits stays as it is; another has to be chosen from what there is.
                self._doubt = self._doubt or self._held is None or unusable(self._held, (), config) is not None

    def _answered(self, *kinds: type[Ask]) -> Ask | None:
        """What was asked, if it was one of these; the registry has answered it, so it is there."""
        asked = self._asked
        if not isinstance(asked, kinds):
            return None
        self._asked = None
        self._failures, self._refused = 0, False
        return asked

    def _on_listing(self, listed: tuple[Lease, ...], defaced: tuple[Lease, ...]) -> None:
        leases = tuple(lease for lease in listed if self._ours(lease) or possible(lease, self._config))
        for lease in defaced:
            self._on_defaced(lease.key, lease.mod_revision)
        if self._held is not None and self._held.key not in {lease.key for lease in defaced}:
            self._review(self._held, leases)
        if self._held is None:
            self._listing, self._defaced = leases, tuple(lease for lease in defaced if possible(lease, self._config))

    def _on_defaced(self, key: str, revision: int) -> None:
        """What nobody can read stands in our key: no owner wrote it. We write over just that, as over an edit."""
        held = self._held
        if held is not None and held.key == key and revision > held.mod_revision:
            self._held = replace(held, mod_revision=revision)
            self._count_edit()
            self._renew_at = min(self._renew_at, self._reput_at)

    def _review(self, held: Lease, leases: tuple[Lease, ...]) -> None:
        """Compare what we believe with what the registry holds, and keep, adopt or lose."""
        there = next((lease for lease in leases if lease.key == held.key), None)
        if there is None:
            self._lose(held, "the key was deleted or has expired")
        elif not self._ours(there):
            self._tell("subnet-conflict", f"{held} was ours and was written over by {there.attrs.host}; we take another")
            self._lose(held, f"{there.attrs.host} has written over it")
        elif why := unusable(there, leases, self._config):
            self._lose(there, why)
        else:
            self._acquired = min(self._acquired, there.mod_revision)  # more only where the registry was restored since
            if there != held:
                self._adopt(held, there)
            self._stray = next((lease for lease in leases if lease.key != there.key and self._is_stray(lease)), None)
            self._rivals = {lease.key: code for lease in leases if (code := self._concern(there, lease))}
            self._tell_rivals(there, {lease.key: lease for lease in leases if lease.key in self._rivals})
            self._hold(there)

    def _on_written(self, lease: Lease) -> None:
        asked = self._answered(Create, Renew)
        if asked is None:
            return
        self._races = 0
        self._tried.discard(lease.key)
        self._unheard.clear()
        held = self._held
        if held is not None and held.key == lease.key and held.mod_revision > lease.mod_revision:
            return  # the watch has told already what came after
        self._listing = None
        if held is None:
            self._acquired = lease.mod_revision
        self._memory.settled()
        self._renew_at = self._asked_at + self._renew_every_s * self._random.uniform(EARLIEST, 1.0)
        self._believe(lease, self._asked_at + self._ttl_s, self._asked_at + self._ttl_s / 3)
        if isinstance(asked, Create) and lease.subnet6 is not None and lease.subnet != EVERYTHING:
            # Both halves are in the key, so another key may have taken one half meanwhile: see before it is told.
            self._held, self._doubt = lease, True
        else:
            self._hold(lease)

    def _on_kept_alive(self, remaining_s: float) -> None:
        asked = self._answered(KeepAlive)
        held = self._held
        if not isinstance(asked, KeepAlive) or held is None or asked.lease.etcd_lease != held.etcd_lease:
            return
        self._believe(held, self._asked_at + remaining_s, self._asked_at + min(remaining_s, self._ttl_s) / 3)
        if remaining_s < self._ttl_s / 2:
            self._renew_at = self._now  # somebody else's short etcd lease: give the key one of ours

    def _on_released(self) -> None:
        asked = self._answered(Release)
        if not isinstance(asked, Release):
            return
        gone = asked.lease
        if self._held is not None or not self._ours(gone):
            return  # a stray, or what nobody can read
        self._memory.released(self._now, halves(gone))
        if self._listing is not None:
            self._listing = tuple(lease for lease in self._listing if lease.key != gone.key)

    def _on_conflict(self) -> None:
        """The registry says that something is not as we thought: list again, a little later than the others who lost."""
        if self._answered(Create, Renew, KeepAlive, Release) is None:
            return
        self._doubt, self._listing = True, None
        self._races += 1
        self._wait(RACE_S, self._races)

    def _on_failure(self) -> None:
        """It is not known whether it was done. A write is safe to repeat (it compares); a choice is made from a new listing."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if isinstance(asked, Create):
            self._tried.add(subnet_key(asked.subnet, asked.subnet6))
        elif isinstance(asked, Renew) and asked.attrs not in self._unheard:
            self._unheard = [*self._unheard[-MANY_UNHEARD:], asked.attrs]
        self._listing = None
        self._doubt = self._doubt or self._unconfirmed or isinstance(asked, List)
        self._refused = isinstance(asked, List | Renew)
        self._failures += 1
        self._wait(FAILURE_S, self._failures)

    def _on_put(self, lease: Lease) -> None:
        held = self._held
        if held is None or not (self._ours(lease) or possible(lease, self._config)):
            return
        if lease.key == held.key:
            if lease.mod_revision <= held.mod_revision:
                return  # an echo
            if self._ours(lease):
                self._adopt(held, lease)
                self._hold(lease)
            else:
                self._cast_doubt(lease.mod_revision)
        elif self._is_stray(lease):
            self._stray = lease
        elif code := self._concern(held, lease):
            self._rivals[lease.key] = code
            self._tell_rivals(held, {lease.key: lease})
            if code == "subnet-conflict" and older(lease, held):
                self._cast_doubt(lease.mod_revision)

    def _cast_doubt(self, revision: float) -> None:
        self._doubt, self._doubt_at = True, max(self._doubt_at, revision)

    def _on_freed(self, subnet: IPNetwork, subnet6: IPNetwork | None, revision: int) -> None:
        if self._held is not None and self._held.key == subnet_key(subnet, subnet6):
            self._cast_doubt(revision or inf)
        self._memory.freed(self._now, (net for net in (subnet, subnet6) if net and net != EVERYTHING))
        if self._rivals.pop(subnet_key(subnet, subnet6), None) and self._held is not None:
            self._tell_rivals(self._held, {})
        if self._no_room:
            self._no_room, self._listing, self._not_before = 0, None, self._now

    # -------------------------------------------------------------------------------------------- keeping and losing

    def _hold(self, lease: Lease) -> None:
        if self._announced and lease == self._held:
            return
        self._held, self._announced = lease, True
        self._no_room = 0
        for code in ("lease-lost", "no-free-subnet"):
            self._clear(code)
        if not self._rivals:
            self._clear("subnet-conflict")
        self._actions.append(Hold(lease))

    def _lose(self, lease: Lease, why: str) -> None:
        if self._announced:
            self._actions.append(Lost(lease, why))
            self._tell("lease-lost", f"{lease}: {why}")
        self._memory.lost(halves(lease))
        self._held, self._announced = None, False
        self._rivals.clear()
        self._unheard.clear()
        self._stray = None
        self._unconfirmed = False
        self._clear("lease-unconfirmed")

    def _adopt(self, held: Lease, lease: Lease) -> None:
        """Our key was written with our address in it: it is ours as it is now, and our value is put back if need be."""
        if lease.etcd_lease != held.etcd_lease:
            self._believe(lease, self._now + UNKNOWN_S, self._now)
        renewing = self._asked if isinstance(self._asked, Renew) else None
        # Somebody else's etcd lease under it: another host with our address, or a person; while we write, it may be our own.
        foreign = renewing is None and lease.etcd_lease not in (held.etcd_lease, 0)
        if not foreign and lease.attrs in (self._attrs, held.attrs, renewing.attrs if renewing else None):
            return
        self._count_edit()
        if foreign:
            self._renew_at = min(self._renew_at, self._reput_at)
        if self._edits >= MANY_EDITS:
            self._tell("duplicate-public-ip", f"{lease.key} at {lease.attrs.host} is written over and over by another host")

    def _count_edit(self) -> None:
        """When our value is put back: the first time at once, then with pauses."""
        if self._now - self._edited_at > QUIET_S:
            self._edits = 0
        self._edits += 1
        self._edited_at = self._reput_at = self._now
        if self._edits > 1:
            self._reput_at += self._backoff(EDIT_S, self._edits - 1)

    def _believe(self, lease: Lease, sure_until: float, keep_at: float) -> None:
        """Set the clock of the lease: how long it surely lives, and when to extend it next. A reservation has no end."""
        self.sure_until, self._keep_at = (inf, inf) if lease.reserved else (sure_until, keep_at)
        if self.sure_until > self._now:
            self._unconfirmed = False
            self._clear("lease-unconfirmed")

    def _look_at_the_clock(self) -> None:
        if self._held is not None and not self._unconfirmed and self._now >= self.sure_until:
            self._unconfirmed = self._doubt = True
            self._tell("lease-unconfirmed", f"{self._held} was not extended in time and may have expired")
        if self._edits and self._now - self._edited_at > QUIET_S:
            self._edits = 0
            if "duplicate-public-ip" not in self._rivals.values():
                self._clear("duplicate-public-ip")

    def _concern(self, held: Lease, lease: Lease) -> str | None:
        """The condition that another lease is for us, if it is one. Leftovers of our own, from before, are none."""
        if lease.key == held.key or self._is_stray(lease):
            return None
        if same_host(lease.attrs, self._attrs):
            return "duplicate-public-ip" if not lease.reserved and lease.mod_revision > self._acquired else None
        return "subnet-conflict" if overlapping(lease, held) else None

    def _is_stray(self, lease: Lease) -> bool:
        """True for what a call of ours created that we had given up."""
        return lease.key in self._tried and not lease.reserved and same_host(lease.attrs, self._attrs)

    def _tell_rivals(self, held: Lease, rivals: dict[str, Lease]) -> None:
        for key, lease in rivals.items():
            if self._rivals[key] == "subnet-conflict":
                first = lease if older(lease, held) else held
                self._tell("subnet-conflict", f"{held} (us) and {lease} overlap; {first.attrs.host} was first and keeps it")
            else:
                self._tell("duplicate-public-ip", f"{lease} is alive beside ours, {held}")
        told = set(self._rivals.values())
        if self._edits < MANY_EDITS and "duplicate-public-ip" not in told:
            self._clear("duplicate-public-ip")
        if "subnet-conflict" not in told and self._announced:
            self._clear("subnet-conflict")

    def _is_kept(self, lease: Lease) -> bool:
        return any(is_kept(lease, kept) for kept in self._kept)

    def _ours(self, lease: Lease) -> bool:
        """True where a lease carries our address, or what we published in the held lease, or wrote there without an answer, or is
        the one of our last life.
        """
        held = self._held
        return (
            same_host(lease.attrs, self._attrs)
            or self._is_kept(lease)
            or (held is not None and same_host(lease.attrs, held.attrs))
            or (held is not None and lease.key == held.key and lease.attrs in self._unheard)
        )

    # ----------------------------------------------------------------------------------------------------- deciding

    def _decide(self) -> None:
        """From the facts to the next action."""
        if self._asked is not None:
            return
        held = self._held
        if self._now < self._not_before:
            self._wake()
        elif held is not None and self._refused and self._now >= self._keep_at:
            self._ask(KeepAlive(held))  # in turn: an etcd that takes no writes, or does not let us read, extends leases
        elif self._doubt or (held is None and self._listing is None):
            self._doubt = False  # a doubt that comes while the listing is under way asks for another
            self._ask(List())
        elif held is None:
            self._acquire(self._listing or ())
        elif self._stray is not None:
            stray, self._stray = self._stray, None
            self._ask(Release(stray))
        elif self._now >= (self._renew_at if held.attrs == self._attrs else min(self._renew_at, self._reput_at)):
            self._ask(Renew(held, self._attrs, 0 if held.reserved else self._ttl_s))
        elif self._now >= self._keep_at:
            self._ask(KeepAlive(held))
        else:
            self._wake()

    def _acquire(self, leases: tuple[Lease, ...]) -> None:
        mine = [lease for lease in leases if self._ours(lease)]
        for lease in sorted(mine, key=lambda lease: (not self._is_kept(lease), not lease.reserved)):  # otherwise in key order
            if unusable(lease, leases, self._config) is None:
                return self._ask(Renew(lease, self._attrs, 0 if lease.reserved else self._ttl_s))
            if not lease.reserved:
                return self._ask(Release(lease))
        for lease in self._defaced:
            if self._memory.were_ours(halves(lease)):
                self._listing, self._defaced = None, ()
                return self._ask(Release(lease))  # and take it anew
        leased = [net for lease in (*leases, *self._defaced) for net in halves(lease)]
        taken = [*self.avoid, *leased]
        chosen = [self._memory.choose(pool, taken, self._random) for pool in self._pools]
        if None in chosen:
            return self._no_subnet(leased)
        v4 = next((net for net in chosen if net and net.version == 4), EVERYTHING)
        v6 = next((net for net in chosen if net and net.version == 6), None)
        return self._ask(Create(v4, v6, self._attrs, self._ttl_s))

    def _no_subnet(self, leased: list[IPNetwork]) -> None:
        full = [pool for pool in self._pools if not free_runs(pool, [*self.avoid, *leased])]
        self._tell("no-free-subnet", f"no free subnet: {', '.join(fullness(pool, leased, self.avoid) for pool in full)}")
        self._listing = None
        self._no_room += 1
        self._wait(NO_ROOM_S, self._no_room)
        self._wake()

    def _ask(self, ask: Ask) -> None:
        self._asked, self._asked_at = ask, self._now
        self._actions.append(ask)

    def _wake(self) -> None:
        times = [self._not_before] if self._now < self._not_before else []
        if self._held is not None:
            if not times:
                times = [self._keep_at, self._renew_at]
                if self._held.attrs != self._attrs:
                    times.append(self._reput_at)
            if not self._unconfirmed:
                times.append(self.sure_until)
            if self._edits:
                times.append(self._edited_at + QUIET_S + 1)
        self._actions.append(WakeAt(min(times)))

    def _wait(self, bounds: tuple[float, float], turn: int) -> None:
        self._not_before = self._now + self._backoff(bounds, turn)

    def _backoff(self, bounds: tuple[float, float], turn: int) -> float:
        """A time that doubles each turn, with chance in it, so that hosts which failed together do not try together."""
        first, longest = bounds
        return min(longest, first * 2.0 ** min(turn - 1, 30)) * self._random.uniform(0.5, 1.0)

    def _tell(self, code: str, detail: str) -> None:
        if self._told.get(code) != detail:
            self._told[code] = detail
            self._actions.append(Tell(code, detail))

    def _clear(self, code: str) -> None:
        if self._told.pop(code, None) is not None:
            self._actions.append(Clear(code))


def _as_read(attrs: LeaseAttrs) -> LeaseAttrs:
    """As a reader of the key will see them, so that our own value is never taken for somebody's edit."""
    return LeaseAttrs.from_json(attrs.to_json())
