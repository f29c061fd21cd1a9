"""Is an address one of this host's? Asked of the kernel's routing table, without a privilege and without a packet."""

from __future__ import annotations

import socket
from collections.abc import Callable
from socket import inet_ntoa

FRESH_S = 1.0
"""How long an answer is believed, in seconds."""

MOST = 1024
"""Answers that are remembered; then all are forgotten."""

_DISCARD = 9
"""Any port: a UDP connect(2) sends nothing (udp(7))."""


def is_local(address: int) -> bool:
    """What is sent to an address of the host has that address as its source, too (ip(7)); what goes elsewhere has another one."""
    name = inet_ntoa(address.to_bytes(4, "big"))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((name, _DISCARD))
            source: str = probe.getsockname()[0]
            return source == name
    except OSError:  # no route, or nobody's address
        return False


class OwnAddresses:
    """Answers of ``ask``, each believed for a while."""

    __slots__ = ("_ask", "_clock", "_fresh_until", "_known")

    def __init__(self, clock: Callable[[], float], ask: Callable[[int], bool] = is_local) -> None:
        self._clock = clock
        self._ask = ask
        self._known: dict[int, bool] = {}
        self._fresh_until = 0.0

    def holds(self, address: int) -> bool:
        """True where it is this host's."""
        now = self._clock()
        if now >= self._fresh_until or len(self._known) >= MOST:
            self._known.clear()
            self._fresh_until = now + FRESH_S
        known = self._known.get(address)
        if known is None:
            known = self._known[address] = self._ask(address)
        return known
