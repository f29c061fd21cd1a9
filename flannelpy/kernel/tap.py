"""How does a packet of ours come from where containers' packets come from? By a port of our own on their bridge, for a moment.

A TAP device: what is written into it has arrived at the bridge, from somebody who is plugged into it. It is gone with its
descriptor, so that nothing is left of a process that was killed (Documentation/networking/tuntap).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flannelpy.core.errors import KernelError

NAME = "fplive%d"
"""The kernel puts a number in."""

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_SIOCSIFHWADDR, _SIOCGIFHWADDR, _SIOCBRADDIF = 0x8924, 0x8927, 0x89A2
_IFF_UP, _ARPHRD_ETHER = 1, 1
_MOST = 65_536


class Tap:
    """A port of a bridge. ``mac``: its address; ``bridge_mac``: the bridge's."""

    def __init__(self, descriptor: int, name: str, mac: bytes, bridge_mac: bytes) -> None:
        self.descriptor = descriptor
        self.name = name
        self.mac = mac
        self.bridge_mac = bridge_mac

    def fileno(self) -> int:
        """For select."""
        return self.descriptor

    def send(self, frame: bytes) -> None:
        """Have this frame arrive at the bridge. Raises KernelError."""
        try:
            os.write(self.descriptor, frame)
        except OSError as error:
            raise KernelError(f"{self.name}: {error.strerror or error}", error.errno or 0) from None

    def receive(self) -> Iterator[bytes]:
        """The frames that the bridge has sent to it."""
        with suppress(BlockingIOError):
            while True:
                yield os.read(self.descriptor, _MOST)


@contextmanager
def plugged(bridge: str, mtu: int) -> Iterator[Tap]:
    """A port of ``bridge``, for the time of the block. Raises KernelError: what is missing, in one line."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refused("/dev/net/tun", error) from None
    try:
        try:
            tap = _plug(descriptor, bridge, mtu)
        except OSError as error:
            raise _refused(f"a port of {bridge}", error) from None
        yield tap
    finally:
        os.close(descriptor)


def _plug(descriptor: int, bridge: str, mtu: int) -> Tap:
    asked = fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", NAME.encode(), _IFF_TAP | _IFF_NO_PI))
    name = asked[:16].rstrip(b"\0").decode()
    # A bridge takes the lowest MAC of its ports for its own, and the lowest MTU, unless it was given one: ours is neither.
    mac = b"\xfe\xff" + secrets.token_bytes(4)
    with suppress(OSError):  # a port speaks no IPv6 of its own; a kernel without IPv6 has no such setting
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:

        def control(request: int, *, device: str = name, value: bytes) -> bytes:
            return fcntl.ioctl(any_socket, request, struct.pack("16s24s", device.encode(), value))

        control(_SIOCSIFHWADDR, value=struct.pack("=H6s", _ARPHRD_ETHER, mac))
        control(_SIOCSIFMTU, value=struct.pack("=i", mtu))
        control(_SIOCBRADDIF, device=bridge, value=struct.pack("=i", socket.if_nametoindex(name)))
        (flags,) = struct.unpack_from("=H", control(_SIOCGIFFLAGS, value=b""), 16)
        control(_SIOCSIFFLAGS, value=struct.pack("=H", flags | _IFF_UP))
        bridge_mac = control(_SIOCGIFHWADDR, device=bridge, value=b"")[18:24]  # now, for it may be another with another port
    return Tap(descriptor, name, mac, bridge_mac)


def _refused(what: str, error: OSError) -> KernelError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return KernelError("needs root (CAP_NET_ADMIN and CAP_NET_RAW)", error.errno)
    absent = what.startswith("/dev") and error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
    missing = ": load the module tun" if absent else ""
    return KernelError(f"{what}: {error.strerror or error}{missing}", error.errno or 0)
