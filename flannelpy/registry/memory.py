"""Where do leases live in a test? In this process: a small etcd whose clock and faults are in the test's hand.

``MemoryStore`` is the etcd, ``MemoryRegistry`` one host's way to it; several registries on one store are several hosts. Both pass
the tests that the real registry passes (tests/contract). Nothing here waits for time: leases expire when ``advance`` says so.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from netaddr import IPNetwork

from flannelpy.core.errors import ConflictError, RegistryError, RegistryUnavailableError, TakenError, WatchGapError
from flannelpy.core.model import LEASE_TTL_S, Lease, LeaseAttrs, subnet_key
from flannelpy.registry import Batch, ConfigChanged, Event, Malformed, Put, Snapshot, StoredConfig
from flannelpy.registry.etcd.records import Keys, decode_delete, decode_put


@dataclass(frozen=True, slots=True)
class Record:
    """What etcd holds at a key; ``value`` None is a deletion, in the history only."""

    key: bytes
    value: bytes | None
    etcd_lease: int
    create_revision: int
    mod_revision: int


@dataclass(slots=True)
class Grant:
    """An etcd lease: seconds it lasts, and when it ends by the store's clock."""

    ttl_s: int
    until: float


@dataclass(slots=True)
class MemoryStore:
    """A small etcd: keys with revisions, their history, leases, and the switches of what can go wrong."""

    now: float = 0.0
    revision: int = 1
    records: dict[bytes, Record] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    grants: dict[int, Grant] = field(default_factory=dict)
    compacted: int = 0
    down: bool = False
    connection: int = 0
    """Counts the times that streams were cut; one that was opened before has to begin anew."""
    _next_grant: int = 0x1000
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    # ------------------------------------------------------------------------------------------------- faults

    def stop(self) -> None:
        """From now on every call raises RegistryUnavailableError and watches are silent."""
        self.down = True
        self.drop_watches()

    def start(self) -> None:
        """Undo ``stop``: watches go on from where they were."""
        self.down = False
        self.wake()

    def drop_watches(self) -> None:
        """Cut every stream; each comes back by itself and resumes, or finds its revision compacted."""
        self.connection += 1
        self.wake()

    def compact(self, revision: int | None = None) -> None:
        """Forget history before ``revision`` (all of it by default). A stream that stands is not disturbed, as in etcd."""
        self.compacted = self.revision if revision is None else revision

    def lose_data(self) -> None:
        """Begin anew with nothing, as an etcd whose disk was replaced; revisions start over."""
        self.records.clear()
        self.history.clear()
        self.grants.clear()
        self.revision = 1
        self.compacted = 0
        self.drop_watches()

    def advance(self, seconds: float) -> None:
        """Let time pass; leases that end meanwhile take their keys with them."""
        self.now += seconds
        for etcd_lease, grant in sorted(self.grants.items(), key=lambda item: item[1].until):
            if grant.until <= self.now:
                self.revoke(etcd_lease)

    def expire(self, key: str | bytes) -> None:
        """End the etcd lease that this key (in full) hangs on, now."""
        self.revoke(self.records[_bytes(key)].etcd_lease)

    # ------------------------------------------------------------------------------------------ etcd's own verbs

    def put(self, key: str | bytes, value: str | bytes, etcd_lease: int = 0) -> Record:
        """Write a key, whoever holds it, as somebody with etcdctl would."""
        raw = _bytes(key)
        self.revision += 1
        before = self.records.get(raw)
        created = before.create_revision if before else self.revision
        record = Record(raw, _bytes(value), etcd_lease, created, self.revision)
        self.records[raw] = record
        self._remember(record)
        return record

    def delete(self, key: str | bytes) -> None:
        """Delete a key; one that is absent is no change."""
        before = self.records.pop(_bytes(key), None)
        if before is not None:
            self.revision += 1
            self._remember(replace(before, value=None, mod_revision=self.revision))

    def grant(self, ttl_s: int) -> int:
        """A new etcd lease, or 0 for a ``ttl_s`` of 0."""
        if not ttl_s:
            return 0
        self._next_grant += 1
        self.grants[self._next_grant] = Grant(ttl_s, self.now + ttl_s)
        return self._next_grant

    def revoke(self, etcd_lease: int) -> None:
        """End an etcd lease; its keys go with it."""
        if self.grants.pop(etcd_lease, None) is not None:
            for key in [record.key for record in self.records.values() if record.etcd_lease == etcd_lease]:
                self.delete(key)

    # ---------------------------------------------------------------------------------------------- watching

    def wake(self) -> None:
        """Let every watch look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Until the next ``wake``."""
        await self._changed.wait()

    def _remember(self, record: Record) -> None:
        self.history.append(record)
        self.wake()


