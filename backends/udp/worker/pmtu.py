"""What becomes of a packet that is longer than the path to its peer takes? What a router does: it is cut, or refused by ICMP.

The socket has DF set on every datagram (ip(7), IP_PMTUDISC_DO). One that is longer than what the kernel has learned of its path is
refused with EMSGSIZE, and only then is anything in here asked. The kernel forgets after ten minutes (net.ipv4.route.mtu_expires):
the next one is sent, and the path has grown or it is learned anew.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence

from backends.udp.counters import OUT_BYTES, OUT_FRAGMENTED, OUT_PACKETS, OUT_SEND_FAILED, Counts
from backends.udp.protocol import OVERHEAD
from backends.udp.worker.fragment import DONT_FRAGMENT, fragments
from backends.udp.worker.icmp_errors import Clock, IcmpErrors
from backends.udp.worker.peers import Peer

_IP_MTU = 14

LONGEST = 65_535
"""Of IPv4, in bytes; the kernel says 65,536 of a path by loopback."""

SMALLEST = 552
"""The kernel takes no path for smaller (net.ipv4.route.min_pmtu); for one about which it says two things."""

FRESH_S = 1.0
"""How long an answer of the kernel is believed, in seconds."""


def ask(sock: socket.socket, peer: Peer) -> int:
    """The MTU in bytes of the path to ``peer``, as the kernel has it. A look-up, nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((sock.getsockname()[0], 0))
            other.connect(peer)
            return other.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:
        return SMALLEST


class PathMtu:
    """Sends packets one by one that the kernel would not take together, or not at that length."""

    def __init__(
        self,
        sock: socket.socket,
        counts: Counts,
        icmp_errors: IcmpErrors,
        clock: Clock,
        ask: Callable[[socket.socket, Peer], int] = ask,
    ) -> None:
        self._socket = sock
        self._counts = counts
        self._icmp_errors = icmp_errors
        self._clock = clock
        self._ask = ask
        self.apart: set[Peer] = set()
        """To whom the kernel cuts no buffer (EIO): by a device that makes no checksums, or through IPsec."""
        self._known: dict[Peer, int] = {}
        self._fresh_until = 0.0

    def forget(self) -> None:
        """Ask the kernel anew about every path: the underlay is another one."""
        self._known.clear()
        self.apart.clear()

    def send(self, views: Sequence[memoryview], size: int, peer: Peer) -> None:
        """Packets of ``size`` bytes, of which the last of each view may be shorter."""
        informed: set[bytes] = set()
        for view in views:
            for start in range(0, len(view), size):
                packet = view[start : start + size]
                if not self._fits(packet, peer):
                    self._narrow(packet, peer, informed)

    def _fits(self, packet: memoryview | bytes, peer: Peer) -> bool:
        """Send and count; False where it is too long."""
        try:
            self._socket.sendto(packet, peer)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return False
            self._counts[OUT_SEND_FAILED] += 1
        else:
            self._counts[OUT_PACKETS] += 1
            self._counts[OUT_BYTES] += len(packet)
        return True

    def _narrow(self, packet: memoryview, peer: Peer, informed: set[bytes]) -> None:
        """Segments or refuse a packet that is too long."""
        mtu = self._find_mtu(packet, peer)
        if mtu >= len(packet):
            if self._fits(packet, peer):
                return  # the path has grown since
            mtu = self._known[peer] = SMALLEST - OVERHEAD
        if packet[6] << 8 & DONT_FRAGMENT:
            self._icmp_errors.drop_too_big(packet, mtu, informed)
            return
        pieces = fragments(packet, mtu)
        sent = [self._fits(piece, peer) for piece in pieces]
        if pieces and all(sent):
            self._counts[OUT_FRAGMENTED] += 1
        else:
            self._known.clear()  # narrower still: to be asked about again
            self._counts[OUT_SEND_FAILED] += 1

    def _find_mtu(self, packet: memoryview, peer: Peer) -> int:
        """The longest packet that fits the path, in bytes; not believed where the kernel has just said otherwise."""
        now = self._clock()
        if now >= self._fresh_until:
            self._known.clear()
            self._fresh_until = now + FRESH_S
        mtu = self._known.get(peer, len(packet))
        if mtu >= len(packet):
            mtu = self._known[peer] = min(self._ask(self._socket, peer), LONGEST) - OVERHEAD
        return mtu
