"""How do two agents keep out of each other's way? A lock on the run directory, and one on each thing that a host has only once.

Locks are open file description locks (fcntl(2), F_OFD_SETLK): they need a file that is open for writing, which only its owner can
have, and the kernel frees them however the process ends. What stands in a locked file only says who it is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import printable
from flannelpy.core.json_text import decode
from flannelpy.explain.places import READY, SOCKET
from flannelpy.host.files import RefusedError, open_directory, why

log = logging.getLogger("flannelpy")

CLAIMS_DIR = Path("/run/flannelpy-claims")
"""Where all agents of a machine meet: not in a run directory, which is one agent's, nor below /run/lock, where anybody writes."""

CLAIMS_VARIABLE = "FLANNELPY_CLAIMS_DIR"
"""An environment variable that names another, for hosts that share a /run and are several all the same."""

ANONYMOUS_LOOKS, ANONYMOUS_S = 10, 0.002
"""A lock whose holder cannot be read is looked at so often: it may be one that has not signed yet, or that only takes it away."""

LOCK = "lock"
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_FLOCK = struct.Struct("hhqqi4x")
WHOLE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TEXT = 4096


@dataclass(frozen=True, slots=True)
class Claimant:
    """An agent, as others see it. ``pid``: 0 where it is not known, or does not live (in our view of processes)."""

    pid: int = 0
    run_dir: str = ""
    prefix: str = ""

    def __str__(self) -> str:
        known = [f"process {self.pid}"] if self.pid else []
        known += [f"--run-dir {self.run_dir}"] if self.run_dir else []
        known += [f"network {self.prefix}"] if self.prefix else []
        return "another flannelpy" + (f" ({', '.join(known)})" if known else "")


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else has it: ``name`` as it was asked for."""

    name: str
    by: Claimant

    def __str__(self) -> str:
        return f"{self.name} belongs to {self.by}"


@contextmanager
def hold_lock(directory: Path, prefix: str = "") -> Iterator[bool]:
    """Hold ``<directory>/lock``; its text says who we are. False, with a warning, where nothing can be written there.

    Raises FlannelpyError where another agent has it, and where it can be no directory of ours.
    """
    try:
        parent, descriptor = _open_lock(directory)
    except RefusedError as error:
        raise FlannelpyError(f"--run-dir {directory}: {error}") from None
    except OSError as error:
        said = f"--run-dir {directory}: {why(error, directory)}; expected a directory that can be written"
        if error.errno not in _UNWRITABLE:
            raise FlannelpyError(said) from None
        log.warning("%s; without it nothing keeps a second agent out, and flannelpy status cannot ask this one", said)
        yield False
        return
    try:
        if not _lock(descriptor):
            other = claimant(descriptor)
            raise FlannelpyError(f"--run-dir {directory}: {other} uses it; several agents need directories of their own")
        if not _has_more(parent):
            with suppress(OSError):
                os.fchmod(parent, 0o700)
        if (unsigned := _sign(descriptor, Claimant(os.getpid(), "", prefix), directory)) is not None:
            log.warning("--run-dir %s: %s; whose the lock is cannot be read there, all else goes on", directory, unsigned)
        yield True
    finally:
        os.close(descriptor)
        os.close(parent)


def _open_lock(directory: Path) -> tuple[int, int]:
    """The directory and its lock file, which is its owner's alone from now on."""
    parent = open_directory(directory, 0o700)
    try:
        descriptor = os.open(LOCK, _OPEN, 0o600, dir_fd=parent)
    except OSError as error:
        os.close(parent)
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise RefusedError(f"{directory / LOCK} is no file; expected one, or nothing") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        os.close(parent)
        raise RefusedError(f"{directory / LOCK} is no file; expected one, or nothing")
    with suppress(OSError):
        os.fchmod(descriptor, 0o600)
    return parent, descriptor


def _has_more(parent: int) -> bool:
    """True where something in the directory is not ours: whoever put it there may want it to be read."""
    return not {LOCK, SOCKET, READY}.issuperset(os.listdir(parent))


