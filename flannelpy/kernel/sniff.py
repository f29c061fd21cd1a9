"""What passes an interface? A packet socket on it (packet(7)), and a filter in the kernel that keeps all else out of it."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from netaddr import IPAddress

from flannelpy.core.errors import KernelError

_ETH_P_ALL, _OUTGOING = 0x0003, 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_TIMESPEC, _ANCILLARY = struct.Struct("=qq"), 128
_BUFFER = 8 << 20
_MOST = 262_144
_NETWORK = -0x100000 & 0xFFFFFFFF
"""SKF_NET_OFF: from the network header on, whatever link there is (linux/filter.h)."""

_LOAD_BYTE, _LOAD_WORD, _EQUAL, _RETURN = 0x30, 0x20, 0x15, 0x06

Line = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """As it passed; ``sent``: by this host, else it came in. ``at_s``: when, by the kernel, in seconds since the epoch."""

    data: bytes
    sent: bool
    at_s: float


def passes_icmp() -> list[Line]:
    """ICMP of IPv4, whoever it is of: few packets, where nobody floods."""
    return [(_LOAD_BYTE, 0, 0, (_NETWORK + 9) & 0xFFFFFFFF), (_EQUAL, 0, 1, 1), (_RETURN, 0, 0, _MOST), (_RETURN, 0, 0, 0)]


def passes_between(protocol: int, other: IPAddress) -> list[Line]:
    """IPv4 of this protocol, or ICMP, to or from ``other``; ICMP from anybody, who may be a router that has something to say."""
    source, destination, kind = ((_NETWORK + offset) & 0xFFFFFFFF for offset in (12, 16, 9))
    return [
        (_LOAD_BYTE, 0, 0, kind),
        (_EQUAL, 5, 0, 1),
        (_EQUAL, 0, 5, protocol),
        (_LOAD_WORD, 0, 0, source),
        (_EQUAL, 2, 0, int(other)),
        (_LOAD_WORD, 0, 0, destination),
        (_EQUAL, 0, 1, int(other)),
        (_RETURN, 0, 0, _MOST),
        (_RETURN, 0, 0, 0),
    ]


class Sniffer:
    """What passes ``device`` and this filter. Raises KernelError where it cannot be looked at."""

    def __init__(self, device: str, program: Sequence[Line]) -> None:
        self.device = device
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # hears nothing before it is bound
        except OSError as error:
            raise _refused(device, error) from None
        try:
            packed = b"".join(struct.pack("=HBBI", *line) for line in program)
            code = ctypes.create_string_buffer(packed)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setblocking(False)
            self._socket.bind((device, _ETH_P_ALL))
        except OSError as error:
            self._socket.close()
            raise _refused(device, error) from None

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def receive(self) -> Iterator[Frame]:
        """What has passed since it was last asked."""
        while True:
            try:
                data, told, _flags, (_device, _protocol, kind, *_rest) = self._socket.recvmsg(_MOST, _ANCILLARY)
            except OSError as error:  # EAGAIN; ENETDOWN: the device went down, and nothing passes
                if error.errno == errno.ENETDOWN:
                    continue
                return
            at_s = time.time()
            for _level, what, held in told:
                if what == _SO_TIMESTAMPNS and len(held) >= _TIMESPEC.size:  # SCM_TIMESTAMPNS is the same number (socket(7))
                    seconds, nanoseconds = _TIMESPEC.unpack_from(held)
                    at_s = seconds + nanoseconds / 1e9
            yield Frame(data, kind == _OUTGOING, at_s)

    @property
    def missed(self) -> int:
        """Packets that passed and were not seen, for want of room, since it was last asked."""
        told = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", told)[1])

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()


def _refused(device: str, error: OSError) -> KernelError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return KernelError("needs root (CAP_NET_ADMIN and CAP_NET_RAW)", error.errno)
    return KernelError(f"{device} cannot be looked at: {error.strerror or error}", error.errno or 0)
