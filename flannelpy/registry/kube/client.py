"""How is the API server asked? Calls with a deadline, a watch that cannot hang, errors of ours; the one importer of lightkube.

What lightkube leaves open: its watch waits for ever, so one in which nothing happens is ended, and begun when the server answers.
It reads a service account's token anew when that is refused, but its certificates never, so after a failed handshake the next call
has a client of its own. A node is decoded as far as we need it: a thousand in a fifth of a second.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import datetime
from math import inf
from typing import Any

import httpx2
import msgspec
import yaml
from lightkube import AsyncClient, KubeConfig
from lightkube.config.models import User
from lightkube.core import resource
from lightkube.core.exceptions import ApiError, ConfigError
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
    WatchGapError,
)
from flannelpy.core.foreign import printable
from flannelpy.registry.kube.access import Access
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
SERVER_ENDS_S = 300
"""When the server is to end a watch that we have forgotten."""
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
    metadata: NodeMeta = msgspec.field(default_factory=NodeMeta)
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
    metadata: NodeMeta = msgspec.field(default_factory=NodeMeta)
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeConditions = msgspec.field(default_factory=NodeConditions)


class ApiServer:
    """A cluster's API server, asked as ``access`` says. Raises RegistryError, and UsageError where that cannot be."""

    def __init__(self, access: Access, names: Names) -> None:
        self._access = access
        self._names = names
        self._config = _configured(access)
        self._client: AsyncClient | None = None
        self._open: dict[object, float] = {}
        self._closing = set[asyncio.Future[None]]()
        self._back_at = -inf
        """When a server that was away has refused us first; infinity while it is away."""
        self._let_in: Callable[[], None] = _ignore
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
        """Every node, and the version of the whole."""
        async with self._call() as client:
            listed = client.list(SlimNode, chunk_size=PAGE)
            nodes = [self._node(item) async for item in listed]
            return nodes, _version(listed.resourceVersion)

    async def node(self, name: str) -> Node | None:
        """One node, None where there is none."""
        try:
            async with self._call() as client:
                return self._node(await client.get(SlimNode, name))
        except _MissingError:
            return None

    async def node_of_pod(self, namespace: str, name: str) -> str:
        """The name of the node that a pod is on; empty where it is on none yet."""
        try:
            async with self._call() as client:
                pod = await client.get(Pod, name, namespace=namespace)
        except _MissingError:
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
            async with self._call() as client:
                return self._node(await client.patch(SlimNodeStatus, name, body, patch_type=PatchType.STRATEGIC))
        except _MissingError:
            raise ConflictError(f"node {name} is gone; nothing was written") from None

    async def may(self, verb: str, part: str = "") -> bool:
        """Whether we have the right to do this with nodes, or with this part of them; nothing is done."""
        wanted = ResourceAttributes(resource="nodes", verb=verb, subresource=part or None)
        async with self._call() as client:
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
            begun = True
            limit.reschedule(asyncio.get_running_loop().time() + QUIET_S)
            self._heard()
            let_in()

        with self._told():
            client = self._made()
            self._let_in = heard
            stream: Any = client.watch(SlimNode, resource_version=str(version), server_timeout=SERVER_ENDS_S)
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
                    yield kind, self._node(item)

    def renew(self) -> None:
        """Have new connections, and read certificates and tokens anew."""
        client, self._client = self._client, None
        if client is not None:
            closing = asyncio.ensure_future(client.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all connections. May be called twice."""
        self.renew()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _made(self) -> AsyncClient:
        if self._client is None:
            try:
                made = AsyncClient(self._config, timeout=httpx2.Timeout(CALL_S), trust_env=False, field_manager=MANAGER)
            except (OSError, ConfigError) as error:  # a file of the configuration
                raise RegistryTlsError(f"{self.url}: {error}; expected readable certificates") from None
            http = made._client._client  # lightkube has no way of its own to either
            http.headers["User-Agent"] = USER_AGENT
            http.event_hooks = {"response": [self._look_at]}
            self._client = made
        return self._client

    async def _look_at(self, response: httpx2.Response) -> None:
        """The head of an answer is there; that of a watch comes at once, and its first line with the first change."""
        if response.request.url.params.get("watch") == "true":
            if response.is_success:
                self._let_in()
            else:
                await response.aread()  # lightkube would not, and so not know why

    def _heard(self) -> None:
        self.answered_at, self._back_at = time.monotonic(), -inf

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[AsyncClient]:
        """A call: within its time, counted while it is open, and told in our errors."""
        token = object()
        self._open[token] = time.monotonic()
        try:
            with self._told():
                async with asyncio.timeout(CALL_S):
                    yield self._made()
            self._heard()
        finally:
            del self._open[token]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, TimeoutError, msgspec.MsgspecError, ConfigError, OSError, httpx2.StreamError) as error:
            told = self._patient(_as_ours(error, self.url))
            if isinstance(told, RegistryTlsError):
                self.renew()
            elif not isinstance(told, RegistryUnavailableError):
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


class _MissingError(RegistryError):
    """There is no such object."""


def _as_ours(error: Exception, url: str) -> RegistryError:
    """An error of the client's libraries as one of ours."""
    if isinstance(error, ApiError | httpx2.HTTPStatusError):
        return _refusal(error, url)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", "") or cause.reason or str(cause)
            return RegistryTlsError(f"{url}: TLS: {printable(str(reason))}")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, msgspec.MsgspecError):
        return RegistryRefusedError(f"{url}: its answer is no node: {printable(str(error))}; expected Kubernetes' API")
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return RegistryUnavailableError(f"{url}: no answer")
    if isinstance(error, ConfigError):
        return RegistryAuthError(f"{url}: {printable(str(error))}")
    return RegistryUnavailableError(f"{url}: {printable(str(error) or type(error).__name__)}")


