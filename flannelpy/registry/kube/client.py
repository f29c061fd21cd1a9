"""How is the API server asked? Calls with a deadline, a watch that cannot hang, errors of ours (``client_errors``).

What lightkube leaves open: its watch waits for ever, so one in which nothing happens is ended, and begun when the server answers.
It reads a service account's token anew when that is refused, but its certificates and a kubeconfig never: the API server refuses
an expired certificate not in the handshake but by 401, as any other user. So after a failed handshake, and after any failure where
these files are others by now, the next call has a client of its own. A node is decoded as far as we need it: a thousand in a fifth
of a second.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import datetime
from math import inf
from typing import Any

import httpx2
import msgspec
from lightkube import AsyncClient
from lightkube.core import resource
from lightkube.core.exceptions import ConfigError
from lightkube.models.authorization_v1 import ResourceAttributes, SelfSubjectAccessReviewSpec
from lightkube.resources.authorization_v1 import SelfSubjectAccessReview
from lightkube.resources.core_v1 import Pod
from lightkube.types import PatchType

from flannelpy import __version__
from flannelpy.core.errors import (
    ConflictError,
    RegistryAuthError,
    RegistryError,
    RegistryRefusedError,
    RegistryTlsError,
    RegistryUnavailableError,
    UsageError,
)
from flannelpy.core.foreign import printable
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.client_config import configured, written
from flannelpy.registry.kube.client_errors import FAILURES, MissingError, as_ours
from flannelpy.registry.kube.names import Names
from flannelpy.registry.kube.nodes import Node, ours_only

log = logging.getLogger("flannelpy")

MANAGER = "flannelpy"
"""Who has written a field, in the node's managedFields."""
USER_AGENT = f"{MANAGER}/{__version__}"
"""Who asks, in the server's audit log."""

CALL_S = 10.0
"""How long a call may last."""
STARTING_S = 15.0
"""A server that was away a moment ago may refuse everybody for so long: it answers before it has read its roles. A second or two is
usual."""
QUIET_S = 45.0
"""A watch in which nothing happened for so long is ended, and begun anew once the server has answered: nothing else shows that a
server is gone without a word. kubelets are heard every five minutes or more often, each."""
AGAIN_S = 1.0
"""Between the beginnings of watches that end in order: lightkube begins them anew at once, even where a gateway ends each so."""
SERVER_ENDS_S = 300
"""When the server is to end a watch that we have forgotten: so late, or up to twice, by chance. Watches that began together after
a restart of it would else end, and begin, together for ever.
"""
LONGEST_REST_S = 30.0
"""A server that has too much to do says for how long it wants to be left alone (Retry-After): at most so long, and by chance up to
half as long again.
"""
PAGE = 500
"""Nodes in one answer of a listing."""

NETWORK_UNAVAILABLE = "NetworkUnavailable"
"""The node's condition that keeps pods off it while there is no network."""


class NodeSpec(msgspec.Struct):
    """What of a node's spec concerns us."""

    podCIDR: str | None = None  # noqa: N815 - Kubernetes' names
    podCIDRs: list[str] | None = None  # noqa: N815


class NodeMeta(msgspec.Struct):
    """What of its metadata does."""

    name: str = ""
    resourceVersion: str = "0"  # noqa: N815
    creationTimestamp: str | None = None  # noqa: N815
    annotations: dict[str, str] | None = None


class NodeCondition(msgspec.Struct):
    """One of its conditions."""

    type: str = ""
    status: str = ""


class NodeConditions(msgspec.Struct):
    """What of its status does."""

    conditions: list[NodeCondition] | None = None


class SlimNode(resource.GlobalResource, msgspec.Struct):
    """A node without its images, addresses, capacities."""

    _api_info = resource.ApiInfo(resource=resource.ResourceDef("", "v1", "Node"), plural="nodes", verbs=["get", "list", "watch"])
    metadata: NodeMeta
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeConditions = msgspec.field(default_factory=NodeConditions)


class SlimNodeStatus(resource.GlobalSubResource, msgspec.Struct):
    """The same as its status is written."""

    _api_info = resource.ApiInfo(
        resource=resource.ResourceDef("", "v1", "Node"),
        parent=resource.ResourceDef("", "v1", "Node"),
        plural="nodes",
        verbs=["patch"],
        action="status",
    )
    metadata: NodeMeta
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeConditions = msgspec.field(default_factory=NodeConditions)


