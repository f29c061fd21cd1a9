"""How well is one member of etcd? Each layer by itself, from the connection to the permission to write; nothing is changed there.

The permission to write is asked with a transaction whose condition never holds: etcd checks it for both branches before anything
else (etcd, server/auth). What etcd serves to everybody beside gRPC (/health, /version) tells of alarms, its version and, in the
answer's Date, of its clock (RFC 9110, 6.6.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from flannelpy.core.errors import RegistryError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd import tls
from flannelpy.registry.etcd.channel import Link, rpc
from flannelpy.registry.etcd.endpoints import Address, parse_endpoint
from flannelpy.registry.etcd.validity import Validity

NEVER = 2**62
"""A revision that no key has."""

HTTP_S = 3.0

now = time.time
"""This host's clock, which a test may set."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``wrong``: why not; empty where it went well. ``took_s``: how long it took, in seconds."""

    wrong: str = ""
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """What etcd serves to everybody; None where it did not say. ``ahead_s``: its clock minus ours, to a second."""

    version: str | None = None
    healthy: bool | None = None
    reason: str = ""
    ahead_s: float | None = None


async def connect(url: str, within_s: float) -> Answer:
    """TCP alone."""
    address, began = parse_endpoint(url), time.monotonic()
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        return Answer(f"no answer within {within_s:g} s: is it there, and does a firewall let us through?")
    except OSError as error:
        return Answer(error.strerror or str(error))
    took_s = time.monotonic() - began
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Answer(took_s=took_s)


async def certificates(endpoint: Endpoint, url: str) -> dict[str, Validity | None]:
    """The server's certificate and those in our files, each with when it counts; None where it cannot be had."""
    address = parse_endpoint(url)
    found = {f"{flag} {path}": tls.validity_of(path) for flag, path in tls.certificate_files(endpoint) if path}
    return {"the server's certificate": (await tls.greet(address, endpoint)).certificate, **found} if address.tls else {}


async def read(endpoint: Endpoint, url: str) -> Answer:
    """TLS, authentication, and the permission to read below the prefix; once more, so that only the question is timed."""
    prefix = f"{endpoint.prefix}/"
    request = rpc.RangeRequest(key=prefix.encode(), range_end=f"{endpoint.prefix}0".encode(), limit=1, keys_only=True)
    return await _asked(endpoint, url, lambda wire, **more: wire.kv.Range(request, **more))


async def write(endpoint: Endpoint, url: str) -> Answer:
    """The permission to write below the prefix. Nothing is written."""
    key = f"{endpoint.prefix}/subnets/".encode()
    never = rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=NEVER)
    put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=b""))
    request = rpc.TxnRequest(compare=[never], success=[put])
    return await _asked(endpoint, url, lambda wire, **more: wire.kv.Txn(request, **more))


async def _asked(endpoint: Endpoint, url: str, call: Callable[..., object]) -> Answer:
    link = Link(replace(endpoint, urls=(url,)))
    try:
        await link.ask(call)  # type: ignore[arg-type]
        began = time.monotonic()
        await link.ask(call)  # type: ignore[arg-type]
        return Answer(took_s=time.monotonic() - began)
    except RegistryError as error:
        return Answer(f"{error}")
    finally:
        await link.close()


async def told(endpoint: Endpoint, url: str) -> Told:
    """Its version, health and clock. Never raises."""
    address = parse_endpoint(url)
    try:
        async with asyncio.timeout(2 * HTTP_S):
            return await asyncio.to_thread(_told, address, endpoint)
    except (OSError, TimeoutError, http.client.HTTPException, ValueError):
        return Told()


def _told(address: Address, endpoint: Endpoint) -> Told:
    version, ahead_s = None, None
    body, date, before, after = _get(address, endpoint, "/version")
    if date is not None:
        # The Date has whole seconds, cut off: the moment that it names is within one second after it.
        ahead_s = (date - datetime.fromtimestamp((before + after) / 2, UTC)).total_seconds() + 0.5
    with contextlib.suppress(ValueError, KeyError, TypeError):
        version = str(json.loads(body)["etcdserver"])
    healthy, reason = None, ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        said = json.loads(_get(address, endpoint, "/health")[0])
        healthy, reason = str(said["health"]) == "true", str(said.get("reason", ""))
    return Told(version, healthy, reason, ahead_s)


def _get(address: Address, endpoint: Endpoint, path: str) -> tuple[bytes, datetime | None, float, float]:
    """Body, Date, and our clock before and after. Nothing secret is sent: whom we speak to is not checked."""
    if address.tls:
        context = tls.unchecked(endpoint)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            address.host, address.port, timeout=HTTP_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=HTTP_S)
    try:
        before = now()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(1 << 16)
        shown = answer.headers.get("Date")
        date = None
        if shown is not None:
            with contextlib.suppress(ValueError, TypeError):
                date = parsedate_to_datetime(shown)
        return body, date, before, now()
    except ssl.SSLError as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()
