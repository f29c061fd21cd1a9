"""How is a device made, changed and given an address? The messages come from pyroute2, which knows their nested attributes.

pyroute2 is imported at the first change, not with this module: it costs 65-70 ms and 11 MB. A host whose devices are as they
should be (every restart) never pays, and a fresh one pays once. Its sockets are not used: they do not run on uvloop, and one
transport with one way to fail is enough. Observation decodes with ``struct`` (messages.py), in a tenth of the time.
"""

from __future__ import annotations

import errno
from typing import Any

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Address, Link, Vxlan
from flannelpy.kernel import messages
from flannelpy.kernel.messages import (
    ACK,
    CREATE,
    EXCL,
    FAMILY,
    IFF_UP,
    REPLACE,
    REQUEST,
    RTM_DELADDR,
    RTM_NEWADDR,
    RTM_NEWLINK,
    SCOPE_LINK,
)

Attributes = list[tuple[str, Any]]


def create(sequence: int, link: Link, parent: int) -> bytes:
    """RTM_NEWLINK that makes a vxlan or ipip device and brings it up. Raises KernelError for a kind that is not made here.

    ``parent`` is the index of a vxlan's underlay device. The MAC is part of the creation, so that systemd's MACAddressPolicy leaves
    it alone.
    """
    if link.kind == "tun":
        raise KernelError(f"{link.name} is opened by its pump, which has not made it yet", errno.ENODEV)
    if link.ipip is not None:
        return messages.create_ipip(sequence, link, link.ipip)  # is tried at every start, and not worth pyroute2's import
    if link.vxlan is None:
        raise KernelError(f"a device of type {link.kind} is not made here", errno.EOPNOTSUPP)
    attributes: Attributes = [("IFLA_IFNAME", link.name), ("IFLA_MTU", link.mtu), ("IFLA_TXQLEN", 0)]
    if link.mac:
        attributes.append(("IFLA_ADDRESS", link.mac))
    data = _vxlan(link.vxlan, parent)
    attributes.append(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", link.kind), ("IFLA_INFO_DATA", {"attrs": data})]}))
    return _link(sequence, REQUEST | ACK | CREATE | EXCL, 0, link.up, attributes)


def _vxlan(vxlan: Vxlan, parent: int) -> Attributes:
    data: Attributes = [
        ("IFLA_VXLAN_ID", vxlan.vni),
        ("IFLA_VXLAN_LINK", parent),
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


def change(sequence: int, link: Link, before: Link | None, index: int) -> bytes:
    """RTM_NEWLINK that sets MTU, MAC and up or down of a device that exists."""
    attributes: Attributes = [("IFLA_MTU", link.mtu)]
    if link.mac and (before is None or before.mac != link.mac):
        attributes.append(("IFLA_ADDRESS", link.mac))
    return _link(sequence, REQUEST | ACK, index, link.up, attributes)


def change_vxlan(sequence: int, vxlan: Vxlan, parent: int, index: int) -> bytes:
    """RTM_NEWLINK that gives a vxlan device another source address, lower device, or learning.

    The kernel demands the VNI again, and refuses a port even where it is the same.
    """
    data: Attributes = [
        ("IFLA_VXLAN_ID", vxlan.vni),
        ("IFLA_VXLAN_LINK", parent),
        ("IFLA_VXLAN_LOCAL" if vxlan.local.version == 4 else "IFLA_VXLAN_LOCAL6", str(vxlan.local)),
        ("IFLA_VXLAN_LEARNING", int(vxlan.learning)),
    ]
    attributes: Attributes = [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]})]
    return _link(sequence, REQUEST | ACK, index, None, attributes)


def _link(sequence: int, flags: int, index: int, up: bool | None, attributes: Attributes) -> bytes:
    """``up`` None: as it is."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    fields = {"index": index, "flags": IFF_UP if up else 0, "change": 0 if up is None else IFF_UP, "attrs": attributes}
    return _encode(ifinfmsg(), RTM_NEWLINK, flags, sequence, fields)


def add_address(sequence: int, item: Address, index: int) -> bytes:
    return _address(RTM_NEWADDR, REQUEST | CREATE | REPLACE, sequence, item, index)


def remove_address(sequence: int, item: Address, index: int) -> bytes:
    return _address(RTM_DELADDR, REQUEST, sequence, item, index)


def _address(kind: int, flags: int, sequence: int, item: Address, index: int) -> bytes:
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    address = item.net.ip
    local = str(address)
    attributes: Attributes = [("IFA_LOCAL", local), ("IFA_ADDRESS", local)]
    fields = {
        "family": FAMILY[address.version],
        "prefixlen": item.net.prefixlen,
        "flags": 0,
        "scope": SCOPE_LINK if address.is_link_local() else 0,
        "index": index,
        "attrs": attributes,
    }
    return _encode(ifaddrmsg(), kind, flags, sequence, fields)


def _encode(message: Any, kind: int, flags: int, sequence: int, fields: dict[str, Any]) -> bytes:
    header = {"type": kind, "flags": flags, "sequence_number": sequence, "pid": 0}
    message.setvalue({**fields, "header": header})
    message.encode()
    return bytes(message.data)
