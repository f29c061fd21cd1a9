"""alloc: a lease and nothing else; somebody else carries the packets. flannel-compat 9.7."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flannelpy.core.backend import Local, Path
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import HostState


class Alloc:
    """Publishes the address, without BackendType, as flannel does; leaves the kernel alone."""

    name = "alloc"
    families: tuple[Family, ...] = (4,)
    lease_only: Mapping[Family, str] = MappingProxyType({6: ""})  # nor does it carry anything else
    accepts: frozenset[str] | None = None
    wants_on_link = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Alloc:
        return cls()

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {}

    def overhead(self, underlay: Family) -> int:
        return 0

    def mtu(self, local: Local) -> int:
        return local.uplink.mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return {}

    def attrs(self, local: Local) -> LeaseAttrs:
        return LeaseAttrs(public_ip=local.uplink.public_ip or NO_ADDRESS)

    def host(self, local: Local) -> HostState:
        return HostState()

    def path(self, lease: Lease, local: Local) -> Path:
        return Path()

    def datapath(self, local: Local) -> None:
        return None
