"""How is the TUN device opened, and what does a person read when it cannot be? flannel-compat 9.4.

Several workers have a queue of the device each. The device gives a flow to the queue that its last packet came from, so that
answers are the same worker's, and new flows by their hash. Source: Documentation/networking/tuntap.rst, netdevice(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path
from struct import Struct

from backends.udp.offload import IFF_VNET_HDR, ask_tun, tun_features
from backends.udp.protocol import Offload
from flannelpy.core.errors import BackendError
from flannelpy.core.foreign import printable

CLONE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
TUNGETIFF = 0x800454D2
_TUNSETOWNER = 0x400454CC
IFF_TUN = 0x0001
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
_IFF_TUN_EXCL = 0x8000
IFREQ = Struct("16sH22x")

_SIOCSIFTXQLEN = 0x8943
_SIOCGIFINDEX = 0x8933
_IFREQ_LENGTH = Struct("16si20x")

WAITING = 4000
"""Packets that wait in each queue of the device while a worker or the agent is replaced: four seconds of 1,000 a second, twice what
an agent takes to be back that was killed. The kernel's is 500."""


def possible_queues(wanted: int) -> int:
    """``wanted``, or 1 where the kernel's TUN has no more. Raises BackendError."""
    if wanted == 1:
        return 1
    tun = _open_clone()
    try:
        return wanted if tun_features(tun) & IFF_MULTI_QUEUE else 1
    finally:
        os.close(tun)


def open_tun(name: str, offload: bool = False, queues: int = 1) -> tuple[tuple[int, ...], Offload]:
    """Make the TUN device ``name``; it lives as long as one of its descriptors, which are returned, one a queue. None blocks.

    With them what the device offloads, where that is wanted. Raises BackendError: what is in the way and how to remove it.
    """
    with contextlib.ExitStack() as undo:
        tuns = []
        for _ in range(queues):
            tuns.append(_open_clone())
            undo.callback(os.close, tuns[-1])
        found = Offload.NONE
        flags = tun_flags(tuns[0], offload, queues)
        try:
            # Another agent's device with several queues would let us in as one more; EXCL has it refuse.
            _attach(tuns[0], name, flags | _IFF_TUN_EXCL if queues > 1 else flags)
            keep_to_ourselves(tuns[0])
            _lengthen(name)  # before the others come: a queue is made as long as the device says
            for tun in tuns[1:]:
                _attach(tun, name, flags)
            if flags & IFF_VNET_HDR:
                found = ask_tun(tuns[0])
        except OSError as error:
            raise BackendError(f"TUN device {name}: {_why_no_device(name, error)}") from None
        undo.pop_all()
    return tuple(tuns), found


def tun_flags(tun: int, offload: bool, queues: int) -> int:
    """The flags of a device with this many queues and, where ``offload`` is wanted and the driver has it, virtio headers."""
    header = IFF_VNET_HDR if offload and tun_features(tun) & IFF_VNET_HDR else 0
    return IFF_TUN | IFF_NO_PI | header | (IFF_MULTI_QUEUE if queues > 1 else 0)


def _open_clone() -> int:
    try:
        return os.open(CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(f"{CLONE}: {_why_no_clone(error)}") from None


def _attach(tun: int, name: str, flags: int) -> None:
    fcntl.ioctl(tun, _TUNSETIFF, IFREQ.pack(name.encode(), flags))


def keep_to_ourselves(tun: int) -> None:
    """A device that belongs to nobody gives a queue, and packets, to whoever may open the clone device (tun_not_capable)."""
    fcntl.ioctl(tun, _TUNSETOWNER, os.geteuid())


def absence(tun: int, name: str, sock: socket.socket) -> str:
    """Why the device of this queue is not our ``name`` any more, in words, or nothing: the queue works wherever its device is.

    Asked with what is open, for want of descriptors is no absence.
    """
    try:
        octets, _ = IFREQ.unpack(fcntl.ioctl(tun, TUNGETIFF, IFREQ.pack(b"", 0)))
        called = octets.rstrip(b"\0").decode(errors="replace")
        if called != name:
            return f"was renamed to {printable(called)}"
        fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, _IFREQ_LENGTH.pack(name.encode(), 0))
    except OSError as error:
        return {errno.EBADFD: "was deleted", errno.ENODEV: "was moved to another network namespace"}.get(error.errno or 0, "")
    return ""


def _lengthen(name: str) -> None:
    """Have more packets wait; with fewer it works, too."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket.fileno(), _SIOCSIFTXQLEN, _IFREQ_LENGTH.pack(name.encode(), WAITING))


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
        case errno.EBUSY | errno.EINVAL | errno.EEXIST if _is_of_another_kind(name):
            return f"a device of this name and of another kind is in the way: ip link del {name}"
        case errno.EBUSY | errno.EINVAL:
            who = f"stop that one (fuser -v {CLONE} names it), or ip link del {name} where there is none"
            return f"busy: a running flanneld or another agent holds it; {who}"
        case errno.EPERM | errno.EACCES:
            return "not permitted: expected to run as root or with CAP_NET_ADMIN"
        case _:
            return str(error.strerror)


def _is_of_another_kind(name: str) -> bool:
    known = Path("/sys/class/net", name)
    return known.exists() and not (known / "tun_flags").exists()