def _refusal(error: ApiError | httpx2.HTTPStatusError, url: str) -> RegistryError:
    response = getattr(error, "response", None)
    code = response.status_code if response is not None else getattr(getattr(error, "status", None), "code", None) or 0
    said = str(error) if isinstance(error, ApiError) else _message(error.response)
    text = f"{url}: {printable(said.splitlines()[0] if said else 'no reason given')}"
    ahead = code == 504 and response is not None and "watch=true" in str(response.request.url)  # "Too large resource version"
    if code == 410 or ahead:
        return WatchGapError(text)
    if code == 404:
        return _MissingError(text)
    if code in (401, 403):
        return RegistryAuthError(text)
    if code == 409:
        return ConflictError(text)
    return RegistryUnavailableError(text) if code == 429 or code >= 500 else RegistryRefusedError(text)


def _message(response: httpx2.Response) -> str:
    """Why the server refuses, in its own words where it says it as Kubernetes does."""
    with suppress(ValueError, TypeError, KeyError, httpx2.StreamError):
        return str(response.json()["message"])
    return f"HTTP {response.status_code}"


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


def _configured(access: Access) -> Any:
    """The configuration that access leads to, with a user, whom lightkube expects. Raises UsageError."""
    try:
        if access.kubeconfig:
            found = KubeConfig.from_file(access.kubeconfig).get()
        elif access.api_url:
            found = KubeConfig.from_server(access.api_url).get()
        else:
            found = KubeConfig.from_service_account().get()
    except (ConfigError, KeyError, TypeError, AttributeError, OSError, ValueError, msgspec.MsgspecError, yaml.YAMLError) as error:
        where = f"--kubeconfig-file {access.kubeconfig!r}" if access.kubeconfig else "--kube-subnet-mgr without --kubeconfig-file"
        said = f"{error} is not there" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UsageError(f"{where}: {printable(said)}; expected a kubeconfig, or a pod's service account") from None
    if found is None:
        raise UsageError(f"--kubeconfig-file {access.kubeconfig!r}: no current context; expected one")
    if access.api_url:
        found.cluster.server = access.api_url
    return found._replace(user=found.user or User())
