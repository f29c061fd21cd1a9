"""How are the TUN device and the socket opened, and what does a person read when they cannot be? flannel-compat 9.4.

Source: Documentation/networking/tuntap.rst, udp(7), socket(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from struct import Struct

from backends.udp.offload import IFF_VNET_HDR, Offload, ask_tun, header_known
from flannelpy.core.errors import BackendError

CLONE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFREQ = Struct("16sH22x")

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
SOCKET_BUFFER = 4 << 20
"""Bytes; what arrives while a worker is replaced waits here: 0.1 s at 0.3 Gbit/s."""


def open_tun(name: str, offload: bool = False) -> tuple[int, Offload]:
    """Make the TUN device ``name``; it lives as long as its descriptor, which is returned and does not block.

    With it what the device offloads, where that is wanted. Raises BackendError: what is in the way and how to remove it.
    """
    try:
        fd = os.open(CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(f"{CLONE}: {_why_no_clone(error)}") from None
    found = Offload.NONE
    flags = _IFF_TUN | _IFF_NO_PI
    offload = offload and header_known(fd)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags | IFF_VNET_HDR if offload else flags))
        if offload:
            found = ask_tun(fd)
    except OSError as error:
        os.close(fd)
        raise BackendError(f"TUN device {name}: {_why_no_device(name, error)}") from None
    return fd, found


def _why_no_clone(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            remedy = "modprobe tun; in a container also hand the device in, for example docker run --device=/dev/net/tun"
            return f"not there, and udp needs it: {remedy}"
        case errno.ENODEV | errno.ENXIO:
            return "the kernel has no TUN driver loaded, and udp needs it: modprobe tun"
        case errno.EACCES | errno.EPERM:
            return "not permitted: expected to run as root, in a container with --device=/dev/net/tun"
        case _:
            return str(error.strerror)


def _why_no_device(name: str, error: OSError) -> str:
    match error.errno:
        case errno.EBUSY:
            return f"busy: a running flanneld or another agent holds it; stop that one (fuser -v {CLONE} names it)"
        case errno.EPERM | errno.EACCES:
            return "not permitted: expected to run as root or with CAP_NET_ADMIN"
        case errno.EINVAL | errno.EEXIST:
            return f"a device of this name and of another kind is in the way: ip link del {name}"
        case _:
            return str(error.strerror)


def open_socket(address: str, port: int) -> socket.socket:
    """The UDP socket that datagrams come to and leave from; does not block. Raises BackendError naming address and port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise BackendError(f"UDP {address}:{port}: {_why_no_socket(address, port, error)}") from None
    for forced, polite in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except PermissionError:  # without CAP_NET_ADMIN the kernel's limit (net.core.rmem_max) applies
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, polite, SOCKET_BUFFER)
    return sock


def _why_no_socket(address: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"taken: a running flanneld or another agent may hold it (ss -lunp 'sport = :{port}' names it); stop that one"
        case errno.EADDRNOTAVAIL:
            return f"no interface has {address} now"
        case _:
            return str(error.strerror)
