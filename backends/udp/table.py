"""What must a worker's peer table hold? The usable peers, of which no two share an address (``flannelpy.core.membership``)."""

from __future__ import annotations

from collections.abc import Mapping

from backends.udp.protocol import DELETE, SET, Block, Order
from flannelpy.core.model import NO_ADDRESS, Lease


class Table:
    """Where each block of addresses is, and which lease says so."""

    def __init__(self) -> None:
        self._blocks: dict[str, Block] = {}  # by lease key
        self._hosts: dict[Block, int] = {}

    def __len__(self) -> int:
        return len(self._hosts)

    def orders(self) -> list[Order]:
        """All of it."""
        return [Order(SET, *block, host) for block, host in self._hosts.items()]

    def change(self, peers: Mapping[str, Lease | None]) -> list[Order]:
        """Peers by lease key that came, changed, or (None) went; what a peer table must do for it, deletions first."""
        before = {block: self._hosts.pop(block) for key in peers if (block := self._blocks.pop(key, None)) is not None}
        after: dict[Block, int] = {}
        for key, lease in peers.items():
            if lease is not None and lease.public_ip != NO_ADDRESS and lease.subnet.prefixlen:  # not an IPv6-only node's
                block = self._blocks[key] = lease.subnet.first, lease.subnet.prefixlen
                after[block] = int(lease.public_ip)
        self._hosts |= after
        gone = [Order(DELETE, *block) for block in before if block not in after]
        return gone + [Order(SET, *block, host) for block, host in after.items() if before.get(block) != host]
