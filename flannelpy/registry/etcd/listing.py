"""Which leases are there, whatever else is there? One listing at one revision, however many keys and however large their values.

Usually everything fits into a page or a few. Where a page is too large for one message, somebody has put something else below the
prefix: then the names are read alone, what is no lease's name is never fetched, and the rest is fetched in groups that are halved
until they fit. A single value that does not fit is reported as malformed, like any other that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flannelpy.core.errors import MalformedError, RegistryError, RegistryUnavailableError
from flannelpy.core.model import Lease, parse_subnet_key
from flannelpy.registry import Malformed, Put, Snapshot
from flannelpy.registry.etcd.channel import Link, rpc
from flannelpy.registry.etcd.records import Keys, decode_put, malformed
from flannelpy.registry.etcd.wire import MESSAGE_MAX
from flannelpy.registry.etcd.words import TooLargeError

PAGE = 5_000
"""Leases in one range read; more are read in pages at one revision, so that no message grows without bound."""

NAMES = 20_000
"""Names in one range read."""

STRAYS = 110_000
"""Keys that are no subnet's of which a listing tells; more than a condition counts (core/health)."""

RANGES = 100
"""Range reads in one transaction; etcd takes 128 (--max-txn-ops)."""

_COMPACTED = "required revision has been compacted"


@dataclass(slots=True)
class Listing:
    """How this cluster is listed. ``careful``: the last time it did not fit, so names come first."""

    link: Link
    keys: Keys
    careful: bool = False

    async def read(self) -> Snapshot:
        """Every lease now, all at one revision."""
        while True:
            try:
                return await self._read()
            except TooLargeError:
                if self.careful:
                    raise
                self.careful = True
            except RegistryUnavailableError:
                self.careful = True  # it may be the size that takes so long; names alone are soon read
                raise
            except RegistryError as error:
                if _COMPACTED not in str(error):
                    raise
                # Compacted between two pages: the next try starts at a newer revision.

    async def _read(self) -> Snapshot:
        found = Found(self.keys)
        if self.careful:
            await self._read_carefully(found)
        else:
            async for kvs in self._pages(found, PAGE, keys_only=False):
                found.take(kvs)
        return found.snapshot()

    async def _pages(self, found: Found, most: int, *, keys_only: bool) -> Any:
        """Pages of at most so many keys; of names fewer where they are long, and again more where they are not."""
        key, more, limit = self.keys.subnets, True, most
        while more:
            request = rpc.RangeRequest(key=key, range_end=self.keys.end, limit=limit, revision=found.revision, keys_only=keys_only)
            try:
                answer = await self._ask("Range", request)
            except TooLargeError:
                if not keys_only or limit == 1:
                    raise
                limit //= 2
                continue
            found.revision = found.revision or answer.header.revision
            yield answer.kvs
            more, limit = answer.more, min(most, 2 * limit)
            key = answer.kvs[-1].key + b"\0" if more else key

    async def _read_carefully(self, found: Found) -> None:
        runs, count = Runs(), 0
        async for kvs in self._pages(found, NAMES, keys_only=True):
            count += len(kvs)
            for kv in kvs:
                runs.add(kv if found.is_lease(kv) else None)
        whole = True
        for group in _groups(runs.all):
            whole = await self._fetch(found, group) and whole
        self.careful = not (whole and sum(map(len, runs.all)) == count)

    async def _fetch(self, found: Found, runs: Sequence[Run]) -> bool:
        """Read the values of some runs of keys in one transaction; in halves where they do not fit. True where they did."""
        reads = [
            rpc.RequestOp(request_range=rpc.RangeRequest(key=run[0].key, range_end=run[-1].key + b"\0", revision=found.revision))
            for run in runs
        ]
        try:
            answer = await self._ask("Txn", rpc.TxnRequest(success=reads))
        except TooLargeError:
            if len(runs) == 1 and len(runs[0]) == 1:
                found.refuse(runs[0][0], f"its value does not fit into {MESSAGE_MAX >> 20} MiB")
                return False
            for half in _halves(runs):
                await self._fetch(found, half)
            return False
        for response in answer.responses:
            found.take(response.response_range.kvs)
        return True

    async def _ask(self, method: str, request: Any) -> Any:
        return await self.link.ask(lambda wire, **how: getattr(wire.kv, method)(request, **how))


Run = Sequence[Any]
"""Keys that stand side by side in etcd."""


@dataclass(slots=True)
class Runs:
    """The wanted keys in runs with nothing else in between, each of at most PAGE; of the others nothing is kept."""

    all: list[list[Any]] = field(default_factory=list)
    _broken: bool = True

    def add(self, kv: Any | None) -> None:
        """The next key; None for one that is not wanted."""
        if kv is not None and (self._broken or len(self.all[-1]) >= PAGE):
            self.all.append([])
        if kv is not None:
            self.all[-1].append(kv)
        self._broken = kv is None


def _groups(runs: Iterable[Run]) -> Iterator[Sequence[Run]]:
    """Runs together, as many as one transaction reads and one page holds."""
    group, size = list[Run](), 0
    for run in runs:
        if group and (len(group) == RANGES or size + len(run) > PAGE):
            yield group
            group, size = [], 0
        group.append(run)
        size += len(run)
    if group:
        yield group


def _halves(runs: Sequence[Run]) -> tuple[Sequence[Run], Sequence[Run]]:
    if len(runs) > 1:
        middle = len(runs) // 2
        return runs[:middle], runs[middle:]
    middle = len(runs[0]) // 2
    return [runs[0][:middle]], [runs[0][middle:]]


@dataclass(slots=True)
class Found:
    """What a listing has found so far, and at which revision."""

    keys: Keys
    revision: int = 0
    leases: list[Lease] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    strays: int = 0

    def is_lease(self, kv: Any) -> bool:
        """True for a lease's name; any other is malformed, whatever its value."""
        try:
            parse_subnet_key(self.keys.name(kv.key))
        except MalformedError as error:
            self._stray(malformed(self.keys.name(kv.key), str(error), kv.mod_revision))
            return False
        return True

    def _stray(self, bad: Malformed) -> None:
        """A key that is no lease's and no subnet's: beyond STRAYS nobody would count them."""
        self.strays += 1
        if self.strays <= STRAYS:
            self.malformed.append(bad)

    def refuse(self, kv: Any, why: str) -> None:
        """A subnet's key whose value is not a lease."""
        self.malformed.append(malformed(self.keys.name(kv.key), why, kv.mod_revision))

    def take(self, kvs: Sequence[Any]) -> None:
        """Keys with their values."""
        for kv in kvs:
            read = decode_put(
                self.keys.name(kv.key),
                kv.value,
                etcd_lease=kv.lease,
                create_revision=kv.create_revision,
                mod_revision=kv.mod_revision,
            )
            if isinstance(read, Put):
                self.leases.append(read.lease)
            elif self.is_lease(kv):
                self.malformed.append(read)

    def snapshot(self) -> Snapshot:
        """All of it, in key order."""
        self.malformed.sort(key=lambda bad: bad.key)
        return Snapshot(tuple(self.leases), self.revision, tuple(self.malformed))