class Claims:
    """Things that a host has once (``device flannel.1``, ``udp-port 8285``, ``table flannelpy``): each is one agent's at most.

    A claim holds in this network namespace, on this machine, until it is released or the process ends in whatever way.
    """

    def __init__(self, us: Claimant, directory: Path | None = None) -> None:
        self._us = us
        self.directory = directory or Path(os.environ.get(CLAIMS_VARIABLE) or CLAIMS_DIR)
        self._held: dict[str, int] = {}
        self._swept = False
        self.without = ""
        """Why claims cannot be made here at all, in a line; empty where they can. Nothing keeps other agents off then."""

    @property
    def names(self) -> frozenset[str]:
        """What is ours."""
        return frozenset(self._held)

    def claim(self, names: Iterable[str]) -> Held | None:
        """Make all of these ours, or, where somebody has one of them, none that is not ours already: who has it."""
        taken: dict[str, int] = {}
        for name in dict.fromkeys(names):
            if name in self._held:
                continue
            try:
                descriptor = self._take(name)
            except (OSError, RefusedError) as error:
                self.without = str(error) if isinstance(error, RefusedError) else f"{self.directory}: {why(error, self.directory)}"
                break
            if isinstance(descriptor, Held):
                self._drop(taken)
                return descriptor
            taken[name] = descriptor
        else:
            self.without = ""
        self._held |= taken
        return None

    def release(self, names: Iterable[str]) -> None:
        """These are anybody's; what is not ours is passed over."""
        self._drop({name: self._held.pop(name) for name in set(names) & set(self._held)})

    def close(self) -> None:
        """Give everything back."""
        self.release(self.names)

    def _take(self, name: str) -> int | Held:
        """The locked file of a claim. Raises OSError, RefusedError."""
        parent = open_directory(self.directory, 0o700)
        try:
            if not self._swept:
                self._swept = True
                _sweep(parent)
            left = ANONYMOUS_LOOKS
            while True:
                descriptor = os.open(file_of(name), _OPEN, 0o600, dir_fd=parent)
                try:
                    if not _lock(descriptor):
                        if (other := claimant(descriptor)).pid or left <= 0:
                            return Held(name, other)
                        left -= 1
                        time.sleep(ANONYMOUS_S)
                        continue
                    if _is_still(descriptor, name, parent):
                        _sign(descriptor, self._us, self.directory)
                        kept, descriptor = descriptor, -1
                        return kept
                finally:
                    if descriptor >= 0:
                        os.close(descriptor)
        finally:
            os.close(parent)

    def _drop(self, claims: dict[str, int]) -> None:
        """Release these. The files go first, while they are locked: who waits at one that is gone looks again."""
        with suppress(OSError, RefusedError):
            parent = open_directory(self.directory)
            for name in claims:
                with suppress(OSError):
                    os.unlink(file_of(name), dir_fd=parent)
            os.close(parent)
        for descriptor in claims.values():
            os.close(descriptor)


def _sweep(parent: int) -> None:
    """Take away the files of those who were killed: what can be locked is nobody's, and who waits at it looks again."""
    for entry in os.listdir(parent):
        with suppress(OSError):
            descriptor = os.open(entry, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and _lock(descriptor):
                    os.unlink(entry, dir_fd=parent)
            finally:
                os.close(descriptor)


def file_of(name: str) -> str:
    """By network namespace: in another one the same name is another thing."""
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    return f"{namespace}-{re.sub(r'[^A-Za-z0-9.-]', lambda odd: f'_{ord(odd[0]):x}', name)}"


def _is_still(descriptor: int, name: str, parent: int) -> bool:
    """False where the file was taken away between our opening and our locking it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file_of(name), dir_fd=parent, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """False where another open file description has it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, WHOLE)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _sign(descriptor: int, us: Claimant, directory: Path) -> str | None:
    """Say in a locked file who we are; why not, where that cannot be written: the lock is ours all the same."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{json.dumps(asdict(us))}\n".encode(), 0)
    except OSError as error:
        return why(error, directory)
    return None


def claimant(descriptor: int) -> Claimant:
    """Who has signed, as far as it lives."""
    try:
        fields = decode(os.pread(descriptor, _TEXT, 0))
        pid, place, prefix = int(fields["pid"]), str(fields["run_dir"]), str(fields["prefix"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return Claimant()
    if not 0 < pid < 1 << 31 or not Path(f"/proc/{pid}").exists():
        return Claimant()
    return Claimant(pid, printable(place), printable(prefix))
