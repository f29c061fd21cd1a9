"""How are packets forwarded where the kernel offloads? Much in each call: GSO packets, GRO buffers, batches of small packets.

The decisions are those of ``packet``. A GSO packet is segmented for the wire; what was received together is coalesced for the
device where that changes nothing; the rest goes as it is.
"""

from __future__ import annotations

import errno
import os
import socket
import time

import numpy as np

from backends.udp.counters import (
    IN_BYTES,
    IN_COALESCED,
    IN_PACKETS,
    IN_WRITE_FAILED,
    OUT_LENGTH,
    OUT_SEGMENTED,
    OUT_SHORT,
    RECEIVE_ERRORS,
    Counts,
)
from backends.udp.protocol import HEADER_BYTES, Offload, Setting
from backends.udp.worker.batch import FEW, Batch
from backends.udp.worker.coalesce import Coalescer
from backends.udp.worker.headers import FULL, ORDER
from backends.udp.worker.icmp_errors import Clock, IcmpErrors
from backends.udp.worker.ingress import PASSED, make_ingress
from backends.udp.worker.packet import SHORTEST, inbound, outbound
from backends.udp.worker.peers import Peer, PeerTable
from backends.udp.worker.pmtu import PathMtu
from backends.udp.worker.segment import Segmenter
from backends.udp.worker.send import TxBatch
from backends.udp.worker.virtio import HEADER, NEEDS_CHECKSUM

READS = 64
"""Small packets in one turn each way."""

LARGE = 8
"""How many small packets a GSO packet or a GRO buffer counts for: a turn is about a millisecond, then control is served."""

SINGLES = 16
"""After a turn that found no more than one packet, this many are passed on as they come, without a look for the next one, which
is most often in vain. Then such a look is taken again."""

_LONGEST = 1 << 16
_ROOM = 3 * _LONGEST
"""Small packets are read one after the other, and there must be room for a GSO packet behind them."""

_CONTROL_BYTES = socket.CMSG_SPACE(4)
_BARE = bytes(HEADER_BYTES)
"""The virtio header of a packet that is as on a wire."""

