"""Did an agent that was killed leave its IKE daemon running? It is found by the socket where it listens, in the run directory."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path

from flannelpy.core.xfrm import IKE_DIRECTORY, IKE_SOCKET

_CREDENTIALS = struct.Struct("=iII")  # struct ucred

ANSWER_S, END_S = 2.0, 5.0


def left(run_dir: Path) -> int | None:
    """The process that listens at our daemon's socket, where it is such a daemon."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(ANSWER_S)
        trial.connect(str(run_dir / IKE_DIRECTORY / IKE_SOCKET))
        pid, _user, _group = _CREDENTIALS.unpack(trial.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() == "charon":
            return int(pid)
    return None


def end(pid: int) -> None:
    """Have it take its keys out of the kernel, tell its peers, and go; at once where it does not. Raises OSError."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            ended = select.poll()
            ended.register(process, select.POLLIN)
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                if ended.poll(END_S * 1000):
                    return
        finally:
            os.close(process)
