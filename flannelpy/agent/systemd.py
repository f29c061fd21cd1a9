"""What does systemd get told? READY, STATUS and STOPPING over the notify socket. sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


class Notifier:
    """Writes to ``$NOTIFY_SOCKET``; silent where there is none. The first message that is lost is logged; none is fatal."""

    def __init__(self, address: str | None = None) -> None:
        address = os.environ.get("NOTIFY_SOCKET") if address is None else address
        # A leading @ is an abstract socket (unix(7)).
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._lost = False

    def ready(self, status: str) -> None:
        """The service is up; ``status`` is the line that ``systemctl status`` shows."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """A new status line."""
        self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """The service is going down on purpose."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_systemd:
                to_systemd.connect(self._address)
                to_systemd.sendall(message.encode())
            self._lost = False
        except OSError as error:
            if not self._lost:
                self._lost = True
                log.warning("systemd cannot be told %r: %s", message.partition("\n")[0], error.strerror)
