"""ipsec: what a lease publishes, and which packets the kernel puts into which tunnel. flannel-compat 9.8, ip-xfrm(8).

There is no device. A peer's three policies say that packets between our subnet and its subnet are in ESP between the two hosts.
Until there are keys for it the kernel drops them, and what comes in the open as if from a peer it drops always: no guard is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from backends.ipsec.datapath import CharonDatapath
from backends.ipsec.terms import Terms
from flannelpy.core.backend import Local, Path
from flannelpy.core.backend_options import Given, Option
from flannelpy.core.config import NetworkConfig
from flannelpy.core.entrances import ESP, Entrance
from flannelpy.core.errors import ConfigError
from flannelpy.core.filter_match import UDP
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import Route, XfrmPolicy
from flannelpy.core.secret import Secret
from flannelpy.core.shared_options import mtu_within
from flannelpy.core.usual import completed

LEAST_PSK = 96
"""Bytes of a preshared key, as in flannel."""

PROPOSAL = "aes128gcm16-sha256-prfsha256-ecp256"

IKE_PORT, IKE_NAT_PORT = 500, 4500
"""Where peers agree on keys; ESP goes by the second, too, where NAT is between two hosts (RFC 7296 section 2.23)."""

OVERHEAD, OVERHEAD_IN_UDP = 77, 85
"""Bytes around a packet that flannel takes off the MTU; with the proposal above they are 57 at the most, and 8 more in UDP."""


def preshared_key(text: str) -> Secret[str]:
    """Raises ValueError, without the text."""
    if len(text.encode()) < LEAST_PSK:
        raise ValueError(f"{LEAST_PSK} characters or more (openssl rand -hex 48), the same on all hosts")
    return Secret(text)


def proposal(text: str) -> str:
    """Raises ValueError."""
    if not re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*", text):
        raise ValueError(f"one proposal of strongSwan, such as {PROPOSAL}")
    return text


@completed
class Ipsec:
    """Policies here, keys by the IKE daemon of ``CharonDatapath``."""

    name = "ipsec"
    families: tuple[Family, ...] = (4,)
    lease_only: Mapping[Family, str] = MappingProxyType({6: "ipsec carries IPv4 only: its IPv6 subnets are no more than leased"})
    uses_xfrm = True
    options = (
        Option(
            "PSK",
            None,
            f"the preshared key, {LEAST_PSK} characters or more; required, the same on all hosts, and never shown",
            parse=preshared_key,
            secret=True,
        ),
        Option("UDPEncap", False, "ESP in UDP, port 4500, also where there is no NAT: for networks that drop IP protocol 50"),
        Option("ESPProposal", PROPOSAL, "how packets are encrypted, in strongSwan's words; the same on all hosts", parse=proposal),
    )

    def __init__(self, given: Given) -> None:
        if not given["PSK"]:
            raise ConfigError(f"Backend.PSK is missing: expected {LEAST_PSK} characters or more, the same on all hosts")
        self.terms = Terms(given["PSK"], given["UDPEncap"], given["ESPProposal"])

    def entrances(self, config: NetworkConfig) -> tuple[Entrance, ...]:
        keys = Entrance(UDP, IKE_PORT), Entrance(UDP, IKE_NAT_PORT)
        return keys if self.terms.udp_encap else (*keys, Entrance(ESP, openly=True))

    def overhead(self, underlay: Family) -> int:
        return OVERHEAD_IN_UDP if self.terms.udp_encap else OVERHEAD

    def mtu(self, local: Local) -> int:
        return mtu_within(local.uplink, 0, self.overhead(4), 4)

    def attrs(self, local: Local) -> LeaseAttrs:
        uplink = local.uplink
        if uplink.public_ip is None or uplink.address is None:
            raise ConfigError(f"interface {uplink.name} has no IPv4 address: expected one, for ipsec")
        return LeaseAttrs(uplink.public_ip, backend_type=self.name)

    def path(self, lease: Lease, local: Local) -> Path:
        """The route is there so that there is one, whatever else the host knows: policies are asked after routes.

        It names no gateway. Should the policy be missing, the host asks its link for the container's address, and sends nothing.
        """
        theirs, here, there = lease.subnet, local.uplink.address, lease.public_ip
        if there == NO_ADDRESS or not theirs.prefixlen or local.lease is None or here is None:
            return Path()  # an IPv6-only node; or nobody is here yet
        ours = local.lease.subnet
        return Path.of(
            XfrmPolicy("out", ours, theirs, here, there),
            XfrmPolicy("in", theirs, ours, there, here),
            XfrmPolicy("fwd", theirs, ours, there, here),
            Route(theirs, dev=local.uplink.name, link_scope=True),
            mtu=self.mtu(local),
        )

    def datapath(self, local: Local) -> CharonDatapath:
        return CharonDatapath(local, self.terms)
