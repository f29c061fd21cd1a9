"""How are the sockets opened that datagrams come to and leave from, and what does a person read when they cannot be?

Several workers have one each. Which socket gets a datagram depends on its outer addresses and ports: all that one peer sends comes
to one worker. Nothing finer keeps the order, for what the kernel gathers (UDP_GRO) is one buffer of many flows. Source: udp(7),
socket(7), ip(7).
"""

from __future__ import annotations

import contextlib
import errno
import socket

from flannelpy.core.errors import BackendError

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_IP_MTU_DISCOVER = 10
_WANT, _DO = 1, 2

SOCKET_BUFFER = 4 << 20
"""Bytes, which the kernel doubles: 0.1 s at 0.3 Gbit/s, or ``tun.WAITING`` small datagrams at what most occupy, 0.8 to 2.3 KB."""


def refuse_what_is_too_long(sock: socket.socket) -> None:
    """Have no datagram fragmented below us. Where the host does no path MTU discovery (ip_no_pmtu_disc), all is left as it is."""
    if sock.getsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER) == _WANT:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)


def open_sockets(address: str, port: int, number: int = 1) -> tuple[socket.socket, ...]:
    """The UDP sockets that datagrams come to and leave from, all at one address and port; none blocks.

    Raises BackendError naming address and port.
    """
    with contextlib.ExitStack() as undo:
        sockets: list[socket.socket] = []
        for _ in range(number):
            sock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
            # The first is bound alone, so that it is refused where anybody holds the port; only then others may join it.
            if sockets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                sock.bind((address, port))
            except OSError as error:
                raise BackendError(f"UDP {address}:{port}: {_why_no_socket(address, port, error)}") from None
            if number > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            set_up(sock)
            sockets.append(sock)
        undo.pop_all()
    return tuple(sockets)


def set_up(sock: socket.socket) -> None:
    """Whatever else a socket of ours needs, also one that another version has opened; doing it twice does no harm."""
    refuse_what_is_too_long(sock)
    for forced, polite in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except PermissionError:  # without CAP_NET_ADMIN the kernel's limit (net.core.rmem_max) applies
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, polite, SOCKET_BUFFER)


def _why_no_socket(address: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"taken: a running flanneld or another agent may hold it (ss -lunp 'sport = :{port}' names it); stop that one"
        case errno.EADDRNOTAVAIL:
            return f"no interface has {address} now"
        case _:
            return str(error.strerror)
