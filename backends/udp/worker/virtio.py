"""What stands before each packet that a TUN device with offloads hands over? The virtio header: virtio specification 5.1.6."""

from __future__ import annotations

from struct import Struct

HEADER = Struct("=BBHHHH")
"""virtio_net_hdr in the order of the machine: flags, kind, header length, segment size, checksum from, checksum at."""

NEEDS_CHECKSUM = 1
"""Flag: the checksum at (from + at) holds the pseudo header's sum; the rest is to be added from ``from`` on."""

KIND_NONE, KIND_TCP, KIND_UDP, KIND_ECN = 0, 1, 5, 0x80
