"""At which UDP ports does the kernel decapsulate, and how is it told? FOU ports, over the generic netlink family ``fou``.

The kernel does not tell of changes here: what another hand did is found by an observation. Sources: linux/fou.h, ip-fou(8).
"""

from __future__ import annotations

import errno
from functools import partial

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Fou
from flannelpy.kernel.channel import error
from flannelpy.kernel.genl import GENL, Family
from flannelpy.kernel.messages import ACK, AF_INET, DUMP, REQUEST, attribute, attributes, message
from flannelpy.kernel.modules import Modules

FOU_CMD_ADD, FOU_CMD_DEL, FOU_CMD_GET = 1, 2, 3
FOU_ATTR_PORT, FOU_ATTR_AF, FOU_ATTR_IPPROTO, FOU_ATTR_TYPE = 1, 2, 3, 4
FOU_ENCAP_DIRECT = 1


def add(sequence: int, family: int, item: Fou) -> bytes:
    """``ip fou add port PORT ipproto N``, at every IPv4 address of the host."""
    return message(family, REQUEST | ACK, sequence, GENL.pack(FOU_CMD_ADD, 1) + _place(item.port) + _content(item))


def remove(sequence: int, family: int, port: int) -> bytes:
    """``ip fou del port PORT``."""
    return message(family, REQUEST | ACK, sequence, GENL.pack(FOU_CMD_DEL, 1) + _place(port))


def dump(sequence: int, family: int) -> bytes:
    """``ip fou show``."""
    return message(family, REQUEST | DUMP, sequence, GENL.pack(FOU_CMD_GET, 1))


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
        self._family = Family("fou")

    def close(self) -> None:
        self._family.close()

    def observe(self, ports: frozenset[int]) -> list[Fou]:
        """Those of ``ports`` that are there; none where the kernel has no fou."""
        if not ports or (number := self._family.find()) is None:
            return []
        channel = self._family.channel
        found = []
        for data, heads in channel.dump(dump(channel.reserve(1), number)):
            found += [read(data, head.body, head.end) for head in heads]
        return [item for item in found if item is not None and item.port in ports]

    async def add(self, item: Fou) -> None:
        """Raises KernelError; loads the module where that is what is missing, and permitted."""
        if (number := self._family.find()) is None:
            await self._modules.load("fou")
            if (number := self._family.find()) is None:
                raise KernelError("this kernel has no fou: load the module fou", errno.EOPNOTSUPP)
        self._family.ask(partial(add, family=number, item=item))

    def remove(self, port: int) -> None:
        """Raises KernelError; ENOENT where there is none."""
        if (number := self._family.find()) is None:
            raise error((errno.ENOENT, ""))
        try:
            self._family.ask(partial(remove, family=number, port=port))
        except KernelError as reason:
            raise error((errno.ENOENT, "")) if reason.code == errno.EINVAL else reason from None  # so fou says that it has none
