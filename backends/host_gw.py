"""host-gw: each peer's subnet is routed straight to the peer, with no encapsulation.

Works where hosts share a link, because the gateway must be a neighbour. flannel-compat 9.2, ip-route(8).
"""

from flannelpy.core.backend import Local, Path
from flannelpy.core.ends import attrs_of, ends
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import Route
from flannelpy.core.usual import completed


@completed
class HostGw:
    """One route a peer and family; no device of its own."""

    name, families = "host-gw", (4, 6)
    enclosed, needs_link, needs_answer = True, True, False

    def attrs(self, local: Local) -> LeaseAttrs:
        uplink = local.uplink
        for public, own in ((uplink.public_ip, uplink.address), (uplink.public_ipv6, uplink.address6)):
            if public != own:
                why = f"peers route to {public}, but {uplink.name} has {own}; use vxlan"
                raise ConfigError(f"host-gw cannot work behind NAT: {why}")
        return attrs_of(local, self.name)

    def path(self, lease: Lease, local: Local) -> Path:
        dev, mtu = local.uplink.name, local.uplink.mtu
        return Path.of(*(Route(end.subnet, via=end.outer, dev=dev) for end in ends(lease, local)), mtu=mtu)

    def beside(self) -> "HostGw":
        return self
