"""What does ``flannelpy cni follow`` do? It looks once a second until it is told to end; as it runs for ever, it imports little."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import click

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import printable
from flannelpy.explain.places import READY
from flannelpy.host.cni.follow import Follower

LOOK_S = 1.0
SHUT_OUT_LOOKS = 10
"""So often systemd's unit finds its folder read-only before it ends: started anew, it has the folder that is there by then."""


def follow(conf_dir: str, run_dir: Path, grace_s: float, *, once: bool) -> None:
    """Keep the network as the agent is, until SIGTERM or SIGINT; then it stays as it is. ``once``: look, and end.

    Raises FlannelpyError where systemd has to start it anew.
    """
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # they wait until they are asked for: no rename is cut short
    follower = Follower(Path(conf_dir), run_dir / READY, time.monotonic(), 0.0 if once else grace_s)
    told, shut_out = False, 0
    while True:
        if said := follower.look(time.monotonic()):
            click.echo(printable(said, 2000))
        if not told:
            told = True
            _tell_systemd()
        shut_out = shut_out + 1 if follower.shut_out else 0
        if shut_out >= SHUT_OUT_LOOKS and os.environ.get("NOTIFY_SOCKET"):
            raise FlannelpyError(f"{conf_dir} is read-only: ending, so that systemd shows the one that is there now")
        if once or signal.sigtimedwait(ending, LOOK_S) is not None:
            return


def _tell_systemd() -> None:
    """READY=1, where somebody listens (sd_notify(3)): what comes after it finds the network by the name that it should have.

    That nobody does is said, and no more: the network is as it should be.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_systemd:
                to_systemd.connect("\0" + address[1:] if address.startswith("@") else address)
                to_systemd.send(b"READY=1")
        except OSError as error:
            click.echo(printable(f"flannelpy: systemd does not take READY=1 at {address}: {error.strerror or error}"), err=True)
