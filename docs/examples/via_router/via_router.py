"""via-router: every peer's subnet by way of one router, which knows where each of them is. No encapsulation, no device.

A backend of a third party, whole. It is pure: no client, no netlink, no clock.
"""

# ruff: noqa: ARG002 - a contract has arguments that not every backend needs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netaddr import AddrFormatError, IPAddress

from flannelpy.core.backend import Local, Path
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError
from flannelpy.core.json_members import Members
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Route


class ViaRouter:
    """``{"Type": "via-router", "Router": "192.0.2.254"}``."""

    name = "via-router"
    families: tuple[Family, ...] = (4,)
    accepts: frozenset[str] | None = frozenset({"via-router"})
    wants_on_link = False

    def __init__(self, router: IPAddress) -> None:
        self.router = router

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ViaRouter:
        members = Members(options, "Backend.")  # any letter case, as in the rest of the config
        text = members.text("Router")
        if text is None:
            raise ConfigError("Backend.Router is missing: expected the router's IPv4 address")
        try:
            return cls(IPAddress(text, 4))
        except (AddrFormatError, ValueError):
            raise members.wrong("Router", "an IPv4 address") from None

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {}

    def overhead(self, underlay: Family) -> int:
        return 0

    def mtu(self, local: Local) -> int:
        return local.uplink.mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return {}

    def attrs(self, local: Local) -> LeaseAttrs:
        return LeaseAttrs(local.uplink.public_ip or NO_ADDRESS, backend_type=self.name)

    def host(self, local: Local) -> HostState:
        return HostState()

    def path(self, lease: Lease, local: Local) -> Path:
        return Path.of(Route(lease.subnet, via=self.router, dev=local.uplink.name), mtu=local.uplink.mtu)

    def datapath(self, local: Local) -> None:
        return None
