"""How do agent and systemd talk? READY, STATUS, STOPPING and signs of life over the notify socket; descriptors, and back.

Sources: sd_notify(3), sd_notify_barrier(3), sd_watchdog_enabled(3), sd_listen_fds(3), FileDescriptorStoreMax= and WatchdogSec= in
systemd.service(5).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence

from flannelpy.agent.beat import beat
from flannelpy.core.foreign import printable

log = logging.getLogger(__name__)

FIRST_INHERITED = 3
"""SD_LISTEN_FDS_START: what a former life left begins here."""

BARRIER_WITHIN_S = 2.0

STATUS_EVERY_S = 1.0
"""How often the status line is looked at; it is sent where it is another one."""

STANDS_STILL_S = 30.0
"""An agent whose loop has not turned for so long does not live, whatever else of it does."""


class Notifier:
    """Writes to ``$NOTIFY_SOCKET``; silent where there is none. The first message that is lost is logged; none is fatal."""

    def __init__(self, address: str | None = None) -> None:
        address = os.environ.get("NOTIFY_SOCKET") if address is None else address
        # A leading @ is an abstract socket (unix(7)).
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._lost = False
        self._ready = False
        self._status = ""

    @property
    def listened_to(self) -> bool:
        """True where there is somebody to tell."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The service is up, which is said once; ``status`` is the line that ``systemctl status`` shows."""
        if self._ready:
            self.status(status)
            return
        self._ready, self._status = True, printable(status)
        self._send(f"READY=1\nSTATUS={self._status}")

    def status(self, status: str) -> None:
        """The status line; sent where it is another one than before."""
        shown = printable(status)  # a line end in it would be another message
        if shown != self._status:
            self._status = shown
            self._send(f"STATUS={shown}")

    def alive(self) -> None:
        """The service lives: once more the time that WatchdogSec= gives it."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The service is going down on purpose."""
        self._send("STOPPING=1")

    def store(self, name: str, fd: int) -> None:
        """Keep a duplicate of ``fd`` for the next life, beside those that have the same name. The last life's are still kept."""
        # Unpolled: an error that waits on a socket would make systemd let go of it.
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])

    def forget(self, name: str) -> None:
        """Close what is kept under this name."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    async def barrier(self) -> None:
        """Return once systemd has acted upon all that it was told; where it does not, after BARRIER_WITHIN_S, with a word."""
        loop = asyncio.get_running_loop()
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        closed = asyncio.Event()
        loop.add_reader(ours, closed.set)  # systemd closes its copy of the other end: the last one
        try:
            self._send("BARRIER=1", [theirs])
            os.close(theirs)
            async with asyncio.timeout(BARRIER_WITHIN_S):
                await closed.wait()
        except TimeoutError:
            log.warning("systemd has not acted upon what it was told %g s ago; going on", BARRIER_WITHIN_S)
        finally:
            loop.remove_reader(ours)
            os.close(ours)

    def _send(self, message: str, fds: Sequence[int] = ()) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_systemd:
                to_systemd.connect(self._address)
                socket.send_fds(to_systemd, [message.encode()], fds)
            self._lost = False
        except OSError as error:
            if not self._lost:
                self._lost = True
                log.warning("systemd does not take %r: %s", message.partition("\n")[0], error.strerror)


async def keep_posted(notifier: Notifier, line: Callable[[], str]) -> None:
    """Let systemd show ``line()``, from now on and for ever; a service that waits says so for what."""
    while True:
        notifier.status(line())
        await beat(STATUS_EVERY_S)


def status_line(ready: bool, running: str, why_not: Sequence[str], errors: Sequence[str]) -> str:
    """What ``systemctl status`` shows: what it does, or what it waits for; and what is wrong."""
    parts = [running] if ready else [f"not ready: {'; '.join(why_not) or 'starting'}"]
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    return "; ".join([*parts, *([f"error: {errors[0]}{more}"] if ready and errors else [])])


def watchdog_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Within how many seconds systemd wants a sign of life; None where it wants none, or not from us (sd_watchdog_enabled(3))."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (usec.isascii() and usec.isdigit()) or not int(usec) or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1_000_000


async def feed_watchdog(notifier: Notifier, within_s: float | None, silent_s: Callable[[], float]) -> None:
    """Give signs of life for ever, for as long as ``silent_s()``, how long the agent's loop has not turned, is no more than usual.

    Returns at once where systemd does not want any. systemd ends who gives none for ``within_s``, and starts it anew.
    """
    if within_s is None:
        return
    said = False
    while True:
        silent = silent_s()
        if silent <= STANDS_STILL_S:
            notifier.alive()
            said = False
        elif not said:
            said = True
            log.error(
                "the reconciler has not turned for %d s: systemd gets no more signs of life and will restart the agent", silent
            )
        await asyncio.sleep(within_s / 3)


def inherited(environ: MutableMapping[str, str] = os.environ) -> dict[str, int]:
    """The descriptors that systemd kept from the last life, by name; they are the caller's now. Call it once, and early.

    The variables that tell of them are taken out of ``environ``, and the descriptors do not pass to children. Two of one name
    cannot be told apart: the first is taken, the other closed. What cannot be understood is said and passed over.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):
        return {}  # none, or a parent's
    named = names.split(":")
    if count != str(len(named)):
        log.warning("LISTEN_FDS=%r and LISTEN_FDNAMES=%r do not fit together: expected as many names; not used", count, names)
        return {}
    found: dict[str, int] = {}
    for fd, name in enumerate(named, FIRST_INHERITED):
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            log.warning("descriptor %d (%s) from systemd: %s", fd, name, error.strerror)
            continue
        if name in found:
            os.close(fd)
        else:
            found[name] = fd
    return found
