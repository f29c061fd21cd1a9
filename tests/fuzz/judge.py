"""What may pass? The rules of source validation once more, from the wire format alone: nothing of the code under test is imported.

A datagram is one IPv4 packet. It is let in where its sender is a peer, its destination lies in our subnet, its length is what its
header says, and its source, inside the network, lies in that peer's subnet. A source outside of the network is by default anybody's
but our own, where it is ``strict`` the peer's own address; ``peers`` looks at the sender alone, ``off`` at nothing. It leaves as it
came, one hop older (RFC 791, 1624); where its TTL does not outlive the hop, its source may be told (RFC 792), but for what RFC 1122
3.2.2 never answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Judge:
    """One host's view: its own subnet, its peers' by their addresses and the network, each as (first, last) address; its rule, and
    what other addresses it has."""

    own: tuple[int, int]
    peers: Mapping[str, tuple[int, int]]
    network: tuple[int, int]
    rule: str = "default"
    addresses: frozenset[bytes] = frozenset()

    def lets_in(self, datagram: bytes, sender: str) -> bool:
        """The guard, whatever the TTL."""
        if len(datagram) < 20 or datagram[0] >> 4 != 4:
            return False
        header = (datagram[0] & 15) * 4
        if not 20 <= header <= len(datagram) or datagram[2] << 8 | datagram[3] != len(datagram):
            return False
        if self.rule == "off":
            return True
        if sender not in self.peers:
            return False
        return self.rule == "peers" or (self._may_send(datagram[12:16], sender) and within(datagram[16:20], self.own))

    def _may_send(self, source: bytes, sender: str) -> bool:
        if within(source, self.network):
            return within(source, self.peers[sender])
        if self.rule == "strict":
            return source == bytes(int(part) for part in sender.split("."))
        return source not in self.addresses

    def passed(self, datagram: bytes, sender: str) -> bytes | None:
        """What must reach the device for it; None: nothing may."""
        return older(datagram) if self.lets_in(datagram, sender) and datagram[8] > 1 else None

    def told(self, answer: bytes, datagrams: Iterable[bytes], sender: str) -> bytes:
        """The one of these datagrams whose end ``answer`` may tell to ``sender``; AssertionError where it is of none."""
        assert len(answer) == answer[2] << 8 | answer[3]
        assert len(answer) <= 576
        assert (answer[0], answer[9], answer[20:22]) == (0x45, 1, b"\x0b\x00")
        assert self.own[0] <= int.from_bytes(answer[12:16], "big") <= self.own[1]
        assert ones(answer[:20]) == ones(answer[20:]) == 0xFFFF
        quote = answer[28:]
        for each in datagrams:
            if each.startswith(quote) and self.lets_in(each, sender) and each[8] <= 1 and each[12:16] == answer[16:20]:
                assert (each[6] << 8 | each[7]) & 0x1FFF == 0
                assert len(quote) >= min(len(each), (each[0] & 15) * 4 + 8)
                return each
        raise AssertionError(f"made up: {answer.hex()}")


def within(address: bytes, span: tuple[int, int]) -> bool:
    """Whether it lies between first and last."""
    return span[0] <= int.from_bytes(address, "big") <= span[1]


def ones(octets: bytes) -> int:
    """The one's complement sum (RFC 1071)."""
    words = octets + b"\0" * (len(octets) % 2)
    return sum(words[at] << 8 | words[at + 1] for at in range(0, len(words), 2)) % 0xFFFF or 0xFFFF


def older(packet: bytes) -> bytes:
    """The packet after one hop: TTL and header checksum, which stays wrong where it was wrong (RFC 1624, equation 3)."""
    total = (0xFFFF ^ (packet[10] << 8 | packet[11])) + (0xFFFF ^ (packet[8] << 8)) + (packet[8] - 1 << 8)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:8] + bytes((packet[8] - 1, packet[9])) + (0xFFFF ^ total).to_bytes(2, "big") + packet[12:]
