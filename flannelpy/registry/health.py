"""How well can the registry be reached? Every call is counted by its kind, and what is wrong follows from the last of each.

The only writer of the registry's conditions. A kind of call that fails is ended by nothing but a success of that kind: etcd without
space answers every question and takes no write. Where nothing answers at all, that is one condition, however many calls fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from netaddr import IPNetwork

from flannelpy.core.errors import (
    ConflictError,
    RegistryAuthError,
    RegistryError,
    RegistryTlsError,
    RegistryUnavailableError,
    TakenError,
    WatchGapError,
)
from flannelpy.core.model import LEASE_TTL_S, Lease, LeaseAttrs
from flannelpy.registry import Batch, Registry, Snapshot, StoredConfig

READ, WRITE, WATCH, KEEP_ALIVE = "read", "write", "watch", "keep-alive"

UNREACHABLE, TLS, AUTH, REFUSED = "registry-unreachable", "registry-tls", "registry-auth", "registry-refused"
CODES = (UNREACHABLE, TLS, AUTH, REFUSED)

_ANSWERS = (ConflictError, TakenError, WatchGapError)
"""Errors that are answers: the registry is well."""

T = TypeVar("T")


class Report(Protocol):
    """Who takes the conditions (``agent.report``)."""

    def set(self, code: str, details: Mapping[str, str]) -> None:
        """``code`` holds for exactly these subjects, with these details."""
        ...


class Health:
    """What became of the last call of each kind."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._failed: dict[str, RegistryError] = {}
        self._silent = ""
        self._link_down = ""
        self._outage = ""  # how it began: who fails next, and how, is no news

    @property
    def unreachable(self) -> bool:
        """True while nothing answers."""
        return bool(self._silent) or any(isinstance(error, RegistryUnavailableError) for error in self._failed.values())

    def succeeded(self, kind: str) -> None:
        """The registry has answered a call of this kind."""
        answered = self._failed.pop(kind, None) is not None
        # Whoever answers is there: what failed for want of an answer did so before.
        gone = [other for other, error in self._failed.items() if isinstance(error, RegistryUnavailableError)]
        for other in gone:
            del self._failed[other]
        if answered or gone or self._silent:
            self._silent = ""
            self._tell()

    def failed(self, kind: str, error: RegistryError) -> None:
        """A call of this kind has not been answered, or was refused."""
        if isinstance(error, _ANSWERS):
            self.succeeded(kind)
            return
        self._failed[kind] = error
        self._tell()

    def silent(self, why: str) -> None:
        """No sign of life where there should be one; empty: there is."""
        if why != self._silent:
            self._silent = why
            self._tell()

    def link_down(self, interface: str) -> None:
        """The uplink is down (empty: up): then nobody need look at etcd."""
        if interface != self._link_down:
            self._link_down = interface
            self._tell()

    def _tell(self) -> None:
        said: dict[str, dict[str, str]] = {code: {} for code in CODES}
        unreachable = [error for error in self._failed.values() if isinstance(error, RegistryUnavailableError)]
        if unreachable or self._silent:
            self._outage = self._outage or (str(unreachable[0]) if unreachable else self._silent)
            said[UNREACHABLE][""] = f"the uplink {self._link_down} is down" if self._link_down else self._outage
        else:
            self._outage = ""
        for kind, error in self._failed.items():
            if isinstance(error, RegistryTlsError):
                said[TLS] = {"": str(error)}
            elif isinstance(error, RegistryAuthError):
                said[AUTH][kind] = str(error)
            elif not isinstance(error, RegistryUnavailableError):
                said[REFUSED][kind] = f"{kind}: {error}"
        if len(set(said[AUTH].values())) == 1:
            said[AUTH] = {"": next(iter(said[AUTH].values()))}
        for code, details in said.items():
            self._report.set(code, details)


class Monitored:
    """A registry whose calls are counted in ``health``; everything else is the inner one's."""

    def __init__(self, inner: Registry, health: Health) -> None:
        self._inner = inner
        self._health = health

    async def _count(self, kind: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await call()
        except RegistryError as error:
            self._health.failed(kind, error)
            raise
        self._health.succeeded(kind)
        return answer

    async def config(self) -> StoredConfig:
        return await self._count(READ, self._inner.config)

    async def put_config(self, text: str, expected: StoredConfig | None = None) -> int:
        return await self._count(WRITE, lambda: self._inner.put_config(text, expected))

    async def snapshot(self) -> Snapshot:
        return await self._count(READ, self._inner.snapshot)

    async def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        try:
            async for batch in self._inner.watch(from_revision):
                self._health.succeeded(WATCH)
                yield batch
        except RegistryError as error:
            self._health.failed(WATCH, error)
            raise

    async def create(
        self, subnet: IPNetwork, attrs: LeaseAttrs, *, subnet6: IPNetwork | None = None, ttl_s: int = LEASE_TTL_S
    ) -> Lease:
        return await self._count(WRITE, lambda: self._inner.create(subnet, attrs, subnet6=subnet6, ttl_s=ttl_s))

    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = LEASE_TTL_S) -> Lease:
        return await self._count(WRITE, lambda: self._inner.renew(lease, attrs, ttl_s=ttl_s))

    async def keep_alive(self, lease: Lease) -> float:
        return await self._count(KEEP_ALIVE, lambda: self._inner.keep_alive(lease))

    async def remaining(self, lease: Lease) -> float:
        return await self._count(READ, lambda: self._inner.remaining(lease))

    async def outlives_key(self, lease: Lease) -> bool:
        return await self._count(READ, lambda: self._inner.outlives_key(lease))

    async def release(self, lease: Lease) -> None:
        await self._count(WRITE, lambda: self._inner.release(lease))

    def look(self) -> None:
        """Ask for a sign of life, and what keeps the watch from going on; once a second or so."""
        trouble = self._inner.trouble
        if trouble is not None and not isinstance(trouble, RegistryUnavailableError):
            self._health.failed(WATCH, trouble)
        elif trouble is not None or not self._inner.alive:
            self._health.silent("no sign of life on the watch")
        else:
            self._health.silent("")

    @property
    def alive(self) -> bool:
        return self._inner.alive

    @property
    def trouble(self) -> RegistryError | None:
        return self._inner.trouble

    @property
    def silent_s(self) -> float:
        return self._inner.silent_s

    @property
    def endpoint(self) -> str:
        return self._inner.endpoint

    async def close(self) -> None:
        await self._inner.close()
