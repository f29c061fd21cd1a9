"""What is put around a packet on its way to another host? By the device that carries it: protocol, port, and the bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netaddr import IPAddress

from flannelpy.core.filter_match import IPIP, UDP
from flannelpy.core.objects import Ipip, Link, Vxlan

_IP = {4: 20, 6: 40}
_UDP, _VXLAN, _ETHERNET = 8, 8, 14
_ETHERTYPE = {4: 0x800, 6: 0x86DD}
_WIREGUARD = 40
"""UDP 8, and WireGuard's own 32."""
_ESP = 37
"""Header 8, IV 8, padding and its length up to 5, and a tag of 16 (AES-GCM, RFC 4106)."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """``port`` 0: none. ``vni`` None: no VXLAN. ``hidden``: what is inside cannot be seen from outside, or is not as written here.
    ``bound``: it is to leave by this device; an FDB entry without one of its own follows the routes all the same.
    """

    protocol: int = UDP
    port: int = 0
    vni: int | None = None
    hidden: bool = False
    bound: str = ""

    def __str__(self) -> str:
        return f"UDP {self.port}" if self.protocol == UDP else f"IP protocol {self.protocol}"

    def overhead(self, version: int) -> int:
        """Bytes around a packet, with an outer header of this IP version."""
        if self.hidden and self.protocol == UDP:
            return _IP[version] + _WIREGUARD
        if self.hidden:
            return _IP[version] + _ESP
        inside = _UDP if self.protocol == UDP else 0
        return _IP[version] + inside + (0 if self.vni is None else _VXLAN + _ETHERNET)

    def transport(self, source: IPAddress, destination: IPAddress) -> bytes:
        """What begins behind the outer IP header, up to the end of the inner one (RFC 7348 section 5); empty where it is hidden."""
        if self.hidden:
            return b""
        inner = _header(source, destination)
        if self.vni is not None:
            frame = bytes(12) + struct.pack("!H", _ETHERTYPE[source.version]) + inner
            inner = struct.pack("!II", 0x08000000, self.vni << 8) + frame
        return struct.pack("!HHHH", self.port, self.port, len(inner) + _UDP, 0) + inner if self.protocol == UDP else inner


SEALED = Envelope(50, hidden=True)
"""ESP, which no device adds."""


def envelope_of(link: Link, port: int) -> Envelope:
    """What a device of ours puts around packets. ``port``: the UDP port of the backend, where the device does not say."""
    match link.detail:
        case Vxlan() as vxlan:
            return Envelope(port=vxlan.port, vni=vxlan.vni, bound=vxlan.dev)
        case Ipip() as ipip:
            return Envelope(port=ipip.port) if ipip.port else Envelope(IPIP)
    return Envelope(port=port, hidden=link.kind == "wireguard")


def _header(source: IPAddress, destination: IPAddress) -> bytes:
    """An IP header with these addresses; of the rest what a filter may ask for."""
    if source.version == 4:
        return struct.pack("!BBHHHBBHII", 0x45, 0, 84, 0, 0, 64, 1, 0, int(source), int(destination))
    return struct.pack("!IHBB", 0x60000000, 64, 58, 64) + b"".join(int(one).to_bytes(16, "big") for one in (source, destination))
