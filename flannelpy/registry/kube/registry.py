"""Where do leases live in Kubernetes? In its nodes: a registry that lists and watches them, and writes into our own node alone.

A version of the cluster is the revision, the subnets are Kubernetes' to give, and a lease has no end but its node's. So there is
nothing to create, to keep alive or to give back: ``create`` is refused, and every lease is a reservation. The network config is a
file. The book of nodes is at one version; what the API server says of an older one is no news, whichever way it comes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import Any, cast
from urllib.parse import urlsplit

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import (
    ConfigError,
    ConflictError,
    FlannelpyError,
    MalformedError,
    RegistryError,
    RegistryRefusedError,
    RegistryUnavailableError,
    WatchGapError,
)
from flannelpy.core.model import LEASE_TTL_S, Family, Lease, LeaseAttrs
from flannelpy.host.files import read_given
from flannelpy.registry import Batch, ConfigChanged, Offered, Snapshot, StoredConfig
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.book import Book
from flannelpy.registry.kube.client import CALL_S, NETWORK_UNAVAILABLE, QUIET_S, ApiServer
from flannelpy.registry.kube.names import Names
from flannelpy.registry.kube.nodes import Node, advertised, annotations_for, bare_lease, families_of, lease_of

FILE_S = 1.0
"""How often the file with the network config is looked at. kubelet takes a minute to change it."""
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 2.0
STEADY_S = 5.0
"""A watch that stood for so long was well; one that is taken and cut at once, over and over, is tried as one that is refused."""
RESOLVE_S = 1.0
OTHER_FAMILIES = "the network has other families now"


class KubeRegistry:
    """One host's way to the nodes of a cluster. One watch at a time. Raises UsageError where ``access`` cannot be."""

    def __init__(self, access: Access, api: ApiServer | None = None) -> None:
        self.names = Names.under(access.prefix)
        self._access = access
        self._api = api or ApiServer(access, self.names)
        self._book = Book(self.names)
        self._node = access.node
        self._followed: tuple[Family, ...] = ()
        """The families that the agent has, once it has told."""
        self._interrupt: Callable[[WatchGapError], None] = _ignore
        self._listed = False
        self._listed_as: tuple[Family, ...] = ()
        """The families of the leases that were listed last."""
        self._trouble: RegistryError | None = None
        self._closed = False
        self._moved = asyncio.Event()
        self.changes = 0
        """How often our node was seen to be another one than before, or than we have written."""
        self._own_seen: tuple[object, ...] = ()
        self._resolved: frozenset[IPAddress] = frozenset()
        self._config_said: tuple[str | None] | None = None
        """The config as it was last told, by whichever way; None where nobody has asked for it yet."""

    # ---------------------------------------------------------------------------------------------------- reading

    async def config(self) -> StoredConfig:
        """The network config in its file; what cannot be read is as one that is absent, and the agent says so."""
        self._config_said = (await asyncio.to_thread(self._read_config),)
        return StoredConfig(self._config_said[0], 0, self._book.version)

    async def put_config(self, text: str, expected: StoredConfig | None = None) -> int:
        """Refused: the config is a file, and Kubernetes puts it there."""
        raise RegistryRefusedError(f"{self._access.net_config}: it is a file; change the ConfigMap that it comes from")

    async def snapshot(self) -> Snapshot:
        """Every lease now."""
        text, before = await asyncio.to_thread(self._read_config), self._book.version
        nodes, version = await self._api.nodes()
        families = self._followed or _families(text, self._book.families)
        fresh = not self._listed or version >= self._book.version or version < before
        if not fresh:  # the watch has overtaken it, and knows better
            nodes, version = list(self._book.nodes.values()), self._book.version
        if fresh or families != self._book.families:
            self._book.replace(nodes, version, families)
            self._listed = True
            self._move()
            self._see_own()
        self._listed_as = self._book.families
        return self._book.snapshot

    async def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        """Every change from ``from_revision`` on; the first batch after every (re)connect is empty. Raises WatchGapError."""
        if not self._listed or from_revision > self._book.version + 1:
            raise WatchGapError(f"revision {from_revision}: not the one that was listed")
        if self._listed_as != self._book.families:  # since then, while nobody watched
            raise WatchGapError(OTHER_FAMILIES)
        news: asyncio.Queue[Batch | Exception] = asyncio.Queue()
        self._interrupt = news.put_nowait

        def pass_on(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and isinstance(error := task.exception(), Exception):
                news.put_nowait(error)  # or nobody would ever hear of anything again, nor why

        work = [self._follow_nodes(news.put_nowait), self._follow_config(news.put_nowait)]
        tasks = [asyncio.create_task(each, name="kubernetes watch") for each in work]
        for task in tasks:
            task.add_done_callback(pass_on)
        try:
            while not self._closed:
                said = await news.get()
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_nodes(self, tell: Callable[[Batch | RegistryError], None]) -> None:
        """Tell what happens to the nodes, for ever or up to a gap. An end that is no failure is gone over without a word."""
        delay, failed = FIRST_RETRY_S, True

        def let_in() -> None:
            nonlocal failed
            if failed:
                tell(Batch((), self._book.version, connected=True))
            failed, self._trouble = False, None

        while True:
            began = time.monotonic()
            try:
                async with aclosing(cast(Any, self._api.watch(self._book.version, let_in))) as changes:
                    async for kind, node in changes:
                        self._take(None if kind == "DELETED" else node, node, tell)
            except WatchGapError as gap:
                tell(Batch((), self._book.version))  # what is listed next may be older: revisions have started over then
                return tell(gap)
            except RegistryError as error:
                failed, self._trouble = True, error
                delay = FIRST_RETRY_S if time.monotonic() - began > STEADY_S else delay
                await asyncio.sleep(random.uniform(delay / 2, delay))  # all hosts have lost the server at one moment
                delay = min(2 * delay, LAST_RETRY_S)

    def _take(self, now: Node | None, said: Node, tell: Callable[[Batch | RegistryError], None]) -> None:
        """A node is this now, by what was ``said`` of it last."""
        if said.version <= self._book.version:
            return
        before = self._book.nodes.get(said.name)
        events = self._book.remove(said.name, said.version) if now is None else self._book.put(now)
        if self._book.nodes.get(said.name) is not before:
            self._move()
        if said.name == self._node:
            self._see_own(now)
        if events:
            tell(Batch(tuple(events), self._book.version))

    async def _follow_config(self, tell: Callable[[Batch | RegistryError], None]) -> None:
        """Tell what the file says whenever that is something else. With other families every lease is another one: see ``own``."""
        while True:
            text = await asyncio.to_thread(self._read_config)
            before, self._config_said = self._config_said, (text,)
            if not self._followed and _families(text, self._book.families) != self._book.families:
                self._config_said = before  # whoever lists anew asks for it
                return tell(WatchGapError(OTHER_FAMILIES))
            if before is not None and before != (text,):
                tell(Batch((ConfigChanged(text),), self._book.version))
            await asyncio.sleep(FILE_S)

    def _read_config(self) -> str | None:
        try:
            return read_given(self._access.net_config).decode(errors="replace")
        except (OSError, ValueError, FlannelpyError):
            return None

    # ------------------------------------------------------------------------------------------------------ our own

    @property
    def node(self) -> str:
        """Our node's name; empty until it is found out."""
        return self._node

    async def own(self, families: tuple[Family, ...] = ()) -> Lease | None:
        """What our node is as a lease now, published or not; None where it has no subnet yet. ConflictError: it is gone.

        Of these ``families``, as all leases are from then on: the file may say others, and be no config that our host can follow.
        """
        if families:
            self._follow(families)
        return self._lease(await self._own_node(), families or self._book.families)

    def _follow(self, families: tuple[Family, ...]) -> None:
        self._followed = families
        if self._listed and families != self._book.families:
            self._book.replace(list(self._book.nodes.values()), self._book.version, families)
            self._move()
            self._interrupt(WatchGapError(OTHER_FAMILIES))

    async def advertise(self, attrs: LeaseAttrs) -> LeaseAttrs:
        """What is to be published for ``attrs``: with the addresses that a person has written into our node."""
        try:
            return advertised(attrs, await self._own_node(), self.names)
        except MalformedError as error:
            raise RegistryRefusedError(f"node {self._node}: {error}") from None

    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = LEASE_TTL_S) -> Lease:
        """Write ``attrs`` into our node, if it still has the lease's subnets. Raises ConflictError."""
        before, there = await self._own_as(lease)
        node = await self._write(before, annotations_for(attrs, self.names, families_of(lease)))
        return replace(lease, attrs=attrs, create_revision=there.create_revision, mod_revision=node.version)

    async def announce(self, lease: Lease) -> None:
        """Say of our node that its network is there, where it is not said: it has no pods until then. Raises ConflictError."""
        node, _ = await self._own_as(lease)
        if node.available or not self._access.network_available:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": NETWORK_UNAVAILABLE,
            "status": "False",
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        await self._write(node, {}, {"conditions": [condition]})

    async def changed(self, since: int) -> None:
        """Wait until ``changes`` is more than that."""
        while self.changes <= since:
            await self._moved.wait()

    async def _write(self, node: Node, annotations: Mapping[str, str | None], status: Mapping[str, object] | None = None) -> Node:
        """Write into our node, which was this; that it is so then is no news, whichever comes first, the echo or the answer."""
        there = {name: text for name, text in {**node.annotations, **annotations}.items() if text is not None}
        self._own_seen = _seen(replace(node, annotations=there, available=node.available or status is not None))
        return await self._api.patch(self._node, annotations, status)

    def _see_own(self, node: Node | None = None) -> None:
        seen = _seen(node or self._book.nodes.get(self._node))
        if seen != self._own_seen:
            self._own_seen, self.changes = seen, self.changes + 1
            self._move()

    def _lease(self, node: Node, families: tuple[Family, ...]) -> Lease | None:
        bare, published = bare_lease(node, families), None
        with suppress(MalformedError):
            published = lease_of(node, self.names, families)
        return bare if published is None or bare is None else replace(bare, attrs=published.attrs)  # of one family yet, it may be

    async def _own_as(self, lease: Lease) -> tuple[Node, Lease]:
        """Our node, and the lease that it is, if it still has the subnets of this one. Raises ConflictError."""
        node = await self._own_node()
        there = self._lease(node, families_of(lease))
        if there is None or there.key != lease.key:
            raise ConflictError(f"{lease.key}: node {self._node} has {there.key if there else 'no podCIDR'}; nothing was written")
        return node, there

    async def _own_node(self) -> Node:
        await self._find_node()
        node = await self._api.node(self._node)
        if node is None:
            raise ConflictError(f"there is no node {self._node}: expected one of that name; kubelet makes it")
        return node

    async def _find_node(self) -> None:
        if not self._node and self._access.pod is not None:
            self._node = await self._api.node_of_pod(*self._access.pod)
        if not self._node:
            raise RegistryUnavailableError("our pod is on no node yet")

    # -------------------------------------------------------------------------------------- what Kubernetes does itself

    async def create(
        self, subnet: IPNetwork, attrs: LeaseAttrs, *, subnet6: IPNetwork | None = None, ttl_s: int = LEASE_TTL_S
    ) -> Lease:
        """Refused: the controller-manager gives every node its podCIDR."""
        raise RegistryRefusedError(f"{subnet}: Kubernetes gives subnets out; nothing was written")

    async def keep_alive(self, lease: Lease) -> float:
        """A node has no end."""
        return inf

    async def remaining(self, lease: Lease) -> float:
        """A node has no end."""
        return inf

    async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
        """All: what is gone was deleted. The server is asked all the same: who does not see it takes nobody away."""
        await self._api.node(self._node or "none")
        return frozenset(lease.key for lease in leases)

    async def release(self, lease: Lease) -> None:
        """Refused: a node is given up by deleting it."""
        raise RegistryRefusedError(f"{lease.key}: a node's subnet is given back by deleting the node")

    # ------------------------------------------------------------------------------------------------------ offers

    async def offer(self, lease: Lease, text: str | None) -> None:
        """Write this into our node, beside its lease; None takes it away. Raises ConflictError."""
        node, _ = await self._own_as(lease)
        if node.annotations.get(self.names.offer) != text:
            await self._write(node, {self.names.offer: text})

    async def offers(self) -> AsyncIterator[Offered]:
        """What stands beside leases: first all of it, then whatever changes."""
        while not self._listed:
            await self._moved.wait()
        before = dict(self._book.offers)
        yield Offered(before, whole=True)
        while not self._closed:
            await self._moved.wait()
            now = dict(self._book.offers)
            news = {key: now.get(key) for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
            before = now
            if news:
                yield Offered(news)

    # ------------------------------------------------------------------------------------------------ how is the server

    @property
    def alive(self) -> bool:
        """False once the server has not been heard for longer than a quiet watch and a call may last."""
        return self._trouble is None and time.monotonic() - self._api.answered_at < QUIET_S + 2 * CALL_S

    @property
    def trouble(self) -> RegistryError | None:
        """What keeps the watch from going on; None where it goes on, or there is none."""
        return self._trouble

    @property
    def silent_s(self) -> float:
        """How long the oldest call has been without an answer, in seconds; 0 where none is open."""
        return self._api.silent_s

    @property
    def endpoint(self) -> str:
        """Who is spoken to."""
        return self._api.url

    async def addresses(self) -> frozenset[IPAddress]:
        """See ``Registry.addresses``: of a name that nobody resolves now, what it was before."""
        host = urlsplit(self._api.url).hostname or ""
        with suppress(AddrFormatError, ValueError):
            return frozenset({IPAddress(host)})
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(RESOLVE_S):
                found = await asyncio.get_running_loop().getaddrinfo(host, None)
            self._resolved = frozenset(IPAddress(str(address[0]).partition("%")[0]) for *_, address in found)
        return self._resolved

    def reconnect(self) -> None:
        """This host has another address: have new connections."""
        self._api.renew()

    async def close(self) -> None:
        """End all connections. May be called twice."""
        self._closed = True
        self._move()
        await self._api.close()

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def _ignore(_gap: WatchGapError) -> None:
    pass


def _seen(node: Node | None) -> tuple[object, ...]:
    """What of our node concerns us, to be compared; its heartbeats do not."""
    return () if node is None else (node, node.created, node.available)


def _families(text: str | None, before: tuple[Any, ...]) -> tuple[Any, ...]:
    """The families of a network config; as before where it cannot be used."""
    try:
        return before if text is None else NetworkConfig.parse(text).families
    except ConfigError:
        return before
