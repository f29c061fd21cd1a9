"""alloc: a lease and nothing else; somebody else carries the packets. flannel-compat 9.7."""

from types import MappingProxyType

from flannelpy.core.backend import Local
from flannelpy.core.model import NO_ADDRESS, LeaseAttrs
from flannelpy.core.usual import completed


@completed
class Alloc:
    """Publishes the address, without BackendType, as flannel does; leaves the kernel alone."""

    name, families, accepts = "alloc", (4,), None
    lease_only = MappingProxyType({6: ""})  # nor does it carry anything else

    def attrs(self, local: Local) -> LeaseAttrs:
        return LeaseAttrs(public_ip=local.uplink.public_ip or NO_ADDRESS)
