"""How are packets forwarded where the kernel offloads nothing? One by one, each way in turn."""

from __future__ import annotations

import errno
import io
import socket
import time

from backends.udp.counters import (
    IN_BYTES,
    IN_PACKETS,
    IN_WRITE_FAILED,
    OUT_BYTES,
    OUT_PACKETS,
    OUT_SEND_FAILED,
    RECEIVE_ERRORS,
    Counts,
)
from backends.udp.protocol import Setting
from backends.udp.worker.icmp_errors import Clock, IcmpErrors
from backends.udp.worker.ingress import PASSED, make_ingress
from backends.udp.worker.packet import inbound, outbound
from backends.udp.worker.peers import PeerTable
from backends.udp.worker.pmtu import PathMtu

BURST = 32
"""Packets in one turn, about 0.2 ms; then the other way has its turn, and control."""

BUFFER = 1 << 16
"""More than any datagram, so that nothing is ever cut: what is too long is seen to be."""


class Forwarder:
    """Forwards packets between one TUN descriptor without virtio headers and one socket."""

    def __init__(self, setting: Setting, sock: socket.socket, counts: Counts, clock: Clock = time.monotonic) -> None:
        self.counts = counts
        self.peers = PeerTable(setting.network, setting.length, setting.port)
        self.ingress = make_ingress(setting, self.peers, clock)
        self._icmp_errors = IcmpErrors(setting, counts, self.peers, sock, self._inject, clock)
        self.path_mtu = PathMtu(sock, counts, self._icmp_errors, clock)
        # FileIO answers None, without an exception, where a descriptor would block.
        self._tun = io.FileIO(setting.tun, "r+", closefd=False)
        self._socket = sock
        self._buffer = bytearray(BUFFER)

    def forward_out(self) -> None:
        """Up to BURST packets from the device to peers. Raises OSError with EBADFD where the device was deleted."""
        buffer, view, counts, peers = self._buffer, memoryview(self._buffer), self.counts, self.peers
        read, send = self._tun.readinto, self._socket.sendto
        for _ in range(BURST):
            size = read(buffer)
            if size is None:
                return
            peer = outbound(buffer, size, peers)
            if isinstance(peer, int):
                self._icmp_errors.drop_outbound(peer, view[:size])
                continue
            try:
                send(view[:size], peer)
                counts[OUT_PACKETS] += 1
                counts[OUT_BYTES] += size
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self.path_mtu.send((view[:size],), size, peer)
                else:  # buffer full, no route, a firewall: lost, as on any wire
                    counts[OUT_SEND_FAILED] += 1

    def forward_in(self) -> None:
        """Up to BURST packets from peers to the device. Raises OSError with EBADFD where the device was deleted."""
        buffer, view, counts, ingress = self._buffer, memoryview(self._buffer), self.counts, self.ingress
        receive = self._socket.recvfrom_into
        for _ in range(BURST):
            try:
                size, sender = receive(buffer)
            except BlockingIOError:
                return
            except OSError:  # reading it has cleared it
                counts[RECEIVE_ERRORS] += 1
                continue
            verdict = inbound(buffer, size, sender[0], ingress)
            if verdict != PASSED:
                self._icmp_errors.drop_inbound(verdict, view[:size], sender[0])
            elif self._inject(view[:size]):
                counts[IN_PACKETS] += 1
                counts[IN_BYTES] += size
            else:
                counts[IN_WRITE_FAILED] += 1

    def _inject(self, packet: memoryview | bytes) -> bool:
        """Hand a packet to the kernel; False where it takes none: queue full (None), device down (EIO), or refused."""
        try:
            return self._tun.write(packet) is not None
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise
            return False
