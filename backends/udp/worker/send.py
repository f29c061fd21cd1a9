"""How do packets leave in few calls? A batch of one size to one peer is sent at once; the kernel cuts them apart.

UDP_SEGMENT: udp(7). All datagrams of one call have one size but the last, which may be shorter, and they are 65,507 bytes in all.
"""

from __future__ import annotations

import errno
import socket
from struct import Struct

from backends.udp.counters import OUT_BYTES, OUT_PACKETS, OUT_SEND_FAILED, Counts
from backends.udp.protocol import SOL_UDP, UDP_SEGMENT
from backends.udp.worker.peers import Peer
from backends.udp.worker.pmtu import PathMtu

MOST = 64
"""Datagrams in one call: UDP_MAX_SEGMENTS of the first kernels that have it."""

MOST_BYTES = 65_507
"""What one IPv4 datagram could carry; the kernel checks the uncut buffer against it."""

_SIZE = Struct("=H")

NOT_TOGETHER = frozenset({errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
"""A path MTU below the size (in older kernels EINVAL), or a device that makes no checksums (EIO): each alone may still go."""

_TOO_LONG = frozenset({errno.EMSGSIZE})


class TxBatch:
    """Packets that wait for others of their size; ``flush`` before their memory is used again. ``together``: by UDP_SEGMENT."""

    __slots__ = ("_bytes", "_count", "_counts", "_path_mtu", "_peer", "_size", "_socket", "_together", "_views")

    def __init__(self, sock: socket.socket, counts: Counts, together: bool, path_mtu: PathMtu) -> None:
        self._socket = sock
        self._counts = counts
        self._together = together
        self._path_mtu = path_mtu
        self._views: list[memoryview] = []
        self._count = self._bytes = self._size = 0
        self._peer: Peer = ("", 0)

    def add(self, view: memoryview, size: int, count: int, peer: Peer) -> None:
        """``count`` packets of ``size`` bytes, of which the last may be shorter."""
        if self._views and (size != self._size or peer != self._peer):
            self.flush()
        self._size, self._peer = size, peer
        length = len(view)
        together = self._together and peer not in self._path_mtu.apart
        most = max(1, min(MOST, MOST_BYTES // size)) if together else 1  # the kernel says no to one too long for IPv4
        start = 0
        while self._count + count > most:
            take = most - self._count
            stop = start + take * size
            self._take(view[start:stop], take)
            self.flush()
            start = stop
            count -= take
        self._take(view[start:] if start else view, count)
        if count * size != length - start or self._count == most:
            self.flush()

    def send(self, view: memoryview, peer: Peer) -> None:
        """One packet, now; nothing may wait."""
        try:
            self._socket.sendto(view, peer)
            self._counts[OUT_PACKETS] += 1
            self._counts[OUT_BYTES] += len(view)
        except OSError as error:  # buffer full, no route, a firewall: lost, as on any wire
            if error.errno == errno.EMSGSIZE:
                self._path_mtu.send((view,), len(view), peer)
            else:
                self._counts[OUT_SEND_FAILED] += 1

    def _take(self, view: memoryview, count: int) -> None:
        self._views.append(view)
        self._count += count
        self._bytes += len(view)

    def flush(self) -> None:
        """Send what waits."""
        if not self._views:
            return
        views, count, counts = self._views, self._count, self._counts
        try:
            if count == 1:
                self._socket.sendto(views[0], self._peer)
            else:
                self._socket.sendmsg(views, ((SOL_UDP, UDP_SEGMENT, _SIZE.pack(self._size)),), 0, self._peer)
            counts[OUT_PACKETS] += count
            counts[OUT_BYTES] += self._bytes
        except OSError as error:  # buffer full, no route, a firewall: lost, as on any wire
            if error.errno in (NOT_TOGETHER if count > 1 else _TOO_LONG):
                if error.errno == errno.EIO:
                    self._path_mtu.apart.add(self._peer)
                self._path_mtu.send(views, self._size, self._peer)
            else:
                counts[OUT_SEND_FAILED] += count
        self._views = []
        self._count = self._bytes = 0
