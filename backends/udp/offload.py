"""What will the kernel do for us in bulk? Each feature of the TUN device and of the socket is asked for, none is guessed.

With a virtio header on each packet the TUN hands over TCP and UDP of up to 64 KB in one read, unsegmented, and takes the same in
one write; the socket sends many datagrams of one size in one call (GSO), and receives them so (GRO). What a kernel refuses is left
out, by feature and never by version. Source: Documentation/networking/tuntap.rst, udp(7), the virtio specification 5.1.6.
"""

from __future__ import annotations

import fcntl
import socket
from struct import Struct

from backends.udp.protocol import HEADER_BYTES, SOL_UDP, UDP_GRO, UDP_SEGMENT, Offload

IFF_VNET_HDR = 0x4000

_TUNGETFEATURES = 0x800454CF
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_CSUM, _TSO4, _TSO_ECN, _USO4, _USO6 = 0x01, 0x02, 0x08, 0x20, 0x40
_INT = Struct("=i")

_TUN_WISHES = (
    # The kernel takes USO for both families or for none; IPv6 is noise to us, in any size.
    (_CSUM | _TSO4 | _TSO_ECN | _USO4 | _USO6, Offload.CHECKSUM | Offload.TCP | Offload.TCP_ECN | Offload.UDP),
    (_CSUM | _TSO4 | _TSO_ECN, Offload.CHECKSUM | Offload.TCP | Offload.TCP_ECN),
    (_CSUM | _TSO4, Offload.CHECKSUM | Offload.TCP),
    (_CSUM, Offload.CHECKSUM),
)
"""From the most to the least; the kernel refuses a word with one bit that it does not know."""


def tun_features(tun: int) -> int:
    """The IFF_ flags that the driver knows; to be asked before the device is made. 0 where it is too old to be asked."""
    try:
        (features,) = _INT.unpack(fcntl.ioctl(tun, _TUNGETFEATURES, _INT.pack(0)))
    except OSError:
        return 0
    return int(features)


def ask_tun(tun: int) -> Offload:
    """Switch on what the device has; it was made with IFF_VNET_HDR."""
    fcntl.ioctl(tun, _TUNSETVNETHDRSZ, _INT.pack(HEADER_BYTES))
    for wish, found in _TUN_WISHES:
        try:
            fcntl.ioctl(tun, _TUNSETOFFLOAD, wish)
        except OSError:
            continue
        return Offload.HEADER | found
    return Offload.HEADER


def ask_socket(sock: socket.socket) -> Offload:
    """Switch on what the socket has. Only for a reader that knows what a GRO buffer is."""
    found = Offload.NONE
    for option, value, feature in ((UDP_SEGMENT, 0, Offload.GSO), (UDP_GRO, 1, Offload.GRO)):
        try:
            sock.setsockopt(SOL_UDP, option, value)
        except OSError:
            continue
        found |= feature
    return found
