"""How is the IKE daemon spoken to? Over its VICI socket, with strongSwan's own library, in a thread and with a deadline.

The library blocks, and once it has read a byte it waits for the rest without end: at the deadline the socket is shut down below it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from flannelpy.core.errors import BackendError
from flannelpy.core.foreign import printable
from flannelpy.core.xfrm import IKE_EXTRA

T = TypeVar("T")

DEADLINE_S = 10.0
"""For one turn of questions."""

_CREDENTIALS = struct.Struct("=iII")  # struct ucred


class RefusedError(BackendError):
    """The daemon answers, and will not."""


def library() -> ModuleType:
    """strongSwan's Python package. Raises BackendError where it is not there."""
    try:
        import vici
    except ImportError:
        raise BackendError(f"the Python package vici is not installed: {IKE_EXTRA}") from None
    return vici  # type: ignore[no-any-return]


def listener(path: Path) -> int | None:
    """The process that listens at a VICI socket; None where nobody does."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(DEADLINE_S)
        trial.connect(str(path))
        pid, _user, _group = _CREDENTIALS.unpack(trial.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return int(pid)
    return None


class Vici:
    """A session with the daemon at ``path``; one turn at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket: socket.socket | None = None
        self._session: Any = None
        self._turn = asyncio.Lock()

    async def ask(self, work: Callable[[Any], T], what: str) -> T:
        """What ``work`` makes of the session, in a thread. Raises RefusedError, and BackendError where there is no answer."""
        async with self._turn:
            working = asyncio.ensure_future(asyncio.to_thread(self._do, work))
            try:
                async with asyncio.timeout(DEADLINE_S):
                    return await asyncio.shield(working)
            except TimeoutError:
                raise BackendError(f"charon does not answer to {what} within {DEADLINE_S:g} s") from None
            except BackendError:
                raise
            except Exception as error:
                vici = library()
                if isinstance(error, vici.exception.CommandException):
                    raise RefusedError(f"charon refuses {what}: {printable(str(error), 300)}") from None
                if isinstance(error, OSError | vici.exception.SessionException | vici.exception.DeserializationException):
                    raise BackendError(f"charon cannot be asked: {what}: {printable(str(error), 300)}") from None
                raise
            finally:
                if not working.done():
                    self.close()
                    await asyncio.gather(working, return_exceptions=True)

    def _do(self, work: Callable[[Any], T]) -> T:
        if self._session is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(DEADLINE_S)
            self._socket.connect(str(self.path))
            self._session = library().Session(self._socket)
        return work(self._session)

    def close(self) -> None:
        """Whoever waits for an answer gets an error. May be called twice."""
        held, self._socket, self._session = self._socket, None, None
        if held is not None:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()


def connections(session: Any) -> set[str]:
    """The names of ours that are loaded."""
    return {text(found) for found in session.get_conns().get("conns", ()) if text(found).startswith("flannel-")}


def count(session: Any) -> int:
    """How many IKE_SAs there are, whoever's; cheap to ask."""
    return int(text(session.stats()["ikesas"]["total"]))


def associations(session: Any) -> Mapping[str, list[tuple[str, bool]]]:
    """By the connection's name: the state of each IKE_SA, and whether it has a tunnel (CHILD_SA) whose keys are in the kernel."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for each in session.list_sas({"noblock": "yes"}):
        for name, ike in each.items():
            children = [text(child.get("state", b"")) for child in ike.get("child-sas", {}).values()]
            up = any(state in ("INSTALLED", "REKEYING", "REKEYED", "UPDATING") for state in children)
            found.setdefault(name, []).append((text(ike.get("state", b"")), up))
    return found


def text(value: object) -> str:
    """What the daemon says, as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