class ApiServer:
    """A cluster's API server, asked as ``access`` says. Raises RegistryError, and UsageError where that cannot be."""

    def __init__(self, access: Access, names: Names) -> None:
        self._access = access
        self._names = names
        self._config = configured(access)
        self._written = written(access, self._config)
        """What stood in its files when the configuration was read, or before: what is written from then on is news."""
        self._client: AsyncClient | None = None
        self._open: dict[object, float] = {}
        self._closing = set[asyncio.Future[None]]()
        self._back_at = -inf
        """When a server that was away has refused us first; infinity while it is away."""
        self._let_in: Callable[[], None] = _ignore
        self._begun_at = -inf
        """When the watch was let in last."""
        self._rests_until = -inf
        """Until then the server has asked to be left alone."""
        self.answered_at = time.monotonic()
        """When the server was last heard, by time.monotonic."""

    @property
    def url(self) -> str:
        """Where the server is."""
        return str(self._config.cluster.server)

    @property
    def silent_s(self) -> float:
        """How long the oldest call has waited for its answer, in seconds; 0 where none is open."""
        return time.monotonic() - min(self._open.values()) if self._open else 0.0

    async def nodes(self) -> tuple[list[Node], int]:
        """Every node, and the version of the whole. Each page has the time of a call: of a large cluster there are many."""
        async with self._call() as (client, go_on):
            listed, nodes = client.list(SlimNode, chunk_size=PAGE), list[Node]()
            async for item in listed:
                go_on()
                nodes.append(self._node(item))
            return nodes, _version(listed.resourceVersion)

    async def node(self, name: str) -> Node | None:
        """One node, None where there is none."""
        try:
            async with self._call() as (client, _):
                return self._node(await client.get(SlimNode, name))
        except MissingError:
            return None

    async def node_of_pod(self, namespace: str, name: str) -> str:
        """The name of the node that a pod is on; empty where it is on none yet."""
        try:
            async with self._call() as (client, _):
                pod = await client.get(Pod, name, namespace=namespace)
        except MissingError:
            raise RegistryRefusedError(f"{self.url}: no pod {namespace}/{name}; expected ours, or NODE_NAME") from None
        return (pod.spec.nodeName if pod.spec is not None else None) or ""

    async def patch(self, name: str, annotations: Mapping[str, str | None], status: Mapping[str, object] | None = None) -> Node:
        """Write annotations (None: take one away) and of the status, through ``nodes/status``: no right to more is needed.

        Raises ConflictError where there is no such node.
        """
        body: dict[str, Any] = {"metadata": {"annotations": dict(annotations)}} if annotations else {}
        if status is not None:
            body["status"] = dict(status)
        try:
            async with self._call() as (client, _):
                return self._node(await client.patch(SlimNodeStatus, name, body, patch_type=PatchType.STRATEGIC))
        except MissingError:
            raise ConflictError(f"node {name} is gone; nothing was written") from None

    async def may(self, verb: str, part: str = "") -> bool:
        """Whether we have the right to do this with nodes, or with this part of them; nothing is done."""
        wanted = ResourceAttributes(resource="nodes", verb=verb, subresource=part or None)
        async with self._call() as (client, _):
            review = await client.create(SelfSubjectAccessReview(SelfSubjectAccessReviewSpec(resourceAttributes=wanted)))
        return bool(review.status and review.status.allowed)

    async def watch(self, version: int, let_in: Callable[[], None]) -> AsyncIterator[tuple[str, Node]]:
        """Every change of a node after ``version``: (ADDED, MODIFIED or DELETED, node). It ends where nothing happens for long.

        ``let_in`` is called when the server has begun to answer, which may be long before anything happens. Raises WatchGapError
        where the server no longer knows that version.
        """
        begun = False

        def heard() -> None:
            nonlocal begun
            begun, self._begun_at = True, time.monotonic()
            limit.reschedule(asyncio.get_running_loop().time() + QUIET_S)
            self._heard()
            let_in()

        await self._rest()
        with self._told():
            client = self._made()
            self._let_in, self._begun_at = heard, -inf
            ends_s = round(SERVER_ENDS_S * random.uniform(1.0, 2.0))
            stream: Any = client.watch(SlimNode, resource_version=str(version), server_timeout=ends_s)
            async with aclosing(stream) as events:
                while True:
                    try:
                        async with asyncio.timeout(QUIET_S if begun else CALL_S) as limit:
                            kind, item = await anext(events)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        if begun:
                            return
                        raise
                    self._heard()
                    if item.metadata.name:  # a bookmark is of no node; nobody asked for one, and a proxy's cache may send them
                        yield kind, self._node(item)

    def renew(self) -> None:
        """Have new connections, and read certificates and tokens anew."""
        self._leave()
        self._written = written(self._access, self._config)
        with suppress(UsageError):  # half written, it may be: what was in it before still counts
            self._config = configured(self._access)

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            closing = asyncio.ensure_future(client.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all connections. May be called twice."""
        self._leave()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _made(self) -> AsyncClient:
        if self._client is None:
            try:
                made = AsyncClient(self._config, timeout=httpx2.Timeout(CALL_S), trust_env=False, field_manager=MANAGER)
            except (OSError, ConfigError) as error:  # a file of the configuration
                raise RegistryTlsError(f"{self.url}: {error}; expected readable certificates") from None
            http = made._client._client  # lightkube has no way of its own to either
            http.headers["User-Agent"] = USER_AGENT
            http.event_hooks = {"request": [self._pace], "response": [self._look_at]}
            self._client = made
        return self._client

    async def _pace(self, request: httpx2.Request) -> None:
        if _watches(request):
            client = self._client
            await asyncio.sleep(max(0.0, self._begun_at + AGAIN_S - time.monotonic()))
            if client is not self._client:  # and httpx2 would open a connection that nobody closes, with the old token
                raise httpx2.CloseError("connections are made anew", request=request)

    async def _look_at(self, response: httpx2.Response) -> None:
        """The head of an answer is there; that of a watch comes at once, and its first line with the first change."""
        if response.status_code in (429, 503) and (asked := response.headers.get("Retry-After", "")).isdecimal():
            rest_s = min(LONGEST_REST_S, float(asked)) * random.uniform(1.0, 1.5)
            self._rests_until = max(self._rests_until, time.monotonic() + rest_s)
        if _watches(response.request):
            if response.is_success:
                self._let_in()
            else:
                await response.aread()  # lightkube would not, and so not know why

    async def _rest(self) -> None:
        """Leave the server alone for as long as it has asked for: of thousands who do not it is never rid."""
        await asyncio.sleep(max(0.0, self._rests_until - time.monotonic()))

    def _heard(self) -> None:
        self.answered_at, self._back_at = time.monotonic(), -inf

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[tuple[AsyncClient, Callable[[], None]]]:
        """A call: within its time, counted while it is open, and told in our errors. The second: its time begins anew."""
        token = object()

        def go_on() -> None:
            self._open[token] = time.monotonic()
            limit.reschedule(asyncio.get_running_loop().time() + CALL_S)

        await self._rest()
        self._open[token] = time.monotonic()
        try:
            with self._told():
                async with asyncio.timeout(CALL_S) as limit:
                    yield self._made(), go_on
            self._heard()
        finally:
            del self._open[token]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            told = self._patient(as_ours(error, self.url))
            if isinstance(told, RegistryTlsError) or self._written != written(self._access, self._config):
                self.renew()
            if not isinstance(told, RegistryTlsError | RegistryUnavailableError):
                self.answered_at = time.monotonic()
            raise told from error

    def _patient(self, told: RegistryError) -> RegistryError:
        """The error, or where a refusal may end by itself, that the server is not there yet."""
        now = time.monotonic()
        if isinstance(told, RegistryUnavailableError):
            self._back_at = inf
        elif isinstance(told, RegistryAuthError) and self._back_at > now - STARTING_S:
            if self._back_at == inf:
                self._back_at = now
                log.info("%s; it may be starting, and not have read its roles yet: waiting up to %.0f s", told, STARTING_S)
            return RegistryUnavailableError(f"{told}; it may be starting")
        return told

    def _node(self, item: SlimNode | SlimNodeStatus) -> Node:
        meta, spec = item.metadata, item.spec
        cidrs = tuple(spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else ()))
        said = [each.status for each in item.status.conditions or () if each.type == NETWORK_UNAVAILABLE]
        ours, created = ours_only(meta.annotations, self._names), _seconds(meta.creationTimestamp)
        return Node(meta.name, ours, cidrs, created, _version(meta.resourceVersion), said == ["False"])


def _ignore() -> None:
    pass


def _watches(request: httpx2.Request) -> bool:
    return bool(request.url.params.get("watch") == "true")


def _version(text: str) -> int:
    """resourceVersions are numbers that grow (KEP-5504, and every Kubernetes on etcd before it)."""
    if not text.isascii() or not text.isdigit():
        raise RegistryRefusedError(f"resourceVersion {printable(text)!r}: expected a whole number")
    return int(text)


def _seconds(timestamp: str | None) -> int:
    """Seconds since 1970 of a time as Kubernetes writes it; 0 of anything else."""
    try:
        return int(datetime.fromisoformat(timestamp or "").timestamp())
    except ValueError:
        return 0
