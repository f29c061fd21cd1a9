"""What does the kernel in memory show whoever asks for a scope? What the real one's observation finds (``core.objects.Scope``)."""

from __future__ import annotations

from netaddr import IPNetwork

from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.host_facts import Interface, InterfaceAddress
from flannelpy.core.objects import (
    BOOT_PROTOCOL,
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    Fou,
    Link,
    Neighbour,
    Nexthop,
    NftElement,
    NftSet,
    NftTable,
    Object,
    Scope,
    Sysctl,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)

KERNEL_PROTOCOL = 2


def is_seen(item: Object, scope: Scope) -> bool:
    """True where an observation of ``scope`` holds ``item``."""
    match item:
        case Fou():
            return item.port in scope.fou_ports
        case Link():
            return item.name in scope.links
        case Address():
            return item.dev in scope.links and (
                not item.net.ip.is_link_local() if item.net.version == 6 else scope.covers(IPNetwork(str(item.net.ip)))
            )
        case Neighbour() | FdbEntry() | WireguardDevice() | WireguardPeer():
            return item.dev in scope.links
        case Nexthop():
            return item.dev in scope.links and item.proto == ROUTE_PROTOCOL
        case Sysctl():
            return item.name in scope.sysctls
        case ForwardAccept():
            return item.owner == scope.table
        case XfrmPolicy():
            return scope.policies and scope.covers(item.src) and scope.covers(item.dst)
        case NftTable():
            return item.name == scope.table
        case NftSet() | NftElement():
            return item.table == scope.table
    if item.metric and (item.proto, item.kind) != (ROUTE_PROTOCOL, "blackhole"):
        return False  # the kernel holds it beside ours, which has none
    if item.proto == ROUTE_PROTOCOL:
        return item.dev in scope.links or scope.covers(item.dst)
    if item.dev in scope.links:
        return item.kind == "unicast" and item.proto != KERNEL_PROTOCOL
    return (
        item.kind == "unicast" and item.proto == BOOT_PROTOCOL and item.dev == scope.uplink is not None and scope.covers(item.dst)
    )


def known_elsewhere(interface: Interface) -> tuple[InterfaceAddress, ...]:
    """The addresses that are not link-local."""
    return tuple(held for held in interface.addresses if not held.address.is_link_local())
