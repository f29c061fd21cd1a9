"""Whose is a lease, can it be kept, and who gives way where two claim the same addresses?

Source: flannel-compat 5.2 and 5.3. Beyond flannel: overlapping keys are settled in favour of the older create revision.
"""

from __future__ import annotations

from collections.abc import Iterable

from netaddr import IPNetwork

from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.pool import overlap

EVERYTHING = IPNetwork("0.0.0.0/0")
"""Stands for the IPv4 subnet in the key of a node that has none (flannel-compat, top)."""


def same_host(one: LeaseAttrs, other: LeaseAttrs) -> bool:
    """A host is known by its IPv4 address; without one, by its IPv6 address."""
    if one.public_ip != NO_ADDRESS or other.public_ip != NO_ADDRESS:
        return one.public_ip == other.public_ip
    return one.public_ipv6 is not None and one.public_ipv6 == other.public_ipv6


def is_kept(lease: Lease, kept: Lease | None) -> bool:
    """True for what our last life wrote: as it was ``kept``, or with our identity (MAC, public key) in the key that we made.

    A life that ended between the write of its new address and the keeping of it has left the latter.
    """
    if kept is None or lease.key != kept.key:
        return False
    made_then = lease.create_revision == kept.create_revision > 0 and kept.attrs.backend_data is not None
    return lease.attrs == kept.attrs or (made_then and _identity(lease.attrs) == _identity(kept.attrs))


def _identity(attrs: LeaseAttrs) -> tuple[object, ...]:
    """What a host publishes of itself beside its addresses."""
    return attrs.backend_type, attrs.backend_data, attrs.backend_v6_data


def halves(lease: Lease) -> tuple[IPNetwork, ...]:
    """The subnets that a lease takes, IPv4 first."""
    return tuple(net for net in (lease.subnet, lease.subnet6) if net is not None and net != EVERYTHING)


def overlapping(one: Lease, other: Lease) -> bool:
    """True where two leases share an address."""
    return any(overlap(a, b) for a in halves(one) for b in halves(other))


def older(one: Lease, other: Lease) -> bool:
    """True where ``one`` was created first; of two in one transaction the smaller key counts as first."""
    if one.create_revision == other.create_revision:
        return one.key < other.key
    return one.create_revision < other.create_revision


def possible(lease: Lease, config: NetworkConfig) -> bool:
    """False for a key that takes nothing from anybody: none of its subnets is one that a node of this network can have.

    A family that the network lacks, or has elsewhere, says nothing of the other half: a host that has not followed a change of the
    config yet still uses it. Host bits do no harm here. What covers more than a node can have is nobody's, with both halves.
    """
    found = False
    for net, pool in ((lease.subnet, config.v4), (lease.subnet6, config.v6)):
        if net is None or net == EVERYTHING or pool is None or not overlap(net, pool.network):
            continue
        if pool.misfit(net.cidr):
            return False
        found = True
    return found


def unusable(lease: Lease, leases: Iterable[Lease], config: NetworkConfig) -> str | None:
    """Why its owner cannot keep a lease, as words for a log; None where it can. ``leases``: all that there are."""
    fits = lease.subnet == EVERYTHING if config.v4 is None else config.v4.fits(lease.subnet)
    if config.v6 is None:
        fits = fits and lease.subnet6 is None
    else:
        fits = fits and lease.subnet6 is not None and config.v6.fits(lease.subnet6)
    if not fits:
        return "it does not fit the network config"
    for other in leases:
        if overlapping(other, lease) and older(other, lease) and not same_host(other.attrs, lease.attrs):
            return f"it overlaps {other}, which is older"
    return None
