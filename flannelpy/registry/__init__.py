"""Where do leases live? The registry as the rest of the agent sees it; ``etcd`` is the real one, ``memory`` a verified fake.

Every call has a deadline and raises one of the RegistryError tree. "No data" is never "empty": a call that could not read
raises; it does not return an empty answer. Both implementations pass the same tests (tests/contract).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import MalformedError, RegistryError
from flannelpy.core.model import LEASE_TTL_S, NO_ADDRESS, Family, Lease, LeaseAttrs, parse_subnet_key
from flannelpy.core.secret import Secret


@dataclass(frozen=True, slots=True)
class Malformed:
    """A key below ``<prefix>/subnets`` that could not be read: the key's last part, and why."""

    key: str
    why: str
    mod_revision: int = 0


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """The text at ``<prefix>/config``; None where the key is absent. ``mod_revision`` 0 when absent."""

    text: str | None
    mod_revision: int
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every lease at one revision, in key order, from one range read (paged at one revision where it is large)."""

    leases: tuple[Lease, ...]
    revision: int
    malformed: tuple[Malformed, ...] = ()

    @property
    def defaced(self) -> tuple[Lease, ...]:
        """The malformed whose key is a subnet's all the same: it is taken, by nobody that is known."""
        found = []
        for bad in self.malformed:
            with suppress(MalformedError):
                subnet, subnet6 = parse_subnet_key(bad.key)
                found.append(Lease(subnet, LeaseAttrs(NO_ADDRESS), subnet6, mod_revision=bad.mod_revision))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Put:
    """A lease was created, renewed or changed."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Deleted:
    """A lease key is gone (deleted or expired). ``mod_revision`` is the revision that took it away; 0 where unknown."""

    key: str
    mod_revision: int = 0


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """The network config was written (or, ``text`` None, deleted); ``revision`` 0 where nobody knows by which write."""

    text: str | None
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class OfferPut:
    """What stands beside the lease ``key`` now (core.offer); None: nothing any more."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Offered:
    """What stands beside leases now, by the lease's key: all there is where it is the ``whole``, else what has changed.

    A value that is too long for an offer may be cut, and is too long all the same.
    """

    values: Mapping[str, bytes | None]
    whole: bool = False


