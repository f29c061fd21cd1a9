"""via-router: every peer's subnet by way of one router, which knows where each of them is. No encapsulation, no device.

A backend of a third party, whole. It is pure: no client, no netlink, no clock.
"""

from __future__ import annotations

from netaddr import AddrFormatError, IPAddress

from flannelpy.core.backend import Local, Path
from flannelpy.core.backend_options import Given, Option
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.objects import Route
from flannelpy.core.usual import completed


def address(text: str) -> IPAddress:
    """Raises ValueError."""
    try:
        return IPAddress(text, 4)
    except AddrFormatError:
        raise ValueError("an IPv4 address") from None


@completed
class ViaRouter:
    """``{"Type": "via-router", "Router": "192.0.2.254"}``."""

    name, families = "via-router", (4,)
    options = (Option("Router", None, "the router's IPv4 address", parse=address),)

    def __init__(self, given: Given) -> None:
        self.router = given["Router"]
        if self.router is None:
            raise ConfigError("Backend.Router is missing: expected the router's IPv4 address")

    def attrs(self, local: Local) -> LeaseAttrs:
        return LeaseAttrs(local.uplink.public_ip or NO_ADDRESS, backend_type=self.name)

    def path(self, lease: Lease, local: Local) -> Path:
        return Path.of(Route(lease.subnet, via=self.router, dev=local.uplink.name), mtu=local.uplink.mtu)
