"""Which peer owns an address? Longest prefix over subnets of any size; one dict look-up where all are of one size.

One dict for each prefix length that occurs, keyed by the network's leading bits. Only the worker's loop touches it, between
turns, so no packet ever sees half a change.
"""

from __future__ import annotations

from socket import inet_ntoa

Peer = tuple[str, int]
"""Where a peer's datagrams go: its PublicIP as text and the port, as ``sendto`` wants it."""


class PeerTable:
    """Peers by subnet. ``network``/``length`` is our own subnet: a peer's that overlaps it is ignored."""

    __slots__ = ("_hosts", "_levels", "_own", "_port")

    def __init__(self, network: int, length: int, port: int) -> None:
        self._own = (network, length)
        self._port = port
        self._levels: tuple[tuple[int, dict[int, Peer]], ...] = ()
        self._hosts: dict[str, int] = {}

    def find(self, address: int) -> Peer | None:
        """The peer whose subnet holds ``address``; the most specific one where subnets nest."""
        for shift, peers in self._levels:
            peer = peers.get(address >> shift)
            if peer is not None:
                return peer
        return None

    def knows(self, host: str) -> bool:
        """True where some peer has this PublicIP."""
        return host in self._hosts

    def set(self, network: int, length: int, host: int) -> bool:
        """Add or replace the peer of exactly this subnet; False where it overlaps our own and was ignored."""
        shift = 32 - length
        own_network, own_length = self._own
        wider = 32 - min(length, own_length)
        if network >> wider == own_network >> wider:
            return False
        self.delete(network, length)
        peers = dict(self._levels).get(shift)
        if peers is None:
            peers = {}
            self._levels = tuple(sorted((*self._levels, (shift, peers)), key=lambda level: level[0]))
        name = inet_ntoa(host.to_bytes(4, "big"))
        peers[network >> shift] = (name, self._port)
        self._hosts[name] = self._hosts.get(name, 0) + 1
        return True

    def delete(self, network: int, length: int) -> None:
        """Forget the peer of exactly this subnet, if there is one."""
        shift = 32 - length
        peers = dict(self._levels).get(shift, {})
        peer = peers.pop(network >> shift, None)
        if peer is None:
            return
        self._hosts[peer[0]] -= 1
        if not self._hosts[peer[0]]:
            del self._hosts[peer[0]]
        if not peers:
            self._levels = tuple(level for level in self._levels if level[0] != shift)

    def __len__(self) -> int:
        return sum(len(peers) for _, peers in self._levels)