Event = Put | Deleted | ConfigChanged | Malformed | OfferPut


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened up to ``revision``, in order: to leases or to the config, never to both.

    ``connected``: the watch stands, for the first time or anew, and the batch is empty. What it was connected to before may have
    been another store, or this one before it was restored: only a listing (of leases, and of the config) tells what is so now.
    """

    events: tuple[Event, ...]
    revision: int
    connected: bool = False


class Registry(Protocol):
    """One cluster's keys: ``<prefix>/config``, ``<prefix>/subnets/*``, and beside each of those ``<prefix>/flannelpy/hosts/*``."""

    async def config(self) -> StoredConfig:
        """The network config as stored."""
        ...

    async def put_config(self, text: str, expected: StoredConfig | None = None) -> int:
        """Write the config; with ``expected`` only if it is still that (ConflictError). Returns the revision."""
        ...

    async def snapshot(self) -> Snapshot:
        """Every lease now. Keys and values that cannot be read are in ``malformed``, and only there."""
        ...

    def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        """Every change from ``from_revision`` on (config and leases), for ever; survives reconnects by itself.

        Raises WatchGapError where changes may have been missed (compaction): take a snapshot and watch anew. While the
        registry is away it stays silent; ``alive`` tells.
        """
        ...

    async def create(
        self, subnet: IPNetwork, attrs: LeaseAttrs, *, subnet6: IPNetwork | None = None, ttl_s: int = LEASE_TTL_S
    ) -> Lease:
        """Take a subnet that nobody holds. Raises TakenError; then nothing was written. ``ttl_s`` 0 writes a reservation."""
        ...

    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = LEASE_TTL_S) -> Lease:
        """Write ``attrs`` under ``lease.key`` with a fresh etcd lease, if the key is still at ``lease.mod_revision``.

        The old etcd lease is revoked afterwards. A reservation stays one (no etcd lease). Raises ConflictError where the key was
        changed or deleted by somebody.
        """
        ...

    async def keep_alive(self, lease: Lease) -> float:
        """Extend the lease's etcd lease to its full TTL; returns the seconds it now has. Reservation: infinity.

        Raises ConflictError where etcd no longer knows the lease.
        """
        ...

    async def remaining(self, lease: Lease) -> float:
        """Seconds until the lease expires, 0 when it is gone. Reservation: infinity."""
        ...

    async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
        """Asked of leases whose keys are gone: the keys that somebody deleted. The other leases have ended themselves.

        A deletion leaves the etcd lease alive; one that has expired, was revoked or was lost with etcd's data is not there. Every
        host asks this of the same leases at one time: however many they are, that is to cost the registry little.
        """
        ...

    async def release(self, lease: Lease) -> None:
        """Delete the key if it is still at ``lease.mod_revision``. Raises ConflictError.

        The etcd lease is left to end by itself: that it outlives its key tells the peers that we do not return.
        """
        ...

    async def offer(self, lease: Lease, text: str | None) -> None:
        """Write this beside our lease, on its etcd lease; None deletes it. Only while the lease is as it is (ConflictError).

        ``renew`` takes it along to the new etcd lease, if it can.
        """
        ...

    def offers(self) -> AsyncIterator[Offered]:
        """What stands beside leases: first all of it, then whatever changes, for ever. Raises RegistryError: begin anew then.

        It depends on nothing else and nothing depends on it: where it may not be read, leases are as ever.
        """
        ...

    @property
    def alive(self) -> bool:
        """False once the registry has not answered for longer than the liveness bound (some seconds)."""
        ...

    @property
    def trouble(self) -> RegistryError | None:
        """What keeps the watch from going on; None where it goes on, or there is none."""
        ...

    @property
    def silent_s(self) -> float:
        """How long the oldest question has been without an answer, in seconds; 0 where none is open."""
        ...

    @property
    def endpoint(self) -> str:
        """Who is spoken to now, or tried next."""
        ...

    async def addresses(self) -> frozenset[IPAddress]:
        """Where the registry may be spoken to, as far as that is known now: within a second, whatever does not answer."""
        ...

    def reconnect(self) -> None:
        """This host has another address: connections from the one before lead nowhere, and nobody tells. Have new ones, now."""
        ...

    async def close(self) -> None:
        """End all streams and connections. May be called twice."""
        ...


class Assigned(Protocol):
    """Beside a Registry whose subnets somebody else gives out: what this host was given. Raises RegistryError.

    Such a lease has no end but its deletion: it stands as a reservation. ``Registry.renew`` writes what we publish into it.
    """

    async def own(self, families: tuple[Family, ...] = ()) -> Lease | None:
        """What we were given, with what is published of it; None where that is nothing yet. ConflictError: nobody knows us.

        Of these ``families``, as all leases are from then on; none: of those that the network's config has, followed or not.
        """
        ...

    async def advertise(self, attrs: LeaseAttrs) -> LeaseAttrs:
        """What is to be published for ``attrs``: a person may have written other addresses beside them."""
        ...

    async def announce(self, lease: Lease) -> None:
        """Say that this host's network is there, if we were given ``lease`` (ConflictError); nothing where that is said."""
        ...

    @property
    def changes(self) -> int:
        """How often what we were given, or what is said of us, was seen to be another than before; what we write does not count."""
        ...

    async def changed(self, since: int) -> None:
        """Wait until ``changes`` is more than that."""
        ...


NO_PASSWORD = Secret("")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach the registry."""

    urls: tuple[str, ...]
    prefix: str = "/coreos.com/network"
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password: Secret[str] = NO_PASSWORD
    password_file: str = ""
    timeout_s: float = 5.0
