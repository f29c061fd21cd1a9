"""How do two agents keep out of each other's way? A lock on the run directory, held for life and freed by the kernel at death."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flannelpy.core.errors import FlannelpyError

log = logging.getLogger("flannelpy")

_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


@contextmanager
def hold_lock(directory: Path) -> Iterator[bool]:
    """Hold ``<directory>/lock`` (flock(2)); its text is our process id. False, with a warning, where nothing can be written there.

    Raises FlannelpyError where another agent has it, and where it can be no directory.
    """
    path = directory / "lock"
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        # flock(2) needs no right to write: whoever may open the file may hold the lock, and keep us from starting.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        told = f"--run-dir {directory}: {error.strerror}; expected a directory that can be written"
        if error.errno not in _UNWRITABLE:
            raise FlannelpyError(told) from None
        log.warning("%s; without it nothing keeps a second agent out, and flannelpy status cannot ask this one", told)
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _living(os.pread(descriptor, 20, 0).decode("ascii", "replace").strip())
            raise FlannelpyError(
                f"--run-dir {directory}: another {holder} uses it; several agents need directories of their own"
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            log.warning("%s: %s; who holds the lock cannot be read there, all else goes on", path, error.strerror)
        yield True
    finally:
        os.close(descriptor)


def _living(pid: str) -> str:
    """Who holds the lock, in words; a process id that was left there by a dead one is not named."""
    return f"flannelpy (process {pid})" if pid.isdigit() and Path(f"/proc/{pid}").exists() else "process"
