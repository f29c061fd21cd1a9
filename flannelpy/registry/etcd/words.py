"""Why did a call fail? A gRPC error as one of ours, in one line: the endpoint, what happened, what was expected.

The things that go wrong at a person's end are told apart: not reachable, TLS, password or role, and an etcd that answers and
refuses. Some of these only one member refuses, and another may do better: such an error costs the endpoint its turn.
"""

from __future__ import annotations

from typing import Any

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryRefusedError, RegistryTlsError, RegistryUnavailableError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import Address
from flannelpy.registry.etcd.grpc_text import plain
from flannelpy.registry.etcd.tls import explain_tls
from flannelpy.registry.etcd.wire import MESSAGE_MAX, Code


class RefusedHereError(RegistryRefusedError):
    """One member refuses what another would not: a learner, a corrupt one, one that is not yet up."""


class TooLargeError(RegistryError):
    """The answer is larger than we take: ask for less at a time."""


class NotLetInError(RegistryUnavailableError):
    """etcd is there, and has not yet told whether our password is right: no other endpoint would be quicker."""


_SILENT = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
"""Codes that gRPC makes itself where etcd says nothing; etcd uses the first for having no leader."""

_BROKEN = (Code.CANCELLED, Code.ABORTED, Code.INTERNAL, Code.UNKNOWN)
"""Codes of a stream that was cut, by a proxy or a server that goes down."""

_STALE_TOKEN = ("invalid auth token", "user name is empty", "revision of auth store is old")

_HERE = ("for learner", "not capable", "corrupt", "unhealthy cluster")
"""etcd's words for what is the matter with this member. Its code for them has changed between versions, its words have not
(api/v3rpc/rpctypes/error.go)."""

_AWAY = ("request timed out", "no leader", "leader changed", "server stopped", "too many requests", "not leader")
"""etcd's words for: try again. A gRPC proxy passes them on under a code of its own."""

LEASE_EXISTS, LEASE_UNKNOWN = "lease already exists", "requested lease not found"
"""etcd's words on a grant that was made before, and on a lease that is not there (any more)."""


async def explain(error: Any, where: Address, endpoint: Endpoint) -> RegistryError:
    """A gRPC error as one of ours; what is kept of it names no call, and so no channel (``Wire.close``)."""
    error.with_traceback(None)
    code, details = error.code(), error.details() or ""
    if code is Code.DEADLINE_EXCEEDED:
        return no_answer(where, endpoint)
    if code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED) or _is_auth(details):
        return RegistryAuthError(f"{where}: {explain_auth(details, endpoint.username)}")
    if code is Code.UNIMPLEMENTED:
        return RegistryUnavailableError(
            f"{where}: what answers there is not etcd ({plain(details)}); expected etcd with its v3 API"
        )
    if "Received message larger than max" in details:  # by us; a server or a proxy says the same in small letters of a request
        return TooLargeError(f"{where}: an answer of more than {MESSAGE_MAX >> 20} MiB; expected less at a time")
    if "etcdserver:" in details or code not in (*_SILENT, *_BROKEN):
        return _refused(details or code.name, where)
    if code in _BROKEN:
        return RegistryUnavailableError(f"{where}: {plain(details) or code.name.lower()}; expected an answer")
    if complaint := await explain_tls(details, where, endpoint):
        return RegistryTlsError(f"{where}: {complaint}")
    return RegistryUnavailableError(f"{where}: {plain(details)}; expected etcd to answer there")


def no_answer(where: Address, endpoint: Endpoint) -> RegistryError:
    """Nothing came in time."""
    return RegistryUnavailableError(f"{where}: no answer in time; expected etcd to answer within {endpoint.timeout_s:g} s")


def _refused(details: str, where: Address) -> RegistryError:
    """etcd's own answer."""
    text = plain(details)
    if any(words in text for words in _AWAY):
        return RegistryUnavailableError(f"{where}: {text}; expected etcd to answer there")
    if "database space exceeded" in text:
        return RegistryRefusedError(f"{where}: etcd takes no more writes: database space exceeded")
    if "larger than max" in text:
        return RegistryRefusedError(f"{where}: etcd refused: request is too large")
    if any(words in text for words in _HERE):
        return RefusedHereError(f"{where}: etcd refused: {text}")
    return RegistryRefusedError(f"{where}: etcd refused: {text}")


def is_heard(error: Any) -> bool:
    """True where a gRPC error is something that etcd itself has said."""
    return error.code() not in _SILENT


def is_stale_token(error: Any) -> bool:
    """True where a fresh token may help."""
    details = error.details() or ""
    return error.code() is Code.UNAUTHENTICATED or any(text in details for text in _STALE_TOKEN)


def costs_the_turn(error: RegistryError) -> bool:
    """True where another endpoint may do better."""
    return isinstance(error, RegistryUnavailableError | RegistryTlsError | RefusedHereError) and not isinstance(
        error, NotLetInError
    )


def _is_auth(details: str) -> bool:
    return "permission denied" in details or "authentication failed" in details or any(text in details for text in _STALE_TOKEN)


def explain_auth(details: str, username: str) -> str:
    """What etcd's refusal of a user means."""
    if not username:
        return "etcd asks for a user; expected --etcd-username and --etcd-password"
    if "permission denied" in details:
        return f"user {username!r} lacks the role; expected one that may read and write the prefix"
    return f"user {username!r} refused ({plain(details)}); expected a user name and password that etcd knows"
