"""What does the kernel in memory say to whoever listens? Its changes, by the same rules as the real one's notifications."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flannelpy.core.objects import (
    ROUTE_PROTOCOL,
    Key,
    Nexthop,
    NftTable,
    Object,
    Route,
    Scope,
    Sysctl,
    WireguardDevice,
    WireguardPeer,
)
from flannelpy.kernel import Notice

SILENT = (Sysctl, WireguardDevice, WireguardPeer)
"""What the kernel tells nobody of."""


@dataclass(frozen=True, slots=True)
class News:
    """One change of the host. ``took_along``: a device with which objects went without a word; the empty name is nobody's."""

    item: Object | None = None
    gone: Object | None = None
    replaced: Object | None = None
    took_along: str = ""
    links: Mapping[int, str] = field(default_factory=dict)
    default_route: bool = False
    routed: frozenset[int] = frozenset()
    lost: bool = False
    addressed: bool = False


class FakeNotices:
    """What the fake says to one subscriber; coalesced until it is read. One consumer."""

    def __init__(self, scope: Scope, is_seen: Callable[[Object, Scope], bool], fault: Callable[[str], None]) -> None:
        """``fault`` raises where an iteration is to fail."""
        self._scope = scope
        self._fault = fault
        self._is_seen = is_seen
        self._notice = Notice()
        self._flushed = set[int]()  # nexthop objects that went, and no route has come by them since
        self._closed = False
        self._woken = asyncio.Event()

    def tell(self, news: News) -> None:
        """Note a change that the host made; what is outside the scope is passed over."""
        objects = dict(self._notice.objects)
        for old in (news.gone, news.replaced):
            if old is not None and self._is_seen(old, self._scope) and not isinstance(old, SILENT):
                objects[old.key] = None
        if news.item is not None and self._is_seen(news.item, self._scope) and not isinstance(news.item, SILENT):
            objects[news.item.key] = news.item
        if isinstance(news.gone, Nexthop) and self._is_seen(news.gone, self._scope):
            self._flushed.add(news.gone.id)
        if isinstance(news.item, Route):
            self._flushed.discard(news.item.nhid)
        way = news.gone  # somebody else's route in the way of one that may be ours
        if isinstance(way, Route) and not way.metric and self._scope.covers(way.dst):
            objects[way.key] = None
        ours = {index: name for index, name in news.links.items() if name in self._scope.links}
        changed = (item for item in (news.item, news.gone, news.replaced) if isinstance(item, Route))
        foreign = {item.dst.version for item in changed if item.proto != ROUTE_PROTOCOL and item.dev not in self._scope.links}
        known, old_table = self._scope.links | {self._scope.uplink}, news.gone
        before = self._notice
        self._notice = Notice(
            objects,
            before.resync
            or news.lost
            or news.took_along in known
            or (isinstance(old_table, NftTable) and old_table.key in objects),
            before.lost or news.lost,
            {**before.links, **{index: name for index, name in news.links.items() if index not in ours}},
            before.default_route or news.default_route,
            before.routed | foreign | news.routed,
            before.addressed or news.addressed,
        )
        if self._notice != Notice() or news == News():
            self._woken.set()  # no news at all wakes up, too: whoever waits meets what it has to meet

    def forget(self) -> None:
        """What was not read yet is lost."""
        self._notice, self._flushed = Notice(), set()

    def close(self) -> None:
        self._closed = True
        self._woken.set()

    async def aclose(self) -> None:
        self.close()

    def __aiter__(self) -> FakeNotices:
        return self

    async def __anext__(self) -> Notice:
        while not self._closed:
            self._fault("next_notice")
            await self._woken.wait()
            self._woken.clear()
            notice = self._notice
            if any(notice.objects.get(Key("nexthop", str(each))) for each in self._flushed):
                notice = replace(notice, resync=True)
            self.forget()
            if notice != Notice() and not self._closed:
                return notice
        raise StopAsyncIteration
