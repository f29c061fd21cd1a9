"""What has become of each call? A registry around another one, which notes every outcome by the kind of call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import ConflictError, RegistryError, TakenError, WatchGapError
from flannelpy.core.model import LEASE_TTL_S, Family, Lease, LeaseAttrs
from flannelpy.registry import Assigned, Batch, Offered, Registry, Snapshot, StoredConfig
from flannelpy.registry.health import Kind, RegistryHealth

_ANSWERS = (ConflictError, TakenError, WatchGapError)
"""Errors by which etcd has done what it was asked: it compared, and looked."""


@contextlib.contextmanager
def _counted(health: RegistryHealth, kind: Kind) -> Iterator[None]:
    try:
        yield
    except _ANSWERS:
        health.succeeded(kind)
        raise
    except RegistryError as error:
        health.failed(kind, error)
        raise
    health.succeeded(kind)


class Monitored:
    """``registry``, with ``health`` listening."""

    def __init__(self, registry: Registry, health: RegistryHealth) -> None:
        self._registry = registry
        self._health = health

    async def config(self) -> StoredConfig:
        """The network config as stored."""
        with _counted(self._health, Kind.READ):
            return await self._registry.config()

    async def put_config(self, text: str, expected: StoredConfig | None = None) -> int:
        """Write the config; with ``expected`` only if it is still that (ConflictError). Returns the revision."""
        with _counted(self._health, Kind.WRITE):
            return await self._registry.put_config(text, expected)

    async def snapshot(self) -> Snapshot:
        """Every lease now."""
        with _counted(self._health, Kind.READ):
            return await self._registry.snapshot()

    async def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        """Every change from ``from_revision`` on. Raises WatchGapError.

        That it stands proves nothing yet: what comes of it is shown by an event, or by ``RegistryHealth.look``.
        """
        batches = self._registry.watch(from_revision)
        async with contextlib.aclosing(batches) if isinstance(batches, AsyncGenerator) else contextlib.nullcontext():
            while True:
                try:
                    batch = await anext(batches)
                except StopAsyncIteration:
                    return
                except _ANSWERS:
                    self._health.succeeded(Kind.WATCH)
                    raise
                except RegistryError as error:
                    self._health.failed(Kind.WATCH, error)
                    raise
                if batch.events:
                    self._health.succeeded(Kind.WATCH)
                yield batch

    async def create(
        self, subnet: IPNetwork, attrs: LeaseAttrs, *, subnet6: IPNetwork | None = None, ttl_s: int = LEASE_TTL_S
    ) -> Lease:
        """Take a subnet that nobody holds. Raises TakenError. ``ttl_s`` 0 writes a reservation."""
        with _counted(self._health, Kind.WRITE):
            return await self._registry.create(subnet, attrs, subnet6=subnet6, ttl_s=ttl_s)

    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = LEASE_TTL_S) -> Lease:
        """Write ``attrs`` under ``lease.key`` with a fresh etcd lease. Raises ConflictError."""
        with _counted(self._health, Kind.WRITE):
            return await self._registry.renew(lease, attrs, ttl_s=ttl_s)

    async def keep_alive(self, lease: Lease) -> float:
        """Extend the lease's etcd lease to its full TTL; returns the seconds it now has. Raises ConflictError."""
        if lease.reserved:
            return await self._registry.keep_alive(lease)  # etcd is not asked
        with _counted(self._health, Kind.KEEP_ALIVE):
            return await self._registry.keep_alive(lease)

    async def remaining(self, lease: Lease) -> float:
        """Seconds until the lease expires, 0 when it is gone."""
        if lease.reserved:
            return await self._registry.remaining(lease)
        with _counted(self._health, Kind.READ):
            return await self._registry.remaining(lease)

    async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
        """Asked of leases whose keys are gone: the keys that somebody deleted. The other leases have ended themselves."""
        if all(lease.reserved for lease in leases):
            return await self._registry.outliving(leases)  # etcd is not asked
        with _counted(self._health, Kind.READ):
            return await self._registry.outliving(leases)

    async def release(self, lease: Lease) -> None:
        """Delete the key if it is still at ``lease.mod_revision``. Raises ConflictError."""
        with _counted(self._health, Kind.WRITE):
            await self._registry.release(lease)

    async def offer(self, lease: Lease, text: str | None) -> None:
        """See ``Registry.offer``. Not counted: what somebody may not write there says nothing of leases."""
        await self._registry.offer(lease, text)

    def offers(self) -> AsyncIterator[Offered]:
        """See ``Registry.offers``. Not counted."""
        return self._registry.offers()

    @property
    def alive(self) -> bool:
        """False once the registry has not answered for longer than the liveness bound."""
        return self._registry.alive

    @property
    def trouble(self) -> RegistryError | None:
        """What keeps the watch from going on; None where it goes on, or there is none."""
        return self._registry.trouble

    @property
    def silent_s(self) -> float:
        """How long the oldest question has been without an answer, in seconds; 0 where none is open."""
        return self._registry.silent_s

    @property
    def endpoint(self) -> str:
        """Who is spoken to now, or tried next."""
        return self._registry.endpoint

    async def addresses(self) -> frozenset[IPAddress]:
        """Where the registry may be spoken to, as far as that is known now."""
        return await self._registry.addresses()

    def reconnect(self) -> None:
        """Have new connections."""
        self._registry.reconnect()

    async def close(self) -> None:
        """End all streams and connections. May be called twice."""
        await self._registry.close()


class MonitoredNode:
    """``assigned``, with ``health`` listening."""

    def __init__(self, assigned: Assigned, health: RegistryHealth) -> None:
        self._assigned = assigned
        self._health = health

    async def own(self, families: tuple[Family, ...] = ()) -> Lease | None:
        """What we were given. Raises ConflictError."""
        with _counted(self._health, Kind.NODE):
            return await self._assigned.own(families)

    async def advertise(self, attrs: LeaseAttrs) -> LeaseAttrs:
        """What is to be published for ``attrs``."""
        with _counted(self._health, Kind.NODE):
            return await self._assigned.advertise(attrs)

    async def announce(self, lease: Lease) -> None:
        """Say that this host's network is there. Raises ConflictError."""
        with _counted(self._health, Kind.WRITE):
            await self._assigned.announce(lease)

    @property
    def changes(self) -> int:
        """How often what we were given was seen to be another than before."""
        return self._assigned.changes

    async def changed(self, since: int) -> None:
        """Wait until ``changes`` is more than that."""
        await self._assigned.changed(since)
