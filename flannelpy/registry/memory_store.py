"""What is etcd, as far as leases go? A small one in memory: keys with revisions, their history, leases, and a clock to move."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from netaddr import IPAddress

from flannelpy.core.errors import RegistryRefusedError


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
    full: bool = False
    """Out of space: no transaction is carried out and no lease granted any more, all else goes on (etcd's alarm NOSPACE)."""
    connection: int = 0
    """Counts the times that streams were cut; one that was opened before has to begin anew."""
    addresses: set[IPAddress] = field(default_factory=set)
    """Where it may be spoken to, as hosts are told."""
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

    def check_space(self) -> None:
        """Raise what a full etcd answers to a write."""
        if self.full:
            raise RegistryRefusedError("memory: etcd takes no more writes: database space exceeded")

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


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
