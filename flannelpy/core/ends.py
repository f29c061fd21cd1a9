"""Between which addresses does a packet go from this host to a peer? One end a family: the subnet, and where its host is.

What a backend of both families publishes and programs is the same for each; this says for which of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Local
from flannelpy.core.errors import MalformedError
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs


class End(NamedTuple):
    """``outer``: the host's address of this family, between the hosts. ``data``: what its lease says for this family's backend."""

    version: Family
    subnet: IPNetwork
    outer: IPAddress
    data: Any = None

    @property
    def base(self) -> IPAddress:
        """The subnet's first address, which no container has."""
        return IPAddress(self.subnet.first, self.version)

    @property
    def base_net(self) -> IPNetwork:
        """That as a network of one address."""
        return IPNetwork((self.subnet.first, 32 if self.version == 4 else 128), version=self.version)


def own_ends(local: Local) -> Iterator[End]:
    """Ours, of the families that are on and that the interface has an address of: also behind NAT ``outer`` is that."""
    own, config, uplink = local.own, local.config, local.uplink
    if config.v4 and uplink.address:
        yield End(4, own.subnet, uplink.address)
    if config.v6 and uplink.address6 and own.subnet6:
        yield End(6, own.subnet6, uplink.address6)


def ends(lease: Lease, local: Local) -> Iterator[End]:
    """A peer's, of the families that both have. Raises MalformedError where one has no address."""
    attrs, config = lease.attrs, local.config
    if config.v4 and lease.subnet.prefixlen:
        yield End(4, lease.subnet, lease.public_ip, attrs.backend_data)
    if config.v6 and lease.subnet6:
        if attrs.public_ipv6 is None:
            raise MalformedError(f"PublicIPv6 is missing: expected where to send {lease.subnet6}")
        yield End(6, lease.subnet6, attrs.public_ipv6, attrs.backend_v6_data)


def attrs_of(local: Local, name: str, data: object = None, data6: object = None) -> LeaseAttrs:
    """What our lease publishes: the addresses that peers send to, and what the backend ``name`` says for each family that is on."""
    config, uplink = local.config, local.uplink
    return LeaseAttrs(
        public_ip=uplink.public_ip or NO_ADDRESS,
        public_ipv6=uplink.public_ipv6 if config.v6 else None,
        backend_type=name,
        backend_data=data if config.v4 else None,
        backend_v6_data=data6 if config.v6 else None,
    )
