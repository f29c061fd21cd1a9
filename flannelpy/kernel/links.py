"""How is a device made, changed and given an address? The messages come from pyroute2, which knows their nested attributes.

pyroute2 is imported at the first change, not with this module: it costs 65-70 ms and 11 MB. A host whose devices are as they
should be (every restart) never pays, and a fresh one pays once. Its sockets are not used: they do not run on uvloop, and one
transport with one way to fail is enough. Observation decodes with ``struct`` (messages.py), in a tenth of the time.
"""

from __future__ import annotations

import errno

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Address, Link
from flannelpy.kernel.drivers import driver_of
from flannelpy.kernel.drivers.library import Attributes, encode, new_link
from flannelpy.kernel.messages import ACK, CREATE, FAMILY, REPLACE, REQUEST, RTM_DELADDR, RTM_NEWADDR, SCOPE_LINK


def create(sequence: int, link: Link, lower: int) -> bytes:
    """RTM_NEWLINK that makes a device and brings it up. Raises KernelError for a kind that is not made here.

    ``lower`` is the index of its lower device, 0 for none. The MAC is part of the creation, so that systemd's MACAddressPolicy
    leaves it alone.
    """
    if link.kind == "tun":
        raise KernelError(f"{link.name} is opened by its pump, which has not made it yet", errno.ENODEV)
    if link.detail is None:
        raise KernelError(f"a device of type {link.kind} is not made here", errno.EOPNOTSUPP)
    return driver_of(link.detail).create(sequence, link, link.detail, lower)


def change(sequence: int, link: Link, before: Link | None, index: int) -> bytes:
    """RTM_NEWLINK that sets MTU, MAC and up or down of a device that exists."""
    attributes: Attributes = [("IFLA_MTU", link.mtu)]
    if link.mac and (before is None or before.mac != link.mac):
        attributes.append(("IFLA_ADDRESS", link.mac))
    return new_link(sequence, REQUEST | ACK, index, link.up, attributes)


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
    return encode(ifaddrmsg(), kind, flags, sequence, fields)
