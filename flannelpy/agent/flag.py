"""How do others on this host see, without asking, that we are ready? A file in the run directory that is locked while we are.

The kernel lets go of the lock however the process ends (fcntl(2), F_OFD_SETLK): nobody reads there of an agent that is gone. The
file itself stays, and says that an agent has been ready since this machine was booted. ``flannelpy cni follow`` looks at it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from flannelpy.agent.beat import beat
from flannelpy.agent.lock import WHOLE
from flannelpy.core.errors import FlannelpyError
from flannelpy.explain.places import READY
from flannelpy.host.files import directory

LOOK_S = 1.0
"""How often it is looked whether we are ready."""


async def show(run_dir: Path, ready: Callable[[], bool]) -> None:
    """Hold the lock while ``ready()``, for ever. Where nothing can be written there (which is said at the start), nothing is."""
    held: int | None = None
    try:
        while True:
            if held is not None and not (ready() and os.fstat(held).st_nlink):
                os.close(held)
                held = None
            if held is None and ready():
                held = _locked(run_dir)
            await beat(LOOK_S)
    finally:
        if held is not None:
            os.close(held)


def _locked(run_dir: Path) -> int | None:
    """The descriptor that holds the lock; None where there is none to be had."""
    try:
        with directory(run_dir) as parent:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(READY, flags, 0o600, dir_fd=parent)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, WHOLE)
        except OSError:
            os.close(descriptor)
            raise
    except (OSError, FlannelpyError):
        return None
    return descriptor
