"""Is the network there while the agent is ready, and only then? For runtimes that take it for ready as soon as its file is there.

Only from CNI 1.1.0 on may a runtime ask a plugin for its STATUS; containerd 1.6 does not. So the file has two names: the one that a
runtime looks for, and one that it passes over. It is renamed, never written: what a runtime reads is what root has put there, and a
rename within the folder is what containerd and CRI-O notice. Containers that run keep their network whatever its name is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.host.cni.place import Whose, network, waiting
from flannelpy.host.files import directory

GRACE_S = 10.0
"""For how long an agent that was ready may not be so: a restart and an upgrade are no news to a runtime."""

_FLOCK = struct.Struct("hhqqi4x")
_ASKED = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)


def is_locked(flag: Path) -> bool:
    """Is the agent ready, by the lock on its file? False where there is no such file. Raises FlannelpyError."""
    try:
        with directory(flag.parent) as parent:
            descriptor = os.open(flag.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            return bool(_FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _ASKED))[0] != fcntl.F_UNLCK)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FlannelpyError(f"{flag} cannot be looked at: {error.strerror}") from None


class Follower:
    """Keeps the network of ``conf_dir`` as the agent is whose ``flag`` that is. ``look`` is all there is to call.

    ``now`` is the time of its start: an agent that has been ready since the machine was booted has ``grace_s`` from then on.
    """

    def __init__(self, conf_dir: Path, flag: Path, now: float, grace_s: float = GRACE_S) -> None:
        self._there, self._away = network(conf_dir), waiting(conf_dir)
        self._flag = flag
        self._grace_s = grace_s
        self._seen = now if os.path.lexists(flag) else now - grace_s
        self._said = ""
        self.shut_out = False
        """Whether the folder could not be written at the last look. Where it was removed and made anew, a unit that may write there
        alone (ReadWritePaths=) has still the one before.
        """

    def look(self, now: float) -> str | None:
        """Give the file the name that it should have; what is new, in a line."""
        try:
            said = self._look(now)
        except FlannelpyError as error:
            said = str(error)
        else:
            if said is None:
                self._said = ""
        if said is None or said == self._said:
            return None
        self._said = said
        return said

    def _look(self, now: float) -> str | None:
        self.shut_out = False
        ready = is_locked(self._flag)
        if ready:
            self._seen = now
        elif now - self._seen < self._grace_s:
            return None
        source, target = (self._away, self._there) if ready else (self._there, self._away)
        if not os.path.lexists(source.path):
            return None
        if source.whose() is not Whose.OURS:
            return f"{source.path} is not as flannelpy cni install wrote it: it stays, whether the agent is ready or not"
        if target.whose() is Whose.ANOTHERS:
            return f"{target.path} is not flannelpy's: {source.path.name} stays what it is"
        try:
            with directory(source.path.parent) as parent:
                os.rename(source.path.name, target.path.name, src_dir_fd=parent, dst_dir_fd=parent)
        except FileNotFoundError:
            return None  # an uninstall was quicker
        except OSError as error:
            self.shut_out = error.errno == errno.EROFS
            raise FlannelpyError(f"{source.path} cannot be renamed: {error.strerror}") from None
        if ready:
            return f"the agent is ready: {target.path} is there"
        return f"the agent is not ready: {source.path} is {target.path.name} now; containers that run keep their network"
