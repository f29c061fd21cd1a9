"""Where do leases live in a test? In this process: a small etcd whose clock and faults are in the test's hand.

``MemoryStore`` is the etcd, ``MemoryRegistry`` one host's way to it; several registries on one store are several hosts. Both pass
the tests that the real registry passes (tests/contract). Nothing here waits for time: leases expire when ``advance`` says so. Any
call can fail as a test wants it (``fail``), before anything is done or after all of it.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import (
    ConflictError,
    RegistryError,
    RegistryUnavailableError,
    TakenError,
    WatchGapError,
)
from flannelpy.core.model import LEASE_TTL_S, Lease, LeaseAttrs, subnet_key
from flannelpy.registry import Batch, ConfigChanged, Event, Malformed, Offered, Put, Snapshot, StoredConfig
from flannelpy.registry.etcd.records import Keys, decode_delete, decode_put
from flannelpy.registry.memory_store import MemoryStore, Record

__all__ = ["MemoryRegistry", "MemoryStore"]


METHODS = ("config", "put_config", "snapshot", "watch", "create", "renew", "keep_alive", "remaining", "release", "outliving")
"""What can fail of what leases need."""
BESIDE = ("offer", "offers")
"""And what nothing depends on."""
EVERY = (*METHODS, *BESIDE)


@dataclass(slots=True)
class Fault:
    """How a method fails, how often yet, and whether it has done its work before."""

    error: RegistryError
    times: float
    carried_out: bool = False


P = ParamSpec("P")
T = TypeVar("T")


def _call(
    work: Callable[Concatenate[MemoryRegistry, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[MemoryRegistry, P], Coroutine[Any, Any, T]]:
    """A call gives way once, as one over a network does; then the store answers or does not, as the test wants it."""
    name = work.__name__

    @wraps(work)
    async def called(registry: MemoryRegistry, /, *args: P.args, **kwargs: P.kwargs) -> T:
        await asyncio.sleep(0)
        if registry.down or registry.closed:
            raise RegistryUnavailableError("memory: no answer; expected the store to be up")
        registry.trip(name)
        answer = await work(registry, *args, **kwargs)
        registry.trip(name, carried_out=True)
        return answer

    return called


class MemoryRegistry:
    """The registry of one cluster in a MemoryStore. ``down`` cuts this host off, ``store.stop()`` all of them."""

    def __init__(self, store: MemoryStore | None = None, prefix: str = "/coreos.com/network") -> None:
        self.store = store if store is not None else MemoryStore()
        self.keys = Keys.under(prefix)
        self._down = False
        self.closed = False
        self._faults: dict[str, Fault] = {}
        self._offered: dict[str, str] = {}

    def fail(self, method: str, error: RegistryError, times: float = 1, *, carried_out: bool = False) -> None:
        """The next ``times`` calls of a method raise ``error`` (infinity: until ``mend``); ``carried_out``: after doing the work.

        A watch that stands raises it at its next turn, one that begins at once.
        """
        if method not in EVERY:
            raise ValueError(f"{method!r}: expected one of {', '.join(EVERY)}")
        error.undecided = isinstance(error, RegistryUnavailableError) or carried_out
        self._faults[method] = Fault(error, times, carried_out)
        self.store.wake()

    def mend(self, *methods: str) -> None:
        """These methods, or all, fail no longer."""
        for method in methods or EVERY:
            self._faults.pop(method, None)

    def trip(self, method: str, *, carried_out: bool = False) -> None:
        """Raise what a method is to fail with, if it is to fail at this point."""
        fault = self._faults.get(method)
        if fault is None or fault.carried_out != carried_out:
            return
        fault.times -= 1
        if fault.times <= 0:
            del self._faults[method]
        raise fault.error.with_traceback(None)

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

    @_call
    async def config(self) -> StoredConfig:
        """The network config as stored."""
        record = self.store.records.get(self.keys.config)
        if record is None:
            return StoredConfig(None, 0, self.store.revision)
        return StoredConfig(_text(record), record.mod_revision, self.store.revision)

    @_call
    async def put_config(self, text: str, expected: StoredConfig | None = None) -> int:
        """Write the config; with ``expected`` only if it is still that (ConflictError). Returns the revision."""
        self.store.check_space()
        there = self.store.records.get(self.keys.config)
        if expected is not None and expected.mod_revision != (there.mod_revision if there else 0):
            raise ConflictError(f"config: expected revision {expected.mod_revision}; nothing was written")
        return self.store.put(self.keys.config, text).mod_revision

    @_call
    async def snapshot(self) -> Snapshot:
        """Every lease now."""
        inside = sorted((key, record) for key, record in self.store.records.items() if key.startswith(self.keys.subnets))
        read = [_decode(record, self.keys) for _, record in inside]
        return Snapshot(
            tuple(each.lease for each in read if not isinstance(each, Malformed)),
            self.store.revision,
            tuple(each for each in read if isinstance(each, Malformed)),
        )

    async def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        """Every change from ``from_revision`` on; the first batch after every (re)connect is empty. Raises WatchGapError."""
        store, connection = self.store, -1
        position = dict.fromkeys((self._is_config, self._is_lease), from_revision)
        delivered = from_revision - 1
        while not self.closed:
            self.trip("watch")
            if self.down:
                await store.changed()
                continue
            if connection != store.connection:
                self._find_gap(min(position.values()), delivered)
                connection = store.connection
                yield Batch((), delivered, connected=True)
                continue
            for kind in position:  # etcd, too, tells of each kind by itself
                first = bisect_left(store.history, position[kind], key=lambda record: record.mod_revision)
                if records := [record for record in store.history[first:] if kind(record.key)]:
                    position[kind] = records[-1].mod_revision + 1
                    delivered = max(delivered, records[-1].mod_revision)
                    yield Batch(tuple(_event(record, self.keys) for record in records), delivered)
                    break
            else:
                await store.changed()

    def _find_gap(self, position: int, delivered: int) -> None:
        """Raise where a watch cannot begin: the store has been restored, or has forgotten what came before."""
        if self.store.revision < delivered:
            raise WatchGapError(f"at revision {self.store.revision}, expected {delivered} or later; restored?")
        if position < self.store.compacted:
            raise WatchGapError(f"history before revision {self.store.compacted} is compacted; expected to go on before it")

    def _is_config(self, key: bytes) -> bool:
        return key == self.keys.config

    def _is_lease(self, key: bytes) -> bool:
        return key.startswith(self.keys.subnets)

    @_call
    async def create(
        self, subnet: IPNetwork, attrs: LeaseAttrs, *, subnet6: IPNetwork | None = None, ttl_s: int = LEASE_TTL_S
    ) -> Lease:
        """Take a subnet that nobody holds. Raises TakenError. ``ttl_s`` 0 writes a reservation."""
        self.store.check_space()
        name = subnet_key(subnet, subnet6)
        key = self.keys.lease(name)
        if key in self.store.records:
            raise TakenError(f"{name}: somebody holds this subnet already; nothing was written")
        record = self.store.put(key, attrs.to_json(), self.store.grant(ttl_s))
        return Lease(subnet, attrs, subnet6, record.etcd_lease, record.create_revision, record.mod_revision)

    @_call
    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = LEASE_TTL_S) -> Lease:
        """Write ``attrs`` under ``lease.key`` with a fresh etcd lease. Raises ConflictError."""
        self.store.check_space()
        self._check(lease)
        etcd_lease = 0 if lease.reserved else self.store.grant(ttl_s)
        record = self.store.put(self.keys.lease(lease.key), attrs.to_json(), etcd_lease)
        if (text := self._offered.get(lease.key)) is not None:
            self.store.put(self.keys.host(lease.key), text, etcd_lease)
        self.store.revoke(lease.etcd_lease)
        return replace(lease, attrs=attrs, etcd_lease=etcd_lease, mod_revision=record.mod_revision)

    @_call
    async def keep_alive(self, lease: Lease) -> float:
        """Extend the lease's etcd lease to its full TTL; returns the seconds it now has."""
        if lease.reserved:
            return math.inf
        grant = self.store.grants.get(lease.etcd_lease)
        if grant is None:
            raise ConflictError(f"{lease.key}: the store no longer knows lease {lease.etcd_lease:x}; expected it to live")
        grant.until = self.store.now + grant.ttl_s
        return float(grant.ttl_s)

    @_call
    async def remaining(self, lease: Lease) -> float:
        """Seconds until the lease expires, 0 when it is gone."""
        if lease.reserved:
            return math.inf
        grant = self.store.grants.get(lease.etcd_lease)
        record = self.store.records.get(self.keys.lease(lease.key))
        held = grant is not None and record is not None and record.etcd_lease == lease.etcd_lease
        return grant.until - self.store.now if grant is not None and held else 0.0

    @_call
    async def release(self, lease: Lease) -> None:
        """Delete the key if it is still at ``lease.mod_revision``. Raises ConflictError."""
        self.store.check_space()
        self._check(lease)
        self.store.delete(self.keys.lease(lease.key))

    @_call
    async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
        """Asked of leases whose keys are gone: the keys that somebody deleted. The other leases have ended themselves."""
        return frozenset(lease.key for lease in leases if lease.reserved or lease.etcd_lease in self.store.grants)

    @_call
    async def offer(self, lease: Lease, text: str | None) -> None:
        """See ``Registry.offer``."""
        self.store.check_space()
        self._check(lease)
        self._offered = {} if text is None else {lease.key: text}
        if text is None:
            self.store.delete(self.keys.host(lease.key))
        else:
            self.store.put(self.keys.host(lease.key), text, lease.etcd_lease)

    async def offers(self) -> AsyncIterator[Offered]:
        """See ``Registry.offers``."""
        store = self.store
        if self.down or self.closed:
            raise RegistryUnavailableError("memory: no answer; expected the store to be up")
        self.trip("offers")
        revision, connection = store.revision, store.connection
        found = {self.keys.host_name(key): record.value for key, record in store.records.items() if self._is_offer(key)}
        yield Offered(found, whole=True)
        while not self.closed:
            self.trip("offers")
            if store.connection != connection:
                raise WatchGapError("memory: the stream was cut")
            first = bisect_left(store.history, revision + 1, key=lambda record: record.mod_revision)
            news = {self.keys.host_name(item.key): item.value for item in store.history[first:] if self._is_offer(item.key)}
            revision = store.revision
            if news:
                yield Offered(news)
            else:
                await store.changed()

    def _is_offer(self, key: bytes) -> bool:
        return key.startswith(self.keys.hosts)

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

    async def addresses(self) -> frozenset[IPAddress]:
        """See ``Registry.addresses``."""
        return frozenset(self.store.addresses)

    def reconnect(self) -> None:
        """Streams are cut, and stand again."""
        self.store.drop_watches()

    async def close(self) -> None:
        """End all watches. May be called twice."""
        self.closed = True
        self.store.wake()

    def _check(self, lease: Lease) -> None:
        record = self.store.records.get(self.keys.lease(lease.key))
        if record is None or record.mod_revision != lease.mod_revision:
            found = f"changed at revision {record.mod_revision}" if record else "deleted"
            raise ConflictError(f"{lease.key}: {found}, expected revision {lease.mod_revision}; nothing was written")


def _event(record: Record, keys: Keys) -> Event:
    if record.key == keys.config:
        return ConfigChanged(None if record.value is None else _text(record), record.mod_revision)
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
