"""Where a registry's contract is tested: what the tests need to know and do behind the registry's back, in memory and in real etcd.

What was written is read by etcdctl, not by the code under test.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from netaddr import IPAddress, IPNetwork

from flannelpy.core.model import LeaseAttrs
from flannelpy.registry import Batch, Endpoint, Event, Registry
from flannelpy.registry.etcd.channel import Link, rpc
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.registry.etcd.stream import Pace
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from netns_lab.etcd import Etcd

BOUND_S = 30.0
"""No fact is waited for longer than this."""

QUICK = Pace(silence_s=0.2, answer_s=0.4, backoff_s=0.05, backoff_max_s=0.2)


def attrs(address: str = "192.0.2.1", **changes: Any) -> LeaseAttrs:
    return LeaseAttrs(IPAddress(address), **changes)


def net(text: str) -> IPNetwork:
    return IPNetwork(text)


@contextlib.asynccontextmanager
async def opened(endpoint: Endpoint, pace: Pace = QUICK) -> AsyncIterator[EtcdRegistry]:
    """A registry of this etcd, for the time of the block."""
    registry = EtcdRegistry(endpoint, pace)
    try:
        yield registry
    finally:
        await registry.close()


class Place(Protocol):
    """A store and the ways to meddle with it. Keys are in full."""

    prefix: str

    def registry(self) -> Registry:
        """One host's registry; several are several hosts."""
        ...

    async def put(self, key: str, value: str) -> None: ...

    async def get(self, key: str) -> str | None: ...

    async def delete(self, key: str) -> None: ...

    async def compact(self) -> None: ...

    async def stop(self) -> None:
        """The store is gone, its data is not."""
        ...

    async def start(self) -> None: ...

    async def let_expire(self, seconds: float) -> None:
        """Let that much time pass, where a clock can be moved; a real one passes by itself."""
        ...

    async def grants(self) -> int:
        """How many etcd leases there are."""
        ...

    async def fill(self, values: Sequence[tuple[str, str]]) -> None:
        """Write many keys."""
        ...

    async def close(self) -> None: ...


class MemoryPlace:
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.store = MemoryStore()
        self._registries: list[MemoryRegistry] = []

    def registry(self) -> Registry:
        self._registries.append(MemoryRegistry(self.store, self.prefix))
        return self._registries[-1]

    async def put(self, key: str, value: str) -> None:
        self.store.put(key, value)

    async def get(self, key: str) -> str | None:
        record = self.store.records.get(key.encode())
        return None if record is None or record.value is None else record.value.decode()

    async def delete(self, key: str) -> None:
        self.store.delete(key)

    async def compact(self) -> None:
        self.store.compact()

    async def stop(self) -> None:
        self.store.stop()

    async def start(self) -> None:
        self.store.start()

    async def let_expire(self, seconds: float) -> None:
        self.store.advance(seconds)

    async def grants(self) -> int:
        return len(self.store.grants)

    async def fill(self, values: Sequence[tuple[str, str]]) -> None:
        for key, value in values:
            self.store.put(key, value)

    async def close(self) -> None:
        for registry in self._registries:
            await registry.close()


class EtcdPlace:
    def __init__(self, etcd: Etcd, prefix: str, **endpoint: Any) -> None:
        self.etcd = etcd
        self.prefix = prefix
        self._endpoint = endpoint
        self._registries: list[EtcdRegistry] = []
        self._stopped = False
        self._foreign_grants = _count_grants(etcd)

    def registry(self) -> Registry:
        endpoint = self.etcd.endpoint(self.prefix, **{"timeout_s": 2.0, **self._endpoint})
        self._registries.append(EtcdRegistry(endpoint, QUICK))
        return self._registries[-1]

    async def put(self, key: str, value: str) -> None:
        await asyncio.to_thread(self.etcd.put, key, value)

    async def get(self, key: str) -> str | None:
        return await asyncio.to_thread(self.etcd.get, key)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.etcd.delete, key)

    async def compact(self) -> None:
        await asyncio.to_thread(self.etcd.compact)

    # Not in threads: an etcd dies with the thread that started it.

    async def stop(self) -> None:
        self._stopped = True
        self.etcd.kill()

    async def start(self) -> None:
        self._stopped = False
        self.etcd.restart()

    async def let_expire(self, seconds: float) -> None:
        pass

    async def grants(self) -> int:
        return await asyncio.to_thread(_count_grants, self.etcd) - self._foreign_grants

    async def fill(self, values: Sequence[tuple[str, str]]) -> None:
        link = Link(self.etcd.endpoint(self.prefix))
        for first in range(0, len(values), 128):  # etcd's limit of one transaction
            some = values[first : first + 128]
            puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value.encode())) for key, value in some]
            request = rpc.TxnRequest(success=puts)
            await link.ask(lambda wire, request=request, **how: wire.kv.Txn(request, **how))
        await link.close()

    async def close(self) -> None:
        for registry in self._registries:
            await registry.close()
        if self._stopped:
            await self.start()


def _count_grants(etcd: Etcd) -> int:
    return int(etcd.ctl("lease", "list").split()[1])


@dataclass
class Seen:
    """What a watch has told so far."""

    batches: list[Batch] = field(default_factory=list)
    ended: BaseException | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]

    async def until(self, fact: Callable[[Seen], Any]) -> None:
        """Wait for a fact, within the bound. A watch that ended is an error, and raised."""
        async with asyncio.timeout(BOUND_S):
            while not fact(self):
                if self.ended is not None:
                    raise self.ended
                self._news.clear()
                await self._news.wait()

    async def standing(self, times: int = 1) -> None:
        """Wait until the watch was (re)connected: its first batch is empty."""
        await self.until(lambda seen: sum(not batch.events for batch in seen.batches) >= times)

    async def count(self, number: int) -> list[Event]:
        """Wait for that many events; returns all there are."""
        await self.until(lambda seen: len(seen.events) >= number)
        return self.events

    async def _follow(self, registry: Registry, revision: int) -> None:
        try:
            async with contextlib.aclosing(registry.watch(revision)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    self.batches.append(batch)
                    self._news.set()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            self.ended = error
        self._news.set()


@contextlib.asynccontextmanager
async def watching(registry: Registry, revision: int) -> AsyncIterator[Seen]:
    """A watch that stands, and what it has seen; cancelled at the end."""
    seen = Seen()
    task = asyncio.create_task(seen._follow(registry, revision))
    try:
        await seen.standing()
        yield seen
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=BOUND_S)
        assert task.done(), "a cancelled watch has to end"


@contextlib.asynccontextmanager
async def bounded(seconds: float = BOUND_S) -> AsyncIterator[None]:
    """What has to be done within a bound."""
    async with asyncio.timeout(seconds):
        yield


async def patiently(fact: Callable[[], Any]) -> None:
    """Poll for a fact that nobody announces."""
    async with asyncio.timeout(BOUND_S):
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
