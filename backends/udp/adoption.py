"""Can what was kept in the fd store be used again? Device and sockets are looked at before they are trusted.

While the agent was away somebody may have deleted the device, or another version or config may want another one. Queues and sockets
are used all together or not at all: those of one port share out its datagrams by their number.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from backends.udp.counters import Counters, are_counters, make_counters
from backends.udp.offload import IFF_VNET_HDR, ask_tun
from backends.udp.protocol import Offload
from backends.udp.sockets import set_up
from backends.udp.tun import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TUN, IFREQ, TUNGETIFF, keep_to_ourselves, tun_flags
from flannelpy.core.backend import FdStore
from flannelpy.core.errors import BackendError

TUN_OF, SOCKET_OF, COUNTERS_OF = "udp-tun-{}", "udp-socket-{}", "udp-counters-{}"
"""Names in the fd store; workers count from 0."""

_IFF_TAP = 0x0002
_IFF_DETACH_QUEUE = 0x0400
_TELLING = IFF_TUN | _IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE | _IFF_DETACH_QUEUE
"""The flags that tell one device from another."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the datapath would open: ``number`` queues of the device, and sockets; with ``offload``, whatever the kernel has."""

    device: str
    address: str
    port: int
    number: int
    offload: bool


def adopt(fd_store: FdStore, wanted: Wanted) -> tuple[tuple[int, ...], tuple[socket.socket, ...], Offload]:
    """Queues and sockets as they were kept, the caller's own from now on, and what the device offloads.

    Raises BackendError: why they cannot be used; none is open then.
    """
    kept = [number for number in range(len(fd_store.names)) if TUN_OF.format(number) in fd_store.names]
    if len(kept) != wanted.number:
        raise BackendError(f"they are for {len(kept)} workers, not for {wanted.number}")
    with ExitStack() as undo:
        tuns, sockets = [], []
        for number in kept:
            tuns.append(_take(fd_store, TUN_OF.format(number)))
            undo.callback(os.close, tuns[-1])
            _check_tun(tuns[-1], wanted)
            keep_to_ourselves(tuns[-1])  # a former life may have been another user's
            sockets.append(undo.enter_context(_as_socket(_take(fd_store, SOCKET_OF.format(number)))))
            _check_socket(sockets[-1], wanted)
            set_up(sockets[-1])
        offloads = ask_tun(tuns[0]) if tun_flags(tuns[0], wanted.offload, wanted.number) & IFF_VNET_HDR else Offload.NONE
        undo.pop_all()
    return tuple(tuns), tuple(sockets), offloads


def adopt_counters(fd_store: FdStore, number: int) -> Counters:
    """The counters of a worker as they were kept; new ones, kept in their place, where they are another version's or missing."""
    name = COUNTERS_OF.format(number)
    fd = fd_store.take(name)
    if fd is not None:
        if are_counters(fd):
            return Counters(fd)
        os.close(fd)
    made = make_counters()
    fd_store.keep(name, made.fd)
    return made


def _take(fd_store: FdStore, name: str) -> int:
    fd = fd_store.take(name)
    if fd is None:
        raise BackendError(f"there is no {name}")
    return fd


def _check_tun(tun: int, wanted: Wanted) -> None:
    """Raises BackendError where this is no queue of the wanted device, or the device is gone."""
    try:
        octets, told = IFREQ.unpack(fcntl.ioctl(tun, TUNGETIFF, IFREQ.pack(b"", 0)))
        name = octets.rstrip(b"\0").decode(errors="replace")
        socket.if_nametoindex(name)  # it may live on in another network namespace
    except OSError as error:
        gone = error.errno in (errno.EBADFD, None)  # if_nametoindex gives no number
        raise BackendError(f"TUN device {wanted.device}: {'it was deleted' if gone else error.strerror}") from None
    flags, expected = told & _TELLING, tun_flags(tun, wanted.offload, wanted.number)
    if (name, flags) != (wanted.device, expected):
        raise BackendError(f"TUN device {name} has flags {flags:#x}; expected {wanted.device} with {expected:#x}")


def _as_socket(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise BackendError(f"expected a socket: {error.strerror}") from None


def _check_socket(sock: socket.socket, wanted: Wanted) -> None:
    """Raises BackendError where it is not bound as wanted."""
    if (sock.family, sock.type, sock.proto) != (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP):
        raise BackendError("expected a UDP socket")
    address, port = sock.getsockname()
    shared = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    if (address, port, shared) != (wanted.address, wanted.port, wanted.number > 1):
        raise BackendError(f"UDP {address}:{port}, {'' if shared else 'not '}shared; expected {wanted.address}:{wanted.port}")
