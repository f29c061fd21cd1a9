"""Is an address one of this host's? Asked of the kernel, without a privilege and without a packet."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from socket import inet_ntoa

FRESH_S = 1.0
"""How long an answer is believed, in seconds."""

MOST = 1024
"""Answers that are remembered; then all are forgotten."""

_NOBODYS = "240.0.0.1"
_DISCARD = 9
"""Any port: a UDP connect(2) sends nothing (udp(7))."""
_NO_WAY = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
"""No route, one that refuses, or a broadcast's: to one's own address there is one always."""


def is_local(address: int) -> bool:
    """A socket can be bound to the host's own addresses and to no other, unless ip_nonlocal_bind is set (ip-sysctl.rst).

    Then only what the kernel would send from is known to be ours: what goes to one's own address comes from it, but for a second
    one of a subnet. Multicast and broadcast addresses can be bound to as well; as sources they are martians (RFC 1812 5.3.7), and
    must not be let in either. Nor must what the kernel cannot be asked about, where it has no port or no descriptor left.
    """
    name = inet_ntoa(address.to_bytes(4, "big"))
    return _binds(name) and (not _binds(_NOBODYS) or _is_source_to(name))


def _binds(name: str) -> bool:
    """Not false because of something else: of a port the kernel thinks only once it knows the address to be ours."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((name, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _is_source_to(name: str) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((name, _DISCARD))
            return bool(probe.getsockname()[0] == name)
    except OSError as error:
        return error.errno not in _NO_WAY


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
