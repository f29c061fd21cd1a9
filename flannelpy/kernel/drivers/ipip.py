"""The driver of ipip devices. Packed by hand: one is tried at every start, which is not worth pyroute2's import.

Sources: ip-link(8), linux/if_tunnel.h (IFLA_IPTUN_*), net/ipv4/ipip.c (ipip_changelink).
"""

# ruff: noqa: ARG002 - a contract has arguments that not every device needs

from __future__ import annotations

import sys
from collections.abc import Callable

from flannelpy.core.objects import Ipip, Link
from flannelpy.kernel.drivers.driver import Port
from flannelpy.kernel.messages import (
    ACK,
    CREATE,
    EXCL,
    IFF_UP,
    IFINFO,
    REQUEST,
    RTM_NEWLINK,
    U16,
    U32,
    as_address,
    attribute,
    message,
    packed,
)

TUNNEL_ENCAP_FOU = 1
TUNNEL_ENCAP_FLAG_CSUM = 1


class IpipDriver:
    """All but the outer checksum of such a device is fixed."""

    def create(self, sequence: int, link: Link, detail: Ipip, lower: int) -> bytes:
        """As ``ip link add NAME type ipip ... [encap fou]`` sends it, and with the MTU, up or down."""
        body = (
            IFINFO.pack(0, 0, 0, IFF_UP if link.up else 0, IFF_UP)
            + attribute(3, link.name.encode() + b"\0")
            + attribute(4, U32.pack(link.mtu))
            + attribute(18, _info(detail))
        )
        return message(RTM_NEWLINK, REQUEST | ACK | CREATE | EXCL, sequence, body)

    def change(self, sequence: int, detail: Ipip, lower: int, index: int) -> bytes:
        """Another outer checksum. The kernel takes what is left out for zero, so all of it is sent again."""
        return message(RTM_NEWLINK, REQUEST | ACK, sequence, IFINFO.pack(0, 0, index, 0, 0) + attribute(18, _info(detail)))

    def read(self, data: dict[int, bytes], name_of: Callable[[int], str]) -> Ipip | None:
        local, remote, ttl, tos, discovery, encap = (data.get(number, b"") for number in (2, 3, 4, 5, 10, 15))
        strange = any(any(data.get(number, b"")) for number in (1, 20)) or 19 in data  # LINK, FWMARK, COLLECT_METADATA
        if strange or len(local) != 4 or any(remote) or any(tos) or not ttl or any(discovery) != any(ttl):
            return None
        if not any(encap):  # IFLA_IPTUN_PROTO says what else it lets in (MPLS), which nobody minds: flannel's is "any", others 4
            return Ipip(as_address(local), 0, ttl[0])
        flags = int.from_bytes(data.get(16, b""), sys.byteorder)
        if encap != U16.pack(TUNNEL_ENCAP_FOU) or flags & ~TUNNEL_ENCAP_FLAG_CSUM:  # the other flags: of IPv6, of the remote kind
            return None
        sport, dport = (int.from_bytes(data.get(number, b""), "big") for number in (17, 18))
        return Ipip(as_address(local), dport, ttl[0], bool(flags)) if sport == dport and dport else None

    def lower(self, detail: Ipip) -> None:
        return None

    def clash(self, detail: Ipip, other: Ipip) -> str:
        return "local address" if other.local == detail.local else ""

    def port(self, detail: Ipip) -> Port | None:
        return None  # the port is the FOU socket's


def _info(detail: Ipip) -> bytes:
    """IFLA_INFO_KIND and _DATA. The kernel refuses a fixed ttl without path MTU discovery (IFLA_IPTUN_PMTUDISC)."""
    ends = attribute(2, packed(detail.local)) + attribute(3, bytes(4))  # IFLA_IPTUN_LOCAL, _REMOTE: any
    discovery = b"\1" if detail.ttl else b"\0"
    fixed = attribute(4, bytes([detail.ttl])) + attribute(5, b"\0") + attribute(10, discovery)  # _TTL, _TOS, _PMTUDISC
    encap = _encap(detail) if detail.port else b""
    return attribute(1, b"ipip\0") + attribute(2, ends + fixed + encap)


def _encap(detail: Ipip) -> bytes:
    """IFLA_IPTUN_ENCAP_TYPE, _FLAGS, _SPORT, _DPORT."""
    flags, port = TUNNEL_ENCAP_FLAG_CSUM if detail.checksum else 0, detail.port.to_bytes(2, "big")
    return attribute(15, U16.pack(TUNNEL_ENCAP_FOU)) + attribute(16, U16.pack(flags)) + attribute(17, port) + attribute(18, port)
