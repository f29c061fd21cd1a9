"""The driver of vxlan devices. Sources: ip-link(8), linux/if_link.h (IFLA_VXLAN_*)."""

from __future__ import annotations

from collections.abc import Callable

from netaddr import IPAddress

from flannelpy.core.objects import Link, Vxlan
from flannelpy.kernel.drivers.driver import Port
from flannelpy.kernel.drivers.library import Attributes, new_link
from flannelpy.kernel.messages import ACK, CREATE, EXCL, REQUEST, u32

_STRANGE = (2, 16, 11, 12, 13, 14, 25)
"""GROUP, GROUP6, PROXY, RSC, L2MISS, L3MISS, COLLECT_METADATA: what makes a vxlan device another thing than the one we ask for."""


class VxlanDriver:
    """Encoded by pyroute2, decoded here."""

    def create(self, sequence: int, link: Link, detail: Vxlan, lower: int) -> bytes:
        attributes: Attributes = [("IFLA_IFNAME", link.name), ("IFLA_MTU", link.mtu), ("IFLA_TXQLEN", 0)]
        if link.mac:
            attributes.append(("IFLA_ADDRESS", link.mac))
        data = _data(detail, lower)
        attributes.append(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", link.kind), ("IFLA_INFO_DATA", {"attrs": data})]}))
        return new_link(sequence, REQUEST | ACK | CREATE | EXCL, 0, link.up, attributes)

    def change(self, sequence: int, detail: Vxlan, lower: int, index: int) -> bytes:
        """Another source address, lower device, or learning. The kernel demands the VNI again, and refuses a port even where it is
        the same."""
        data: Attributes = [
            ("IFLA_VXLAN_ID", detail.vni),
            ("IFLA_VXLAN_LINK", lower),
            ("IFLA_VXLAN_LOCAL" if detail.local.version == 4 else "IFLA_VXLAN_LOCAL6", str(detail.local)),
            ("IFLA_VXLAN_LEARNING", int(detail.learning)),
        ]
        attributes: Attributes = [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]})]
        return new_link(sequence, REQUEST | ACK, index, None, attributes)

    def read(self, data: dict[int, bytes], name_of: Callable[[int], str]) -> Vxlan | None:
        """None for multicast, external."""
        if any(any(data.get(number, b"")) for number in _STRANGE):
            return None
        if 17 in data and any(data[17]):
            local = IPAddress(int.from_bytes(data[17], "big"), 6)
        else:
            local = IPAddress(int.from_bytes(data.get(4, b""), "big"), 4)
        lower = u32(data.get(3))
        return Vxlan(
            vni=u32(data.get(1)),
            dev=name_of(lower) if lower else "",
            local=local,
            port=int.from_bytes(data.get(15, b""), "big"),
            learning=any(data.get(7, b"")),
            gbp=23 in data,
        )

    def lower(self, detail: Vxlan) -> str:
        return detail.dev

    def clash(self, detail: Vxlan, other: Vxlan) -> str:
        return f"VNI {detail.vni} and port {detail.port}" if other.fixed == detail.fixed else ""

    def port(self, detail: Vxlan) -> Port:
        return Port(detail.local.version, detail.port)


def _data(vxlan: Vxlan, lower: int) -> Attributes:
    data: Attributes = [
        ("IFLA_VXLAN_ID", vxlan.vni),
        ("IFLA_VXLAN_LINK", lower),
        ("IFLA_VXLAN_LOCAL" if vxlan.local.version == 4 else "IFLA_VXLAN_LOCAL6", str(vxlan.local)),
        ("IFLA_VXLAN_TTL", 0),
        ("IFLA_VXLAN_TOS", 0),
        ("IFLA_VXLAN_LEARNING", int(vxlan.learning)),
        *((f"IFLA_VXLAN_{name}", 0) for name in ("PROXY", "RSC", "L2MISS", "L3MISS", "UDP_ZERO_CSUM6_TX", "UDP_ZERO_CSUM6_RX")),
    ]
    if vxlan.gbp:
        data.append(("IFLA_VXLAN_GBP", True))
    data.append(("IFLA_VXLAN_PORT", vxlan.port))
    return data
