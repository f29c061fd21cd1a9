"""What will the kernel do for us in bulk? Each feature of the TUN device and of the socket is asked for, none is guessed.

With a virtio header on each packet the TUN hands over TCP and UDP of up to 64 KB in one read, unsegmented, and takes the same in
one write; the socket sends many datagrams of one size in one call, and receives them so. What a kernel refuses is left out, by
feature and never by version. Source: Documentation/networking/tuntap.rst, udp(7), the virtio specification 5.1.6.
"""

from __future__ import annotations

import enum
import fcntl
import socket
from struct import Struct


class Offload(enum.Flag):
    """What was found; travels to the worker as a number. Without HEADER there is nothing else."""

    NONE = 0
    HEADER = 1
    """A virtio header before each packet, both ways."""
    CHECKSUM = 2
    """The device hands over packets whose checksum is still to be made."""
    TCP = 4
    """TCP over IPv4 comes and goes unsegmented."""
    TCP_ECN = 8
    """Also where its first segment carries CWR."""
    UDP = 16
    """UDP of equal pieces comes and goes unsegmented."""
    SEGMENT = 32
    """The socket cuts one buffer into datagrams of one size."""
    GATHER = 64
    """The socket hands over datagrams of one size and sender in one buffer."""

    def __str__(self) -> str:
        return ", ".join(map(name_of, self)) or "none"


def name_of(feature: Offload) -> str:
    """For people: ``tcp ecn``."""
    return str(feature.name).lower().replace("_", " ")


HEADER_BYTES = 10
HEADER = Struct("=BBHHHH")
"""virtio_net_hdr in the order of the machine: flags, kind, header length, segment size, checksum from, checksum at."""

NEEDS_CHECKSUM = 1
"""Flag: the checksum at (from + at) holds the pseudo header's sum; the rest is to be added from ``from`` on."""

KIND_NONE, KIND_TCP, KIND_UDP, KIND_ECN = 0, 1, 5, 0x80

IFF_VNET_HDR = 0x4000

_TUNGETFEATURES = 0x800454CF
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_CSUM, _TSO4, _TSO_ECN, _USO4, _USO6 = 0x01, 0x02, 0x08, 0x20, 0x40
_INT = Struct("=i")

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

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
    """Switch on what the socket has. Only for a reader that knows what a gathered datagram is."""
    found = Offload.NONE
    for option, value, feature in ((UDP_SEGMENT, 0, Offload.SEGMENT), (UDP_GRO, 1, Offload.GATHER)):
        try:
            sock.setsockopt(SOL_UDP, option, value)
        except OSError:
            continue
        found |= feature
    return found
