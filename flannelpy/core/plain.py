"""What do most backends say alike? To be inherited from; a backend may as well have all of the contract itself."""

# ruff: noqa: ARG002, ARG003 - a contract has arguments that not every backend needs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from flannelpy.core.backend import Datapath, Local
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Family, LeaseAttrs
from flannelpy.core.objects import HostState


class Plain:
    """What most backends say of these, to be inherited: no options, no device, nothing added to a packet, nothing in user space.

    What is left is what a backend is about: name, families, accepts, attrs and path.
    """

    wants_on_link = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        return cls()

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {}

    def overhead(self, underlay: Family) -> int:
        return 0

    def mtu(self, local: Local) -> int:
        return local.uplink.mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return {}

    def host(self, local: Local) -> HostState:
        return HostState()

    def datapath(self, local: Local) -> Datapath | None:
        return None
