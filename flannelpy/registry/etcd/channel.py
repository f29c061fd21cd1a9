"""How is etcd asked, and what does its silence mean? One gRPC channel at a time to one of the endpoints, credentials, and errors.

A call tries each endpoint at most once within its deadline; an endpoint that does not answer loses its turn. The three things that
go wrong at a person's end (not reachable, TLS, password) are told apart here and named with the endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryTlsError, RegistryUnavailableError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd import loader as etcd3_loader
from flannelpy.registry.etcd.endpoints import Address, parse_endpoint
from flannelpy.registry.etcd.tls import explain_tls, last_error, read_credentials

rpc: Any = etcd3_loader.load()  # before grpc, which reads its environment while it is imported

import grpc  # noqa: E402
from grpc import aio  # noqa: E402

CallError: Any = grpc.RpcError
"""What a call raises; the modules beside this one take it from here, lest they import grpc too early."""

END: Any = aio.EOF
"""What reading a stream gives when etcd has ended it."""

GRACE_S = 0.1
"""How much later than gRPC's deadline ours is."""

LIVENESS_S = 5.0
"""A question open for longer means that the registry is not alive."""

_OPTIONS = (
    # A dead peer is noticed only with ping_timeout set: its default of a minute wins over the keepalive options. No pings while
    # nothing is asked: etcd takes those for an attack and closes the connection (grpc keepalive.md, "too_many_pings").
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Channels of one process share connections, and with them the backoff of a refused one: a new channel has to be new.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_STALE_TOKEN = ("invalid auth token", "user name is empty", "revision of auth store is old")

_SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Codes that gRPC makes itself where etcd says nothing; etcd uses the first for having no leader."""

_BROKEN = (grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""Codes of a stream that was cut, by a proxy or a server that goes down."""


@dataclass(slots=True, eq=False)
class Wire:
    """One channel to one endpoint with etcd's services on it. Closed when it was dropped and its last user has left."""

    address: Address
    channel: Any
    kv: Any
    lease: Any
    watch: Any
    auth: Any
    users: int = 0
    dropped: bool = False

    @classmethod
    def open(cls, address: Address, endpoint: Endpoint) -> Wire:
        """Make the channel; nothing is sent yet. Certificates are read from their files now. Raises RegistryTlsError."""
        target = f"dns:///{address.target}"
        if address.tls:
            channel = aio.secure_channel(
                target, grpc.ssl_channel_credentials(*read_credentials(address, endpoint)), options=_OPTIONS
            )
        else:
            channel = aio.insecure_channel(target, options=_OPTIONS)
        return cls(address, channel, rpc.KVStub(channel), rpc.LeaseStub(channel), rpc.WatchStub(channel), rpc.AuthStub(channel))


Call = Callable[..., Awaitable[Any]]
"""Takes a wire and gRPC's ``timeout`` and ``metadata``; answers with a message."""


@dataclass(slots=True)
class Link:
    """The way to etcd: endpoints in turn, the token, and whether anybody answers."""

    endpoint: Endpoint
    addresses: tuple[Address, ...] = ()
    closed: bool = False
    trouble: RegistryError | None = None
    """What the watch failed with last; it says so itself, and takes it back."""
    _turn: int = 0
    _wire: Wire | None = None
    _wires: set[Wire] = field(default_factory=set)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)
    _token: str | None = None
    _token_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asked_at: float | None = None

    def __post_init__(self) -> None:
        self.addresses = tuple(parse_endpoint(url) for url in self.endpoint.urls)

    @property
    def address(self) -> Address:
        """The endpoint that is spoken to, or that has the next turn."""
        return self._wire.address if self._wire is not None else self.addresses[self._turn % len(self.addresses)]

    # ------------------------------------------------------------------------------------------------- asking

    async def ask(self, call: Call) -> Any:
        """The answer to a question that may be asked again: every endpoint gets an equal share of the deadline.

        Raises RegistryUnavailableError, RegistryTlsError, RegistryAuthError, or RegistryError for what etcd refused.
        """
        answer, _ = await self._ask(call, len(self.addresses))
        return answer

    async def settle(self, call: Call) -> tuple[Any, bool]:
        """The answer to a compare-and-swap, and whether an earlier try of it may have been carried out unheard.

        One that timed out may have been applied, so it is sent a second time; its losing branch then reads what is there.
        """
        return await self._ask(call, max(2, len(self.addresses)))

    async def _ask(self, call: Call, tries: int) -> tuple[Any, bool]:
        until = time.monotonic() + self.endpoint.timeout_s
        failures: list[RegistryError] = []
        for left in range(tries, 0, -1):
            deadline = time.monotonic() + max(0.0, until - time.monotonic()) / left
            try:
                return await self._ask_once(call, deadline), bool(failures)
            except (RegistryUnavailableError, RegistryTlsError) as error:
                failures.append(error)
        raise _sum_up(failures)

    async def _ask_once(self, call: Call, deadline: float) -> Any:
        async with self.hold() as wire:
            for first in (True, False):
                token = await self.token(wire, deadline)
                self.asked()
                try:
                    # gRPC's deadline is the one that counts; ours is for a stream, whose writes wait without end for a
                    # connection that never stands.
                    async with asyncio.timeout(_left(deadline) + GRACE_S):
                        answer = await call(wire, timeout=_left(deadline), metadata=_metadata(token))
                except TimeoutError:
                    raise self._no_answer(wire) from None
                except CallError as error:
                    if first and token is not None and is_stale_token(error):
                        self.forget(token)
                        continue
                    raise await self.explain(error, wire) from None
                except asyncio.CancelledError:
                    if _cancelled():
                        raise
                    raise RegistryUnavailableError(f"{wire.address}: the connection was closed by us") from None
                self.heard()
                return answer
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[Wire]:
        """The current wire, kept open while inside. One that proves unreachable or untrusted loses its turn."""
        if self.closed:
            raise RegistryUnavailableError("the registry was closed")
        if self._wire is None:
            try:
                self._wire = Wire.open(self.address, self.endpoint)
            except RegistryTlsError:
                self._turn += 1
                raise
            self._wires.add(self._wire)
        wire = self._wire
        wire.users += 1
        try:
            yield wire
        except (RegistryUnavailableError, RegistryTlsError):
            if self._wire is wire:
                self._wire = None
                self._turn += 1
            wire.dropped = True
            raise
        finally:
            wire.users -= 1
            if wire.dropped and not wire.users:
                self._discard(wire)

    def _discard(self, wire: Wire) -> None:
        self._wires.discard(wire)
        task = asyncio.get_running_loop().create_task(wire.channel.close(), name=f"close {wire.address}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every channel; calls on them end with RegistryUnavailableError. May be called twice."""
        self.closed = True
        wires, self._wires, self._wire = self._wires, set(), None
        await asyncio.gather(*(wire.channel.close() for wire in wires), *self._closing)

    # ------------------------------------------------------------------------------------------------ liveness

    @property
    def alive(self) -> bool:
        """False once a question has been open for longer than LIVENESS_S, over all endpoints and repetitions."""
        return self.silent_s <= LIVENESS_S

    @property
    def silent_s(self) -> float:
        """How long the oldest open question has been without an answer; 0 where none is open."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    def asked(self) -> None:
        """Something was asked; the oldest open question counts."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def heard(self) -> None:
        """etcd answered."""
        self._asked_at = None

    # -------------------------------------------------------------------------------------------------- token

    async def token(self, wire: Wire, deadline: float) -> str | None:
        """What authenticates our calls: "" where etcd asks for nothing, None where no user name is set."""
        if not self.endpoint.username:
            return None
        async with self._token_lock:
            if self._token is None:
                self._token = await self._authenticate(wire, deadline)
            return self._token

    def forget(self, token: str | None) -> None:
        """etcd no longer takes this token (it expired, or etcd was started anew): the next call authenticates."""
        if token is not None and self._token == token:
            self._token = None

    async def _authenticate(self, wire: Wire, deadline: float) -> str:
        endpoint = self.endpoint
        request = rpc.AuthenticateRequest(name=endpoint.username, password=_password(endpoint))
        self.asked()
        try:
            answer = await wire.auth.Authenticate(request, timeout=_left(deadline))
        except CallError as error:
            if "authentication is not enabled" in (error.details() or ""):
                self.heard()
                return ""
            raise await self.explain(error, wire) from None
        self.heard()
        return str(answer.token)

    # ------------------------------------------------------------------------------------------------- errors

    def _no_answer(self, wire: Wire) -> RegistryError:
        bound = f"{self.endpoint.timeout_s:g} s"
        return RegistryUnavailableError(f"{wire.address}: no answer in time; expected etcd to answer within {bound}")

    async def explain(self, error: Any, wire: Wire) -> RegistryError:
        """A gRPC error as one of ours, in one line: the endpoint, what happened and what was expected."""
        code, details, where = error.code(), error.details() or "", wire.address
        if code not in _SILENT:
            self.heard()
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._no_answer(wire)
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or _is_auth(details):
            return RegistryAuthError(f"{where}: {_explain_auth(details, self.endpoint.username)}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return RegistryUnavailableError(f"{where}: what answers there is not etcd ({details}); expected etcd with its v3 API")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return RegistryUnavailableError(f"{where}: etcd takes no more writes ({last_error(details)})")
        if code in _BROKEN:
            return RegistryUnavailableError(f"{where}: {last_error(details) or code.name}; expected an answer")
        if code != grpc.StatusCode.UNAVAILABLE:
            return RegistryError(f"{where}: etcd refused: {last_error(details) or code.name}")
        if complaint := await explain_tls(details, where, self.endpoint):
            return RegistryTlsError(f"{where}: {complaint}")
        return RegistryUnavailableError(f"{where}: {last_error(details)}; expected etcd to answer there")


def is_stale_token(error: Any) -> bool:
    """True where a fresh token may help."""
    details = error.details() or ""
    return error.code() == grpc.StatusCode.UNAUTHENTICATED or any(text in details for text in _STALE_TOKEN)


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("token", token),) if token else ()


def watch_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """For a watch also the wish that a member without a leader ends it, instead of leaving it deaf (flannel-compat 4.5)."""
    return (("hasleader", "true"), *_metadata(token))


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _cancelled() -> bool:
    """True where this task was cancelled; a call that we cancelled ourselves raises the same exception."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _sum_up(failures: list[RegistryError]) -> RegistryError:
    """Of all endpoints' failures one error; TLS before silence, because somebody has to act on it."""
    kind = next((type(error) for error in failures if isinstance(error, RegistryTlsError)), type(failures[0]))
    return kind("; ".join(dict.fromkeys(str(error) for error in failures)))


# ---------------------------------------------------------------------------------------------------------- credentials


def _password(endpoint: Endpoint) -> str:
    """Read anew each time: the file may have been replaced since."""
    if not endpoint.password_file:
        return endpoint.password
    try:
        return Path(endpoint.password_file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise RegistryAuthError(f"--etcd-password-file {endpoint.password_file!r}: {why}; expected the password in it") from None


# --------------------------------------------------------------------------------------------------------------- wording


def _is_auth(details: str) -> bool:
    return "authentication failed" in details or any(text in details for text in _STALE_TOKEN)


def _explain_auth(details: str, username: str) -> str:
    if not username:
        return "etcd asks for a user; expected --etcd-username and --etcd-password"
    if "permission denied" in details:
        return f"user {username!r} lacks the role; expected one that may read and write the prefix"
    return f"user {username!r} refused ({last_error(details)}); expected a user name and password that etcd knows"
