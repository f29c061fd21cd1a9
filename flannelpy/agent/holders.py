"""Who holds what, and what did those hold who were killed? Looked at without taking, making or sweeping anything (see ``lock``)."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from flannelpy.agent.lock import LOCK, WHOLE, Claimant, Claims, Held, claimant, file_of
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.json_text import decode
from flannelpy.host.files import directory

_LARGEST = 4096


def holder(run_dir: Path) -> Claimant | None:
    """The agent that runs with this directory; None where none does. Raises FlannelpyError where that cannot be seen."""
    return _holder(run_dir / LOCK)


def held(claims: Path, names: Iterable[str]) -> Held | None:
    """The first of these that another agent of this network namespace has; as ``Claims.claim`` names them."""
    for name in names:
        other = _holder(claims / file_of(name))
        if other is not None:
            return Held(name, other)
    return None


def left(claims: Path, prefix: str) -> tuple[tuple[str, Path], ...]:
    """What agents of this network namespace and this network had when they were killed: names without their kind's word, and files.

    Names are as claimed, ``device flannel.1``. Raises FlannelpyError where the directory is not to be trusted.
    """
    return tuple(_left(claims, prefix))


def _left(claims: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    lead = file_of("")
    try:
        paths = sorted(claims.iterdir())
    except OSError:
        return
    for path in paths:
        file = path.name
        kind, found, rest = file.removeprefix(lead).partition("_20")
        if not file.startswith(lead) or not found or _holder(path) is not None:
            continue
        if _prefix(path) == prefix:
            yield f"{kind} {rest}", path


def _prefix(path: Path) -> str:
    try:
        return str(decode(path.read_bytes()[:_LARGEST])["prefix"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _holder(path: Path) -> Claimant | None:
    """Who has locked this file."""
    try:
        with directory(path.parent) as parent:
            descriptor = os.open(path.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FlannelpyError(f"{path}: {error.strerror}; whether an agent runs cannot be seen") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        asked = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, WHOLE)  # asked, not taken: who starts now would find it taken
        return None if struct.unpack_from("h", asked)[0] == fcntl.F_UNLCK else claimant(descriptor)
    finally:
        with suppress(OSError):
            os.close(descriptor)


def claims_directory() -> Path:
    """Where the agents of this machine meet."""
    return Claims(Claimant()).directory
