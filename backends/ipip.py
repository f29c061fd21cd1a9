"""ipip: each packet in one more IPv4 header. flannel-compat 9.3, RFC 2003, ip-link(8).

One device for all peers: the route's gateway is a peer's PublicIP, and becomes the outer destination. No port, no neighbour entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from netaddr import IPNetwork

from flannelpy.core.backend import GuardedPort, Local, Path, SourceRule
from flannelpy.core.backend_options import read
from flannelpy.core.config import NetworkConfig
from flannelpy.core.entrances import Entrance
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import Address, HostState, Ipip, Link, Route
from flannelpy.core.shared_options import DIRECT_ROUTING, GUARD, direct_route, guarded, source_rule
from flannelpy.core.usual import completed

DEVICE = "flannel.ipip"

OVERHEAD = 20
"""Bytes of the outer header."""

SMALLEST_MTU = 68
"""What every IPv4 link must carry (RFC 791)."""

PROTOCOL = 4
"""IPv4 in IPv4, in the outer header's protocol field."""


@completed
class IpipBackend:
    """The device ``flannel.ipip``."""

    name = "ipip"
    families: tuple[Family, ...] = (4,)
    lease_only: Mapping[Family, str] = MappingProxyType({6: "ipip carries IPv4 only: its IPv6 subnets are no more than leased"})
    options = (DIRECT_ROUTING, GUARD)

    def __init__(self, direct_routing: bool = False, guard: SourceRule | None = "default") -> None:
        self.wants_on_link = direct_routing
        self.enclosed = not direct_routing  # else also by whichever device reaches a peer
        self.guarded = guarded(GuardedPort("ipip", PROTOCOL, inner=0, datagram=False), guard)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> IpipBackend:
        given = read(cls.options, options)
        return cls(given["DirectRouting"], source_rule(given))

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {DEVICE: False}

    def entrances(self, config: NetworkConfig) -> tuple[Entrance, ...]:
        return (Entrance(PROTOCOL, device=DEVICE),)

    def overhead(self, underlay: Family) -> int:
        return OVERHEAD

    def mtu(self, local: Local) -> int:
        uplink = local.uplink
        if uplink.mtu < SMALLEST_MTU + OVERHEAD:
            least = SMALLEST_MTU + OVERHEAD
            raise ConfigError(f"interface {uplink.name}: MTU {uplink.mtu} is too small for ipip, expected {least} or more")
        return uplink.mtu - OVERHEAD

    def attrs(self, local: Local) -> LeaseAttrs:
        if local.uplink.public_ip is None:
            raise ConfigError(f"interface {local.uplink.name} has no IPv4 address: expected one, for ipip")
        return LeaseAttrs(local.uplink.public_ip, backend_type=self.name)

    def host(self, local: Local) -> HostState:
        """Device and address. The device's ``local`` is the interface's own address also where another one is advertised."""
        if local.uplink.address is None:
            raise ConfigError(f"interface {local.uplink.name} has no IPv4 address: expected one, for ipip")
        return HostState.of(
            Link(DEVICE, "ipip", self.mtu(local), detail=Ipip(local.uplink.address, ttl=0)),
            Address(IPNetwork((local.own.subnet.first, 32), version=4), DEVICE),
        )

    def path(self, lease: Lease, local: Local) -> Path:
        if lease.public_ip == NO_ADDRESS or not lease.subnet.prefixlen:
            return Path()  # an IPv6-only node
        direct = direct_route(lease.subnet, lease.public_ip, local) if self.wants_on_link else None
        if direct:
            return Path.of(direct, mtu=local.uplink.mtu)
        return Path.of(Route(lease.subnet, via=lease.public_ip, dev=DEVICE, onlink=True), mtu=self.mtu(local))
