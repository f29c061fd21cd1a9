"""host-gw: each peer's subnet is routed straight to the peer, with no encapsulation.

Works where hosts share a link, because the gateway must be a neighbour. flannel-compat 9.2, ip-route(8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flannelpy.core.backend import Local, Path
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError, MalformedError
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Route


class HostGw:
    """One route a peer and family; no device of its own."""

    name = "host-gw"
    families: tuple[Family, ...] = (4, 6)
    accepts: frozenset[str] | None = frozenset({"host-gw"})
    wants_on_link = False
    enclosed = True
    needs_link, needs_answer = True, False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> HostGw:
        return cls()

    def beside(self) -> HostGw:
        return self

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {}

    def overhead(self, underlay: Family) -> int:
        return 0

    def mtu(self, local: Local) -> int:
        return local.uplink.mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return {}

    def attrs(self, local: Local) -> LeaseAttrs:
        uplink = local.uplink
        for public, own in ((uplink.public_ip, uplink.address), (uplink.public_ipv6, uplink.address6)):
            if public != own:
                raise ConfigError(
                    f"host-gw cannot work behind NAT: peers route to {public}, but {uplink.name} has {own}; use vxlan"
                )
        v6 = uplink.public_ipv6 if local.config.v6 else None
        return LeaseAttrs(uplink.public_ip or NO_ADDRESS, v6, backend_type=self.name)

    def host(self, local: Local) -> HostState:
        return HostState()

    def path(self, lease: Lease, local: Local) -> Path:
        routes = []
        if local.config.v4 and lease.subnet.prefixlen:
            routes.append(Route(lease.subnet, via=lease.public_ip, dev=local.uplink.name))
        if local.config.v6 and lease.subnet6:
            if lease.attrs.public_ipv6 is None:
                raise MalformedError(f"PublicIPv6 is missing: expected the gateway to {lease.subnet6}")
            routes.append(Route(lease.subnet6, via=lease.attrs.public_ipv6, dev=local.uplink.name))
        return Path.of(*routes, mtu=local.uplink.mtu)

    def datapath(self, local: Local) -> None:
        return None
