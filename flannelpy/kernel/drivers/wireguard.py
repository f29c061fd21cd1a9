"""The driver of wireguard devices: rtnetlink makes them, up or down, and knows no more of them. ip-link(8)."""

# ruff: noqa: ARG002 - a contract has arguments that not every device needs

from __future__ import annotations

import errno
from collections.abc import Callable

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Link, Wireguard
from flannelpy.kernel.drivers.driver import Port
from flannelpy.kernel.messages import ACK, CREATE, EXCL, IFF_UP, IFINFO, REQUEST, RTM_NEWLINK, U32, attribute, message


class WireguardDriver:
    """Packed by hand: one is tried at every start, which is not worth pyroute2's import."""

    def create(self, sequence: int, link: Link, detail: Wireguard, lower: int) -> bytes:
        """Brought up without a key it listens at a port of the kernel's choice, and answers nobody, until it is given both."""
        body = (
            IFINFO.pack(0, 0, 0, IFF_UP if link.up else 0, IFF_UP)
            + attribute(3, link.name.encode() + b"\0")
            + attribute(4, U32.pack(link.mtu))
            + attribute(18, attribute(1, b"wireguard\0"))
        )
        return message(RTM_NEWLINK, REQUEST | ACK | CREATE | EXCL, sequence, body)

    def change(self, sequence: int, detail: Wireguard, lower: int, index: int) -> bytes:
        raise KernelError("a wireguard device has nothing that could be changed", errno.EOPNOTSUPP)

    def read(self, data: dict[int, bytes], name_of: Callable[[int], str]) -> Wireguard:
        return Wireguard()

    def lower(self, detail: Wireguard) -> None:
        return None

    def clash(self, detail: Wireguard, other: Wireguard) -> str:
        return ""

    def port(self, detail: Wireguard) -> Port | None:
        return None  # it is asked for with the key
