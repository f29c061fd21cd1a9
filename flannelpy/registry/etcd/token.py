"""As whom do we speak to etcd? A token for a user name and a password, fetched when it is needed and again when etcd forgets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flannelpy.core.errors import RegistryAuthError
from flannelpy.host.files import read_given
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.wire import CallError, Wire, rpc
from flannelpy.registry.etcd.words import explain, is_heard, no_answer

PASSWORD_BYTES = 4096
"""A file that has more is another file."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Token:
    """One for all endpoints: etcd's members share them. ``heard`` is called when etcd has answered."""

    endpoint: Endpoint
    heard: Callable[[], None]
    _value: str | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self, wire: Wire, timeout_s: float) -> str | None:
        """What authenticates our calls: "" where etcd asks for nothing, None where no user name is set."""
        if not self.endpoint.username:
            return None
        try:
            async with asyncio.timeout(timeout_s), self._lock:  # others may wait for theirs, each as long as it has
                if self._value is None:
                    self._value = await self._authenticate(wire, timeout_s)
                return self._value
        except TimeoutError:
            raise no_answer(wire.address, self.endpoint) from None

    def forget(self, value: str | None) -> None:
        """etcd no longer takes this one (it expired, or etcd was started anew): the next call authenticates."""
        if value is not None and self._value == value:
            self._value = None

    async def _authenticate(self, wire: Wire, timeout_s: float) -> str:
        request = rpc.AuthenticateRequest(name=self.endpoint.username, password=read_password(self.endpoint))
        try:
            answer = await wire.auth.Authenticate(request, timeout=timeout_s)
        except CallError as error:
            if is_heard(error):
                self.heard()
            if "authentication is not enabled" in (error.details() or ""):
                return ""
            raise await explain(error, wire.address, self.endpoint) from None
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
