"""How is a family of generic netlink asked? By a number that is given out when its module is loaded, and looked up by name.

Like rtnetlink, generic netlink works in the sender's context (channel.py). Sources: linux/genetlink.h.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct

from flannelpy.core.errors import KernelError
from flannelpy.kernel.channel import Channel, error
from flannelpy.kernel.messages import REQUEST, U16, attribute, attributes, message

NETLINK_GENERIC = 16
GENL_ID_CTRL = 0x10
CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 3, 1, 2

GENL = Struct("=BBxx")  # command, version


def get_family(sequence: int, name: str) -> bytes:
    """What is the number of a family?"""
    body = GENL.pack(CTRL_CMD_GETFAMILY, 1) + attribute(CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")
    return message(GENL_ID_CTRL, REQUEST, sequence, body)


class Family:
    """A family, in the namespace where it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._channel: Channel | None = None

    def close(self) -> None:
        """Give back the socket. May be called twice."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def find(self) -> int | None:
        """Its number; None where the kernel has no such family. Asked each time: a module that is loaded again has another."""
        channel = self.channel
        try:
            data, head = channel.get(get_family(channel.reserve(1), self._name))
        except KernelError as reason:
            if reason.code not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise
            return None
        number: int = U16.unpack(attributes(data, head.body + 4, head.end)[CTRL_ATTR_FAMILY_ID])[0]
        return number

    def ask(self, request: Callable[[int], bytes]) -> None:
        """One request, made for a sequence number, that answers with success or failure. Raises KernelError."""
        channel = self.channel
        first = channel.reserve(1)
        failed = channel.transact([request(first)], first)
        if failed:
            raise error(failed[0])

    @property
    def channel(self) -> Channel:
        """The socket."""
        if self._channel is None:
            self._channel = Channel(NETLINK_GENERIC)
        return self._channel
