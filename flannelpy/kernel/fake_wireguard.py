"""What would the kernel's WireGuard do? Public keys of private ones, and addresses that only one peer of a device has."""

from __future__ import annotations

import errno
from collections.abc import Container, MutableMapping
from dataclasses import replace

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Key, Object, WireguardDevice, WireguardPeer
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import clamped, key_text

PRIME = 2**255 - 19


def fresh(dev: str) -> WireguardDevice:
    """What a device has that nobody has told anything."""
    return WireguardDevice(dev, 34_567, Secret(b""))


def put(objects: MutableMapping[Key, Object], item: WireguardDevice | WireguardPeer, taken_ports: Container[int]) -> None:
    """Set key and port, or a peer, without a word. Raises KernelError where somebody has the port."""
    if isinstance(item, WireguardPeer):
        _put_peer(objects, item)
        return
    if item.listen_port in taken_ports:
        raise KernelError(f"UDP port {item.listen_port}, which {item.dev} needs, is taken by another program", errno.EADDRINUSE)
    objects[item.key] = item


def _put_peer(objects: MutableMapping[Key, Object], peer: WireguardPeer) -> None:
    """Set a peer: the addresses that it may send from are no other's of the device now. Without an endpoint it keeps its own."""
    for other in [item for item in objects.values() if isinstance(item, WireguardPeer) and item.dev == peer.dev]:
        if other.key != peer.key and set(other.allowed_ips) & set(peer.allowed_ips):
            objects[other.key] = replace(other, allowed_ips=tuple(net for net in other.allowed_ips if net not in peer.allowed_ips))
    before = objects.get(peer.key)
    if peer.endpoint is None and isinstance(before, WireguardPeer):
        peer = replace(peer, endpoint=before.endpoint)
    objects[peer.key] = peer


def public_key(private: bytes) -> str:
    """X25519 of the base point (RFC 7748 section 5), for tests: it takes as long as the key says."""
    scalar = int.from_bytes(clamped(private), "little")
    x1, x2, z2, x3, z3, swapped = 9, 1, 0, 9, 1, 0
    for bit in reversed(range(255)):
        if swapped != (swapped := scalar >> bit & 1):
            x2, x3, z2, z3 = x3, x2, z3, z2
        plus, minus = (x2 + z2) ** 2, (x2 - z2) ** 2
        across, along = (x3 - z3) * (x2 + z2), (x3 + z3) * (x2 - z2)
        x3, z3 = (across + along) ** 2 % PRIME, x1 * (across - along) ** 2 % PRIME
        x2, z2 = plus * minus % PRIME, (plus - minus) * (plus + 121_665 * (plus - minus)) % PRIME
    if swapped:
        x2, z2 = x3, z3
    return key_text((x2 * pow(z2, PRIME - 2, PRIME) % PRIME).to_bytes(32, "little"))
