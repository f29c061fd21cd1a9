"""What may pass? The guard's rules once more, from the wire format alone: nothing of the code under test is imported here.

A datagram is one IPv4 packet. It passes where its sender is a peer, its source lies in that peer's subnet, its destination in ours,
its length is what its header says and fits the MTU, and its TTL outlives a hop. It leaves as it came, one hop older (RFC 1624).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Judge:
    """One host's view: its own subnet and its peers' by their addresses, each subnet as (first, last) address."""

    own: tuple[int, int]
    peers: Mapping[str, tuple[int, int]]
    mtu: int

    def passed(self, datagram: bytes, sender: str) -> bytes | None:
        """What must reach the device for it; None: nothing may."""
        if not 20 <= len(datagram) <= self.mtu or datagram[0] >> 4 != 4:
            return None
        header = (datagram[0] & 15) * 4
        if not 20 <= header <= len(datagram) or datagram[2] << 8 | datagram[3] != len(datagram):
            return None
        first, last = self.peers.get(sender, (1, 0))
        src, dst = int.from_bytes(datagram[12:16], "big"), int.from_bytes(datagram[16:20], "big")
        if not (first <= src <= last and self.own[0] <= dst <= self.own[1]):
            return None
        return older(datagram) if datagram[8] > 1 else None


def older(packet: bytes) -> bytes:
    """The packet after one hop: TTL and header checksum, which stays wrong where it was wrong (RFC 1624, equation 3)."""
    total = (0xFFFF ^ (packet[10] << 8 | packet[11])) + (0xFFFF ^ (packet[8] << 8)) + (packet[8] - 1 << 8)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:8] + bytes((packet[8] - 1, packet[9])) + (0xFFFF ^ total).to_bytes(2, "big") + packet[12:]
