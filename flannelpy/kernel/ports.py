"""Which of the kernel's notifications are of what we have done ourselves? Those with a netlink port of ours, which it leaves out.

A notification carries the port of whoever asked for the change (nlmsg_pid, netlink(7)). What was acknowledged need not be told once
more: to read it all takes a third of a start among 10,000 peers. A filter in the kernel compares the port, before anything is
queued (socket(7), SO_ATTACH_FILTER). What the kernel does by itself carries none, nor do a vxlan device's forwarding entries.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from contextlib import suppress
from random import Random, SystemRandom

from flannelpy.core.errors import KernelError
from flannelpy.kernel.channel import Channel

SO_ATTACH_FILTER = 26
_LOAD_WORD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # linux/bpf_common.h
_PORT_AT = 12
"""Where a message's header has the port."""

_LOWEST = 1 << 30
"""The kernel gives process ids and numbers from 2**32 downwards to who asks for none."""


class Ports:
    """The ports of one agent: 256 in a row, of which nobody else draws one."""

    def __init__(self, random: Random | None = None) -> None:
        self._first = _LOWEST | (random or SystemRandom()).getrandbits(22) << 8
        self._given = 0

    def open(self, protocol: int = socket.NETLINK_ROUTE) -> Channel:
        """A channel of which nothing is told to whoever listens. Raises KernelError."""
        for _ in range(255):
            self._given = self._given + 1 & 0xFF
            try:
                return Channel(protocol, self._first | self._given)
            except KernelError as reason:
                if reason.code != errno.EADDRINUSE:
                    raise
        return Channel(protocol)

    def leave_out(self, sock: socket.socket) -> None:
        """Have a socket told nothing of what these channels do; where that cannot be, it is told, and what it says is no news."""
        lines = (
            (_LOAD_WORD, 0, 0, _PORT_AT),
            (_AND, 0, 0, _as_loaded(0xFFFFFF00)),
            (_EQUAL, 0, 1, _as_loaded(self._first)),
            (_RETURN, 0, 0, 0),
            (_RETURN, 0, 0, 0xFFFFFFFF),
        )
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(lines), ctypes.addressof(code)))


def _as_loaded(number: int) -> int:
    """A filter reads words as the network has them; netlink writes them as this host does."""
    return int.from_bytes(number.to_bytes(4, sys.byteorder), "big")
