"""Whom does the loop ask, besides the kernel? The cluster for its peers, and the host for who is reached without a gateway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from netaddr import IPAddress

from flannelpy.core.model import Lease


class Peers(Protocol):
    """A reader's place in what happens to the peers (``agent.view``)."""

    current: Mapping[str, Lease]

    def take(self) -> Mapping[str, Lease | None]:
        """What changed since it was last asked; None for a peer that went."""
        ...


class Gateways(Protocol):
    """Who is reached without a gateway (``agent.facts``)."""

    async def on_link(self, addresses: Iterable[IPAddress]) -> Mapping[IPAddress, str]:
        """Those of the addresses, and by which device. Raises KernelError."""
        ...