_REFUSED = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class FastPath:
    """Forwards packets between one TUN descriptor with virtio headers and one socket."""

    def __init__(self, setting: Setting, sock: socket.socket, counts: Counts, clock: Clock = time.monotonic) -> None:
        offloads = Offload(setting.offloads)
        self.counts = counts
        self.peers = PeerTable(setting.network, setting.length, setting.port)
        self.ingress = make_ingress(setting, self.peers, clock)
        self._icmp_errors = IcmpErrors(setting, counts, self.peers, sock, self._inject, clock)
        self._singles_out = self._singles_in = SINGLES
        self._tun = setting.tun
        self._socket = sock

        self._packets = bytearray(_ROOM)
        self._packets_view = memoryview(self._packets)
        self._packets_octets = np.frombuffer(self._packets, np.uint8)
        self._heads = bytearray(READS * HEADER_BYTES)
        heads = memoryview(self._heads)
        self._head_views = [heads[at : at + HEADER_BYTES] for at in range(0, len(heads), HEADER_BYTES)]
        self._single = (self._head_views[0], self._packets_view)
        self._batch = Batch(self._packets_octets)
        self._segmenter = Segmenter()
        self.path_mtu = PathMtu(sock, counts, self._icmp_errors, clock)
        self._tx = TxBatch(sock, counts, Offload.GSO in offloads, self.path_mtu)

        self._received = bytearray(2 * _LONGEST)
        self._received_view = memoryview(self._received)
        self._into = [self._received_view[:_LONGEST]]
        self._coalescer = Coalescer(self._received, np.frombuffer(self._received, np.uint8), offloads)

    # ----------------------------------------------------------------------------------------------------- outbound

    def forward_out(self) -> None:
        """A bounded number of packets from the device to peers. Raises OSError with EBADFD where the device was deleted."""
        budget = READS
        if self._singles_out:
            if not self._one_out():
                return
            budget -= LARGE
        heads, head_views, view, counts, readv, tun = (
            self._heads,
            self._head_views,
            self._packets_view,
            self.counts,
            os.readv,
            self._tun,
        )
        sizes: list[int] = []
        at = 0
        while budget > 0:
            index = len(sizes)
            try:
                size = readv(tun, (head_views[index], view[at:])) - HEADER_BYTES
            except BlockingIOError:
                break
            budget -= 1
            if size < SHORTEST:
                counts[OUT_SHORT] += 1
            elif heads[index * HEADER_BYTES + 1]:
                if sizes:
                    self._pass_small(sizes)
                    sizes = []
                self._pass_large(at, size, index)
                at = 0
                budget -= LARGE - 1
            else:
                sizes.append(size)
                at += size
                if at > _LONGEST:
                    self._pass_small(sizes)
                    sizes = []
                    at = 0
        if sizes:
            self._pass_small(sizes)
        self._tx.flush()
        if budget >= READS - 1:
            self._singles_out = SINGLES

    def _one_out(self) -> bool:
        """One packet as it comes; True where it was one after which more come most often.

        On an idle host a packet finds caches that others have filled: what counts is how little of anything is touched on its way.
        """
        try:
            size = os.readv(self._tun, self._single) - HEADER_BYTES
        except BlockingIOError:
            return False
        if size < SHORTEST:
            self.counts[OUT_SHORT] += 1
            return True
        flags, kind = self._heads[:2]
        if kind:
            self._pass_large(0, size, 0)
            return True
        self._singles_out -= 1
        verdict = outbound(self._packets, size, self.peers)
        peer = self._finish(verdict, 0, size, 0) if isinstance(verdict, int) or flags & NEEDS_CHECKSUM else verdict
        if peer is not None:
            self._tx.send(self._packets_view[:size], peer)
        return False

    def _pass_small(self, sizes: list[int]) -> None:
        """Packets that are read and stand one after the other, with their virtio headers in order."""
        heads, count = self._heads, len(sizes)
        at = first = 0
        while first < count:
            size = sizes[first]
            past = first + 1
            while past < count and sizes[past] == size:
                past += 1
            number = past - first
            peer = None
            if number >= FEW:
                peer = self._batch.prepare(at, size, number, bytes(heads[first * HEADER_BYTES : past * HEADER_BYTES]), self.peers)
            if peer is not None:
                self._tx.add(self._packets_view[at : at + number * size], size, number, peer)
                at += number * size
            else:
                for index in range(first, past):
                    self._pass_one(at, size, index)
                    at += size
            first = past
        self._tx.flush()  # their memory is read into next

    def _pass_one(self, at: int, size: int, index: int) -> None:
        peer = self._finish(outbound(self._packets, size, self.peers, at), at, size, index)
        if peer is not None:
            self._tx.add(self._packets_view[at : at + size], size, 1, peer)

    def _finish(self, verdict: Peer | int, at: int, size: int, index: int) -> Peer | None:
        """A packet with this verdict made ready to leave; None for one that is dropped, which is counted and answered then."""
        unfinished = self._heads[index * HEADER_BYTES] & NEEDS_CHECKSUM
        if isinstance(verdict, int):
            if unfinished:
                self._complete(at, size, index)  # for it may be quoted
            self._icmp_errors.drop_outbound(verdict, self._packets_view[at : at + size])
        elif unfinished and not self._complete(at, size, index):
            self.counts[OUT_LENGTH] += 1
        else:
            return verdict
        return None

    def _complete(self, at: int, size: int, index: int) -> bool:
        """Make the checksum that the kernel left to us; False where its place is not in the packet."""
        _, _, _, _, start, offset = HEADER.unpack_from(self._heads, index * HEADER_BYTES)
        where = start + offset
        if start < SHORTEST or where + 2 > size:
            return False
        total = int.from_bytes(self._packets_view[at + start : at + size], "big")
        if (size - start) % 2:
            total <<= 8
        # 0xffff, not 0, where it comes out even: 0 would say in UDP that there is none. Linux does so for all (CSUM_MANGLED_0).
        self._packets[at + where : at + where + 2] = (FULL - total % FULL).to_bytes(2, "big")
        return True

    def _pass_large(self, at: int, size: int, index: int) -> None:
        _, kind, _, piece, _, _ = HEADER.unpack_from(self._heads, index * HEADER_BYTES)
        verdict = outbound(self._packets, size, self.peers, at)
        if isinstance(verdict, int):
            self._icmp_errors.drop_outbound(verdict, self._packets_view[at : at + size])
            return
        segments = self._segmenter.segment(self._packets, self._packets_octets, at, size, kind, piece)
        if segments is None:
            self.counts[OUT_LENGTH] += 1
            return
        self.counts[OUT_SEGMENTED] += 1
        self._tx.add(segments.octets, segments.size, segments.count, verdict)
        self._tx.flush()  # with the next one's packets behind these, the peer would find two runs in one buffer

    # ------------------------------------------------------------------------------------------------------ inbound

    def forward_in(self) -> None:
        """A bounded number of packets from peers to the device. Raises OSError with EBADFD where the device was deleted."""
        budget = READS
        if self._singles_in:
            if not self._one_in():
                return
            budget -= LARGE
        receive, into, counts = self._socket.recvmsg_into, self._into, self.counts
        while budget > 0:
            try:
                length, notes, _, sender = receive(into, _CONTROL_BYTES)
            except BlockingIOError:
                break
            except OSError:  # reading it has cleared it
                counts[RECEIVE_ERRORS] += 1
                budget -= 1
                continue
            budget -= 1
            size = int.from_bytes(notes[0][2][:4], ORDER) if notes else length
            if length > size > 0:
                self._pass_gro_buffer(length, size, sender[0])
                budget -= LARGE - 1
                continue
            self._pass_in(0, length, sender[0])
        if budget >= READS - 1:
            self._singles_in = SINGLES

    def _one_in(self) -> bool:
        """As ``_one_out``."""
        counts = self.counts
        try:
            length, notes, _, sender = self._socket.recvmsg_into(self._into, _CONTROL_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # reading it has cleared it
            counts[RECEIVE_ERRORS] += 1
            return True
        if notes and length > (size := int.from_bytes(notes[0][2][:4], ORDER)) > 0:
            self._pass_gro_buffer(length, size, sender[0])
            return True
        self._singles_in -= 1
        verdict = inbound(self._received, length, sender[0], self.ingress)
        if verdict != PASSED:
            self._icmp_errors.drop_inbound(verdict, self._received_view[:length], sender[0])
            return False
        try:
            os.writev(self._tun, (_BARE, self._received_view[:length]))
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise
            counts[IN_WRITE_FAILED] += 1
            return False
        counts[IN_PACKETS] += 1
        counts[IN_BYTES] += length
        return False

    def _pass_gro_buffer(self, length: int, size: int, sender: str) -> None:
        for first, past in self._coalescer.runs(length, size):
            if past - first > 1:
                self._pass_coalesced(first, past, length, size, sender)
            else:
                self._pass_in(first * size, min(size, length - first * size), sender)

    def _pass_coalesced(self, first: int, past: int, length: int, size: int, sender: str) -> None:
        """A run whose headers differ in nothing that is judged: the first one's verdict is all of theirs."""
        counts, at = self.counts, first * size
        number = past - first
        octets = min(length, past * size) - at
        verdict = inbound(self._received, size, sender, self.ingress, at)
        if verdict != PASSED:
            self._icmp_errors.drop_inbound(verdict, self._received_view[at : at + size], sender, number)
            return
        try:
            os.writev(self._tun, self._coalescer.coalesce(first, past, length, size))
        except OSError as error:
            if error.errno in _REFUSED:
                self._coalescer.forgo(at)
                self._write(at, size)
                for each in range(first + 1, past):
                    self._pass_in(each * size, min(size, length - each * size), sender)
            elif error.errno == errno.EBADFD:
                raise
            else:
                counts[IN_WRITE_FAILED] += number
            return
        counts[IN_COALESCED] += 1
        counts[IN_PACKETS] += number
        counts[IN_BYTES] += octets

    def _pass_in(self, at: int, size: int, sender: str) -> None:
        verdict = inbound(self._received, size, sender, self.ingress, at)
        if verdict == PASSED:
            self._write(at, size)
        else:
            self._icmp_errors.drop_inbound(verdict, self._received_view[at : at + size], sender)

    def _write(self, at: int, size: int) -> None:
        counts = self.counts
        if self._inject(self._received_view[at : at + size]):
            counts[IN_PACKETS] += 1
            counts[IN_BYTES] += size
        else:
            counts[IN_WRITE_FAILED] += 1

    def _inject(self, packet: memoryview | bytes) -> bool:
        """Hand a packet to the kernel; False where it takes none: queue full, device down (EIO), or refused."""
        try:
            os.writev(self._tun, (_BARE, packet))
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise
            return False
        return True
