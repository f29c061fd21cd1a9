"""alloc: a lease and nothing else; somebody else carries the packets. flannel-compat 9.7."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flannelpy.core.backend import Local, Path
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.plain import Plain


class Alloc(Plain):
    """Publishes the address, without BackendType, as flannel does; leaves the kernel alone."""

    name = "alloc"
    families: tuple[Family, ...] = (4,)
    lease_only: Mapping[Family, str] = MappingProxyType({6: ""})  # nor does it carry anything else
    accepts: frozenset[str] | None = None

    def attrs(self, local: Local) -> LeaseAttrs:
        return LeaseAttrs(public_ip=local.uplink.public_ip or NO_ADDRESS)

    def path(self, lease: Lease, local: Local) -> Path:
        return Path()
