"""What does the kernel hold where it carries udp's packets itself?

Linux decapsulates flannel's datagrams at a FOU port (ip-fou(8)) and an ipip device with FOU encapsulation sends them; with both no
code of ours is in the path. The peers cannot tell: the wire format is one raw IPv4 packet per datagram either way, from and to the
cluster's port. What the kernel holds then is pure desired state, as with any other backend.

The outer checksum is asked for. Without one nothing gathers the datagrams of a stream for a socket (udp_gro_receive_segment in
net/ipv4/udp_offload.c), and a peer in user space takes them one by one. It costs the sender next to nothing: where the inner
checksum is left to the card or to segmentation, the outer one follows from the headers (local checksum offload,
Documentation/networking/checksum-offloads.rst).
"""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Local
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import NO_ADDRESS, Lease
from flannelpy.core.objects import Address, Fou, HostState, Ipip, Link, Route

TRIAL_DEVICE = "flannelpy-try"
TRIAL_LOCAL = IPAddress("127.255.255.254")
"""An outer source that no other tunnel of the host has: the kernel refuses a second device with the same two ends."""


def rehearsal(port: int) -> HostState:
    """What the kernel must be able to make to be the engine."""
    return HostState.of(Fou(port), Link(TRIAL_DEVICE, "ipip", 1472, up=False, detail=Ipip(TRIAL_LOCAL, port, checksum=True)))


def host(local: Local, device: str, mtu: int, port: int) -> HostState:
    """Port, device and address; and an unreachable: what goes to a subnet that nobody has is not the default route's."""
    if local.uplink.address is None:
        raise ConfigError(f"interface {local.uplink.name} has no IPv4 address: expected one, for udp")
    return HostState.of(
        Fou(port),
        Link(device, "ipip", mtu, detail=Ipip(local.uplink.address, port, checksum=True)),
        Address(IPNetwork((local.own.subnet.first, 32), version=4), device),
        *(Route(network, kind="unreachable") for network in local.config.networks if network.version == 4),
    )


def routes(lease: Lease, device: str) -> HostState:
    """The peer's subnet by way of its PublicIP, which becomes the outer destination; no neighbour entry, the device has none."""
    if lease.public_ip == NO_ADDRESS or lease.subnet.prefixlen == 0:
        return HostState()  # an IPv6-only node
    return HostState.of(Route(lease.subnet, via=lease.public_ip, dev=device, onlink=True))
