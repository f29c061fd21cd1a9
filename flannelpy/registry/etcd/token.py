"""As whom do we speak to etcd? A token for a user name and a password, fetched when it is needed and again when etcd forgets it.

A password takes etcd 60 ms of a core (bcrypt), and a restart forgets all tokens. Where all hosts come back at one moment that is
more than it can do within anybody's deadline; who gives up then and asks again adds to it, and nobody is ever let in. So there is
one question at a time, which outlives those who wait for it; and the next one comes after a pause, by chance and longer each time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryUnavailableError
from flannelpy.host.files import read_given
from flannelpy.registry import Endpoint
from flannelpy.registry.cancelling import cancelled
from flannelpy.registry.etcd.backoff import Backoff
from flannelpy.registry.etcd.endpoints import Address
from flannelpy.registry.etcd.wire import GRACE_S, CallError, Wire, rpc
from flannelpy.registry.etcd.words import NotLetInError, costs_the_turn, explain, is_heard

PASSWORD_BYTES = 4096
"""A file that has more is another file."""

PATIENCE_S = 30.0
"""For an answer, where no other endpoint is left to be tried."""
SHARE = 0.9
"""Of the time that a question has at an endpoint, where another one is left: so the question itself can go there yet."""
LONGEST_PAUSE_S = 600.0
"""After answers that did not come: of ten thousand hosts etcd lets in some twenty a second."""
REFUSED_PAUSE_S = 60.0
"""After a wrong password, which etcd takes as long to look at. One that was put right is sent at once."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Token:
    """One for all endpoints: etcd's members share them. ``heard`` is called when etcd has answered; ``using`` keeps a wire open."""

    endpoint: Endpoint
    heard: Callable[[], None]
    using: Callable[[Wire], AbstractAsyncContextManager[Wire]]
    _value: str | None = field(default=None, repr=False)
    _asking: asyncio.Task[RegistryError | None] | None = None
    _asked_at: Address | None = None
    _failed: RegistryError | None = None
    _password: str | None = field(default=None, repr=False)
    """The last that was sent."""
    _rests_until: float = 0.0
    _said: bool = False
    """Whether etcd itself has said why it does not let us in: of a member without a quorum nobody has to wait for long."""
    _late: int = 0
    """How many answers in a row did not come in time."""
    _turned_away: int = 0
    """How many failures in a row were such that another endpoint may do better."""
    _backoff: Backoff = field(default_factory=lambda: Backoff(longest_s=REFUSED_PAUSE_S))

    async def get(self, wire: Wire, timeout_s: float) -> str | None:
        """What authenticates our calls: "" where etcd asks for nothing, None where no user name is set. Raises RegistryError."""
        if not self.endpoint.username:
            return None
        clock = asyncio.get_running_loop().time
        until = clock() + timeout_s
        while self._value is None:
            asking = self._begin(wire)
            asked_at = self._asked_at
            await asyncio.wait([asking], timeout=max(0.0, until - clock()))
            if not asking.done() or asking.cancelled():
                still = f"etcd still looks at our password; expected an answer within {self._patience_s:g} s"
                raise NotLetInError(f"{wire.address}: {still}")
            if (failed := asking.result()) is not None and asked_at == wire.address:  # else ours was not asked yet
                raise type(failed)(*failed.args)
        return self._value

    def _begin(self, wire: Wire) -> asyncio.Task[RegistryError | None]:
        """Ask, or what is under way. Raises RegistryError in a pause; this wire was not asked then, and keeps its turn."""
        if self._asking is None:
            loop, password, failed = asyncio.get_running_loop(), read_password(self.endpoint), self._failed
            if failed is not None and password == self._password and loop.time() < self._rests_until:
                raise (NotLetInError if costs_the_turn(failed) else type(failed))(*failed.args)
            self._password, self._asked_at = password, wire.address
            self._asking = loop.create_task(self._ask(wire), name=f"log in at {wire.address}")
        return self._asking

    def forget(self, value: str | None) -> None:
        """etcd no longer takes this one (it expired, or etcd was started anew): the next call authenticates."""
        if value is not None and self._value == value:
            self._value = None

    async def close(self) -> None:
        """End what is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    @property
    def _patience_s(self) -> float:
        endpoints = len(self.endpoint.urls)
        return SHARE * self.endpoint.timeout_s / endpoints if self._late < endpoints - 1 else PATIENCE_S

    async def _ask(self, wire: Wire) -> RegistryError | None:
        """Ask once, and remember the answer. Returns why there is none."""
        clock = asyncio.get_running_loop().time
        self._failed, self._said, began, patience_s = None, False, clock(), self._patience_s
        try:
            async with self.using(wire):
                self._value = await self._authenticate(wire)
        except RegistryError as error:
            self._failed = error.with_traceback(None)
            late_s = min(patience_s, self.endpoint.timeout_s) - GRACE_S
            self._rest(clock(), self._failed, late=not self._said and clock() - began >= late_s)
        else:
            self._late = self._turned_away = 0
            self._backoff.settled()
        finally:
            self._asking = None
        return self._failed

    def _rest(self, now: float, failed: RegistryError, *, late: bool) -> None:
        """A pause after a failure; none where the next endpoint may answer what this one did not, or not so."""
        self._late = self._late + 1 if late else 0
        self._turned_away = self._turned_away + 1 if costs_the_turn(failed) else 0
        over = self._late - len(self.endpoint.urls)
        longest_s = min(LONGEST_PAUSE_S, PATIENCE_S * 2.0 ** min(over + 1, 30)) if over >= 0 else 0.0
        at_once = 0 < self._turned_away < len(self.endpoint.urls)
        self._rests_until = now + (random.uniform(0.0, longest_s) if late else 0.0 if at_once else self._backoff.pause())

    async def _authenticate(self, wire: Wire) -> str:
        request = rpc.AuthenticateRequest(name=self.endpoint.username, password=self._password)
        try:
            answer = await wire.auth.Authenticate(request, timeout=self._patience_s)
        except CallError as error:
            if is_heard(error):
                self._said = True
                self.heard()
            if "authentication is not enabled" in (error.details() or ""):
                return ""
            raise await explain(error, wire.address, self.endpoint) from None
        except asyncio.CancelledError:
            if cancelled():
                raise
            raise RegistryUnavailableError(f"{wire.address}: the connection was closed by us") from None
        self.heard()
        return str(answer.token)


def metadata(token: str | None) -> Metadata:
    """What goes with a call."""
    return (("token", token),) if token else ()


def watch_metadata(token: str | None) -> Metadata:
    """For a watch also the wish that a member without a leader ends it, instead of leaving it deaf (flannel-compat 4.5)."""
    return (("hasleader", "true"), *metadata(token))


def read_password(endpoint: Endpoint) -> str:
    """Read anew each time: the file may have been replaced since. Raises RegistryAuthError."""
    if not endpoint.password_file:
        return endpoint.password.reveal()
    try:
        return read_given(Path(endpoint.password_file), PASSWORD_BYTES).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise RegistryAuthError(f"--etcd-password-file {endpoint.password_file!r}: {why}; expected the password in it") from None