class MemoryRegistry:
    """The registry of one cluster in a MemoryStore. ``down`` cuts this host off, ``store.stop()`` all of them."""

    def __init__(self, store: MemoryStore | None = None, prefix: str = "/coreos.com/network") -> None:
        self.store = store if store is not None else MemoryStore()
        self.keys = Keys.under(prefix)
        self._down = False
        self._closed = False

    @property
    def down(self) -> bool:
        """True while this host cannot reach the store."""
        return self._down or self.store.down

    @down.setter
    def down(self, down: bool) -> None:
        self._down = down
        self.store.drop_watches()

    @property
    def alive(self) -> bool:
        """False while the store is out of reach."""
        return not self.down

    async def config(self) -> StoredConfig:
        """The network config as stored."""
        await self._reach()
        record = self.store.records.get(self.keys.config)
        if record is None:
            return StoredConfig(None, 0, self.store.revision)
        return StoredConfig(_text(record), record.mod_revision, self.store.revision)

    async def put_config(self, text: str, expected: StoredConfig | None = None) -> int:
        """Write the config; with ``expected`` only if it is still that (ConflictError). Returns the revision."""
        await self._reach()
        there = self.store.records.get(self.keys.config)
        if expected is not None and expected.mod_revision != (there.mod_revision if there else 0):
            raise ConflictError(f"config: expected revision {expected.mod_revision}; nothing was written")
        return self.store.put(self.keys.config, text).mod_revision

    async def snapshot(self) -> Snapshot:
        """Every lease now."""
        await self._reach()
        inside = sorted((key, record) for key, record in self.store.records.items() if key.startswith(self.keys.subnets))
        read = [_decode(record, self.keys) for _, record in inside]
        return Snapshot(
            tuple(each.lease for each in read if not isinstance(each, Malformed)),
            self.store.revision,
            tuple(each for each in read if isinstance(each, Malformed)),
        )

    async def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        """Every change from ``from_revision`` on; the first batch after every (re)connect is empty. Raises WatchGapError."""
        store, position, connection = self.store, from_revision, -1
        while not self._closed:
            if self.down:
                await store.changed()
                continue
            if connection != store.connection:
                if store.revision < position - 1:
                    raise WatchGapError(f"at revision {store.revision}, expected {position - 1} or later; restored?")
                if position < store.compacted:
                    raise WatchGapError(f"history before revision {store.compacted} is compacted; expected to go on before it")
                if position > store.revision + 1:
                    raise WatchGapError(f"at revision {store.revision}, expected {position - 1} or later; restored?")
                connection = store.connection
                yield Batch((), position - 1, connected=True)
                continue
            if events := tuple(self._events(position)):
                position = store.revision + 1
                yield Batch(events, store.revision)
            else:
                await store.changed()

    def _events(self, position: int) -> list[Event]:
        return [
            _event(record, self.keys)
            for record in self.store.history
            if record.mod_revision >= position and (record.key == self.keys.config or record.key.startswith(self.keys.subnets))
        ]

    async def create(
        self, subnet: IPNetwork, attrs: LeaseAttrs, *, subnet6: IPNetwork | None = None, ttl_s: int = LEASE_TTL_S
    ) -> Lease:
        """Take a subnet that nobody holds. Raises TakenError. ``ttl_s`` 0 writes a reservation."""
        await self._reach()
        name = subnet_key(subnet, subnet6)
        key = self.keys.lease(name)
        if key in self.store.records:
            raise TakenError(f"{name}: somebody holds this subnet already; nothing was written")
        record = self.store.put(key, attrs.to_json(), self.store.grant(ttl_s))
        return Lease(subnet, attrs, subnet6, record.etcd_lease, record.create_revision, record.mod_revision)

    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = LEASE_TTL_S) -> Lease:
        """Write ``attrs`` under ``lease.key`` with a fresh etcd lease. Raises ConflictError."""
        await self._reach()
        self._check(lease)
        etcd_lease = 0 if lease.reserved else self.store.grant(ttl_s)
        record = self.store.put(self.keys.lease(lease.key), attrs.to_json(), etcd_lease)
        self.store.revoke(lease.etcd_lease)
        return replace(lease, attrs=attrs, etcd_lease=etcd_lease, mod_revision=record.mod_revision)

    async def keep_alive(self, lease: Lease) -> float:
        """Extend the lease's etcd lease to its full TTL; returns the seconds it now has."""
        await self._reach()
        if lease.reserved:
            return math.inf
        grant = self.store.grants.get(lease.etcd_lease)
        if grant is None:
            raise ConflictError(f"{lease.key}: the store no longer knows lease {lease.etcd_lease:x}; expected it to live")
        grant.until = self.store.now + grant.ttl_s
        return float(grant.ttl_s)

    async def remaining(self, lease: Lease) -> float:
        """Seconds until the lease expires, 0 when it is gone."""
        await self._reach()
        if lease.reserved:
            return math.inf
        grant = self.store.grants.get(lease.etcd_lease)
        record = self.store.records.get(self.keys.lease(lease.key))
        held = grant is not None and record is not None and record.etcd_lease == lease.etcd_lease
        return grant.until - self.store.now if grant is not None and held else 0.0

    async def release(self, lease: Lease) -> None:
        """Delete the key if it is still at ``lease.mod_revision``. Raises ConflictError."""
        await self._reach()
        self._check(lease)
        self.store.delete(self.keys.lease(lease.key))

    async def outlives_key(self, lease: Lease) -> bool:
        """Asked of a lease whose key is gone: True where somebody deleted the key, False where the lease itself has ended."""
        await self._reach()
        return lease.reserved or lease.etcd_lease in self.store.grants

    @property
    def trouble(self) -> RegistryError | None:
        """What keeps the watch from going on; None where it goes on, or there is none."""
        return RegistryUnavailableError("memory: no answer; expected the store to be up") if self.down else None

    @property
    def silent_s(self) -> float:
        """Nothing is waited for: what cannot be answered is refused at once."""
        return 0.0

    @property
    def endpoint(self) -> str:
        """Who is spoken to now."""
        return "memory"

    async def close(self) -> None:
        """End all watches. May be called twice."""
        self._closed = True
        self.store.wake()

    async def _reach(self) -> None:
        """Give way once, as a call over a network does; then the store answers or does not."""
        await asyncio.sleep(0)
        if self.down or self._closed:
            raise RegistryUnavailableError("memory: no answer; expected the store to be up")

    def _check(self, lease: Lease) -> None:
        record = self.store.records.get(self.keys.lease(lease.key))
        if record is None or record.mod_revision != lease.mod_revision:
            found = f"changed at revision {record.mod_revision}" if record else "deleted"
            raise ConflictError(f"{lease.key}: {found}, expected revision {lease.mod_revision}; nothing was written")


def _event(record: Record, keys: Keys) -> Event:
    if record.key == keys.config:
        return ConfigChanged(None if record.value is None else _text(record))
    if record.value is None:
        return decode_delete(keys.name(record.key), record.mod_revision)
    return _decode(record, keys)


def _decode(record: Record, keys: Keys) -> Put | Malformed:
    return decode_put(
        keys.name(record.key),
        record.value or b"",
        etcd_lease=record.etcd_lease,
        create_revision=record.create_revision,
        mod_revision=record.mod_revision,
    )


def _text(record: Record) -> str:
    return (record.value or b"").decode(errors="replace")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
