"""At which UDP ports does the kernel decapsulate, and how is it told? FOU ports, over the generic netlink family ``fou``.

The kernel does not tell of changes here: what another hand did is found by an observation. Like rtnetlink, generic netlink works
in the sender's context (channel.py). Sources: linux/fou.h, linux/genetlink.h, ip-fou(8).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Fou
from flannelpy.kernel.channel import Channel, error
from flannelpy.kernel.messages import ACK, AF_INET, DUMP, REQUEST, attribute, attributes, message
from flannelpy.kernel.modules import Modules

NETLINK_GENERIC = 16
GENL_ID_CTRL = 0x10
CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 3, 1, 2

FOU_CMD_ADD, FOU_CMD_DEL, FOU_CMD_GET = 1, 2, 3
FOU_ATTR_PORT, FOU_ATTR_AF, FOU_ATTR_IPPROTO, FOU_ATTR_TYPE = 1, 2, 3, 4
FOU_ENCAP_DIRECT = 1

_GENL = Struct("=BBxx")  # command, version
_U16 = Struct("=H")


def get_family(sequence: int) -> bytes:
    """What is the number of the family ``fou``? It is given out when the module is loaded."""
    body = _GENL.pack(CTRL_CMD_GETFAMILY, 1) + attribute(CTRL_ATTR_FAMILY_NAME, b"fou\0")
    return message(GENL_ID_CTRL, REQUEST, sequence, body)


def add(sequence: int, family: int, item: Fou) -> bytes:
    """``ip fou add port PORT ipproto N``, at every IPv4 address of the host."""
    return message(family, REQUEST | ACK, sequence, _GENL.pack(FOU_CMD_ADD, 1) + _place(item.port) + _content(item))


def remove(sequence: int, family: int, port: int) -> bytes:
    """``ip fou del port PORT``."""
    return message(family, REQUEST | ACK, sequence, _GENL.pack(FOU_CMD_DEL, 1) + _place(port))


def dump(sequence: int, family: int) -> bytes:
    """``ip fou show``."""
    return message(family, REQUEST | DUMP, sequence, _GENL.pack(FOU_CMD_GET, 1))


def _place(port: int) -> bytes:
    return attribute(FOU_ATTR_PORT, port.to_bytes(2, "big")) + attribute(FOU_ATTR_AF, bytes([AF_INET]))


def _content(item: Fou) -> bytes:
    return attribute(FOU_ATTR_TYPE, bytes([FOU_ENCAP_DIRECT])) + attribute(FOU_ATTR_IPPROTO, bytes([item.ipproto]))


def read(data: bytes, body: int, end: int) -> Fou | None:
    """A port as the kernel tells it; None for one of IPv6. A GUE port has no protocol of its own: 0."""
    found = attributes(data, body + 4, end)
    if found.get(FOU_ATTR_AF, b"\2")[:1] != bytes([AF_INET]):
        return None
    direct = found.get(FOU_ATTR_TYPE, b"\1")[:1] == bytes([FOU_ENCAP_DIRECT])
    return Fou(int.from_bytes(found.get(FOU_ATTR_PORT, b""), "big"), found.get(FOU_ATTR_IPPROTO, b"\0")[0] if direct else 0)


class FouPorts:
    """The FOU ports of the namespace where it is first used."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._channel: Channel | None = None
        self._family = 0

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel, self._family = None, 0

    def observe(self, ports: frozenset[int]) -> list[Fou]:
        """Those of ``ports`` that are there; none where the kernel has no fou."""
        if not ports or not self._find_family():
            return []
        channel = self._open()
        found = []
        for data, heads in channel.dump(dump(channel.reserve(1), self._family)):
            found += [read(data, head.body, head.end) for head in heads]
        return [item for item in found if item is not None and item.port in ports]

    async def add(self, item: Fou) -> None:
        """Raises KernelError; loads the module where that is what is missing, and permitted."""
        if not self._find_family():
            await self._modules.load("fou")
            if not self._find_family():
                raise KernelError("this kernel has no fou: load the module fou", errno.EOPNOTSUPP)
        self._ask(lambda sequence: add(sequence, self._family, item))

    def remove(self, port: int) -> None:
        """Raises KernelError; ENOENT where there is none."""
        if not self._find_family():
            raise error((errno.ENOENT, ""))
        try:
            self._ask(lambda sequence: remove(sequence, self._family, port))
        except KernelError as reason:
            raise error((errno.ENOENT, "")) if reason.code == errno.EINVAL else reason from None  # so fou says that it has none

    def _find_family(self) -> bool:
        """True where the kernel has fou; asked each time, because a module that is loaded again has another number."""
        channel = self._open()
        try:
            data, head = channel.get(get_family(channel.reserve(1)))
        except KernelError as reason:
            if reason.code not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise
            self._family = 0
            return False
        self._family = _U16.unpack(attributes(data, head.body + 4, head.end)[CTRL_ATTR_FAMILY_ID])[0]
        return True

    def _ask(self, request: Callable[[int], bytes]) -> None:
        channel = self._open()
        first = channel.reserve(1)
        failed = channel.transact([request(first)], first)
        if failed:
            raise error(failed[0])

    def _open(self) -> Channel:
        if self._channel is None:
            self._channel = Channel(NETLINK_GENERIC)
        return self._channel
