"""What do hosts offer each other? A listing of ``<prefix>/flannelpy/hosts/`` and a watch, over a connection of its own.

Whatever stands there, and whoever may not read it: leases and config are read and watched elsewhere, and nobody waits for this.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from flannelpy.core.offer import MOST
from flannelpy.registry import Malformed, Offered, OfferPut
from flannelpy.registry.etcd.channel import Link
from flannelpy.registry.etcd.records import Keys
from flannelpy.registry.etcd.stream import Pace
from flannelpy.registry.etcd.watch import Watch
from flannelpy.registry.etcd.wire import rpc
from flannelpy.registry.etcd.words import TooLargeError

PAGE = 500
"""Keys in one range read; fewer where somebody has put large values there."""

_DELETE = 1  # mvccpb.Event.EventType


@dataclass(slots=True)
class OfferReader:
    """The offers of one cluster. ``keys``: the cluster's."""

    link: Link
    keys: Keys
    pace: Pace

    async def follow(self) -> AsyncGenerator[Offered, None]:
        """Everything there is, then what changes, until the link is closed. Raises RegistryError; then it is to be begun anew."""
        found: dict[str, bytes | None] = {}
        revision = await self._list(found)
        yield Offered(found, whole=True)
        hosts = replace(self.keys, subnets=self.keys.hosts, end=self.keys.hosts_end)
        watch = Watch.since(revision + 1, self.link, hosts, self.pace, decode=_event)
        async with contextlib.aclosing(watch.batches()) as batches:
            async for batch in batches:
                news = {event.key: event.value for event in batch.events if isinstance(event, OfferPut)}
                if news:
                    yield Offered(news)

    async def _list(self, found: dict[str, bytes | None]) -> int:
        """Read them all at one revision, which is returned; a value that fits into no message is passed over."""
        key, more, limit, revision = self.keys.hosts, True, PAGE, 0
        while more:
            request = rpc.RangeRequest(key=key, range_end=self.keys.hosts_end, limit=limit, revision=revision)
            try:
                answer = await self._range(request)
            except TooLargeError:
                if limit > 1:
                    limit = max(1, limit // 8)
                    continue
                request.keys_only = True
                answer = await self._range(request)
            else:
                found |= {self.keys.host_name(kv.key): kv.value[: MOST + 1] for kv in answer.kvs}  # longer is refused anyway
            revision = revision or answer.header.revision
            more, limit = answer.more, min(PAGE, 2 * limit)
            key = answer.kvs[-1].key + b"\0" if more else key
        return revision

    async def _range(self, request: Any) -> Any:
        return await self.link.ask(lambda wire, **how: wire.kv.Range(request, **how))


def _event(event: Any, keys: Keys) -> OfferPut | Malformed:
    return OfferPut(keys.name(event.kv.key), None if event.type == _DELETE else event.kv.value[: MOST + 1])
