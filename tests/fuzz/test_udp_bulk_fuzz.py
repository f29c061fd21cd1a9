"""Bent packets by the thousand through the whole bulk path: no exception, nothing past the guard, nothing made up, no memory kept.

UDP_FUZZ_COUNT is the number of packets for each direction; ten millions take about half an hour.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.udp import bulk
from backends.udp.bulk import BulkMover
from backends.udp.control import COUNTERS, Setting
from backends.udp.offload import HEADER, HEADER_BYTES, KIND_ECN, KIND_TCP, KIND_UDP, NEEDS_CHECKSUM
from backends.udp.packet import PASSED, Gate, inbound
from tests.unit.test_udp_split import ACK, ALL, CWR, FIN, PSH, TIMESTAMPS, Packet, folded

COUNT = int(os.environ.get("UDP_FUZZ_COUNT", "20000"))
MTU = 600
OWN, PEER_NET = 0x0A054800, 0x0A050900
PEER, STRANGER = "192.0.2.2", "198.51.100.9"
US, THEM = bytes((10, 5, 72, 2)), bytes((10, 5, 9, 2))
GROWTH_PAGES = 2500


class Wire:
    """Stands for the UDP socket: gives what is received, keeps what is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, int, str]] = []
        self.sent: list[tuple[bytes, tuple[str, int]]] = []

    def recvmsg_into(self, buffers: list[memoryview], room: int) -> tuple[int, list[Any], int, tuple[str, int]]:
        if not self.received:
            raise BlockingIOError
        octets, size, sender = self.received.pop(0)
        buffers[0][: len(octets)] = octets
        notes = [(17, 104, size.to_bytes(4, "little"))] if len(octets) > size else []
        return len(octets), notes, 0, (sender, 8285)

    def sendto(self, octets: memoryview, peer: tuple[str, int]) -> None:
        self.sent.append((bytes(octets), peer))

    def sendmsg(self, views: list[memoryview], notes: Any, flags: int, peer: tuple[str, int]) -> None:
        size = int.from_bytes(notes[0][2], "little")
        octets = b"".join(views)
        assert len(octets) <= 65507
        assert -(-len(octets) // size) <= 64
        self.sent += [(octets[at : at + size], peer) for at in range(0, len(octets), size)]


class Device:
    """Stands for ``os`` in the mover, and so for the TUN device: gives what is to be read, keeps what is written."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.written: list[bytes] = []

    def readv(self, descriptor: int, buffers: Sequence[memoryview]) -> int:
        if not self.given:
            raise BlockingIOError
        octets = self.given.pop(0)
        head, rest = octets[:HEADER_BYTES], octets[HEADER_BYTES:]
        buffers[0][: len(head)] = head
        buffers[1][: len(rest)] = rest
        return len(octets)

    def writev(self, descriptor: int, buffers: Sequence[memoryview | bytes | bytearray]) -> int:
        self.written.append(b"".join(buffers))
        return len(self.written[-1])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(bulk, "os", made)
    return made


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def mover(device: Device, wire: Wire) -> BulkMover:
    """A mover between both that knows one peer."""
    setting = Setting(0, 0, 0, 0, 0, 8285, MTU, OWN, 24, "strict", ALL.value)
    made = BulkMover(setting, wire, [0] * len(COUNTERS))  # type: ignore[arg-type]
    made.table.set(PEER_NET, 24, 0xC0000202)
    return made


def some(chance: random.Random, src: bytes, dst: bytes) -> Packet:
    """A packet in order, of any kind that the bulk path knows."""
    return Packet(
        payload=chance.randbytes(chance.randrange(0, 3000)),
        src=src,
        dst=dst,
        protocol=chance.choice((6, 6, 17, 1)),
        ident=chance.choice((chance.randrange(0x10000), 0xFFFE)),
        fragment=chance.choice((0x4000, 0x4000, 0)),
        ttl=chance.choice((64, 64, 2, 1)),
        flags=chance.choice((ACK, ACK, ACK | PSH, ACK | FIN, ACK | CWR)),
        sequence=chance.choice((chance.randrange(2**32), 2**32 - 700)),
        options=chance.choice((b"", TIMESTAMPS)),
        ip_options=chance.choice((b"", b"", b"", b"\x01" * 4)),
    )


def bend(chance: random.Random, octets: bytes) -> bytes:
    """Some bytes changed, mostly in the headers."""
    bent = bytearray(octets)
    for _ in range(chance.choice((0, 0, 0, 1, 1, 2, 5))):
        at = chance.randrange(min(len(bent), 60) if chance.random() < 0.9 else len(bent))
        bent[at] = chance.choice((0, 255, bent[at] ^ 1 << chance.randrange(8), chance.randrange(256)))
    return bytes(bent)


def pages() -> int:
    """Resident memory of this process, in pages (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def cut_again(written: bytes) -> list[bytes]:
    """The packets of something written to the device: itself, or what a router makes of the super-packet."""
    flags, kind, header, piece, start, offset = HEADER.unpack_from(written)
    octets = written[HEADER_BYTES:]
    if kind == 0:
        assert written[:HEADER_BYTES] == bytes(HEADER_BYTES)
        return [octets]
    tcp = kind & ~KIND_ECN == KIND_TCP
    assert (flags, start, offset) == (NEEDS_CHECKSUM, 20, 16 if tcp else 6)
    assert octets[0] == 0x45
    assert int.from_bytes(octets[2:4], "big") == len(octets) > header + piece
    assert folded(octets[:20]) == 0xFFFF
    assert header == (20 + (octets[32] >> 4) * 4 if tcp else 28)
    read = Packet(
        payload=octets[header:],
        src=octets[12:16],
        dst=octets[16:20],
        ports=octets[20:24],
        tos=octets[1],
        ident=int.from_bytes(octets[4:6], "big"),
        fragment=int.from_bytes(octets[6:8], "big"),
        ttl=octets[8],
        protocol=6 if tcp else 17,
    )
    if tcp:
        read = replace(
            read,
            sequence=int.from_bytes(octets[24:28], "big"),
            ack=int.from_bytes(octets[28:32], "big"),
            flags=octets[33],
            window=int.from_bytes(octets[34:36], "big"),
            urgent=int.from_bytes(octets[38:40], "big"),
            options=octets[40:header],
        )
    assert (kind & KIND_ECN != 0) == (tcp and octets[33] & CWR != 0)
    assert octets == read.octets(partial=True)
    return [each.octets() for each in read.segments(piece)]


def alike(one: bytes, other: bytes) -> bool:
    """The same packet; but for the id, with its checksum, where DF makes it meaningless."""
    return one == other or (one[6] & 0x40 != 0 and one[:4] + one[6:10] + one[12:] == other[:4] + other[6:10] + other[12:])


@pytest.mark.timeout(0 if COUNT > 100_000 else 120)
def test_bent_datagrams(mover: BulkMover, device: Device, wire: Wire) -> None:
    chance = random.Random(1)
    done = accepted = joined = answered = 0
    begun = None
    gate = Gate(mover.table, OWN, 24, "strict")
    while done < COUNT:
        packet = some(chance, chance.choice((THEM, THEM, THEM, US)), chance.choice((US, US, US, THEM)))
        segments = packet.segments(chance.randrange(30, 620)) or [packet]
        segments = segments[:64]
        if chance.random() < 0.2:  # two flows, or one that is out of order
            segments = [each for each in (*segments[1:], *segments[:1]) if each.header == segments[0].header]
        raw = [bend(chance, each.octets()) for each in segments]
        size = len(raw[0])
        batch = b"".join(each.ljust(size, b"\0")[:size] for each in raw[:-1]) + raw[-1][:size]
        datagrams = [batch[at : at + size] for at in range(0, len(batch), size)]
        sender = chance.choice((PEER, PEER, PEER, STRANGER))
        wanted = []
        for each in datagrams:
            held = bytearray(each)
            if inbound(held, len(each), sender, gate) == PASSED:
                wanted.append(bytes(held))
        wire.received.append((batch, size, sender))
        before = sum(mover.counts)
        mover.move_in()
        written, device.written = device.written, []
        emitted = [each for written_one in written for each in cut_again(written_one)]
        assert len(emitted) == len(wanted)
        assert all(alike(one, other) for one, other in zip(emitted, wanted, strict=True))
        assert sum(mover.counts) > before
        for answer, peer in wire.sent:  # nothing leaves but time-exceeded, to the peer that sent
            assert (answer[9], answer[20:22], answer[16:19], peer) == (1, bytes((11, 0)), THEM[:3], (PEER, 8285))
        answered += len(wire.sent)
        wire.sent.clear()
        done += len(datagrams)
        accepted += len(emitted)
        joined += len(written) < len(emitted)
        if begun is None and done > COUNT // 4:
            begun = pages()
    assert begun is not None
    assert pages() - begun < GROWTH_PAGES
    assert answered > 0
    assert accepted > COUNT // 10
    assert joined > COUNT // 1000


@pytest.mark.timeout(0 if COUNT > 100_000 else 120)
def test_bent_reads_from_the_device(mover: BulkMover, device: Device, wire: Wire) -> None:
    chance = random.Random(2)
    done = left = 0
    begun = None
    while done < COUNT:
        for _ in range(chance.randrange(1, 20)):
            packet = some(chance, US, chance.choice((THEM, THEM, THEM, US)))
            piece = chance.randrange(1, 600)
            large = chance.random() < 0.3
            if not large:
                packet = replace(packet, payload=packet.payload[: chance.choice((0, 20, 21, 300))])
            kind = chance.choice((KIND_TCP if packet.protocol == 6 else KIND_UDP, 3, 4, 0x81)) if large else 0
            at = 16 if packet.protocol == 6 else 6
            head = HEADER.pack(chance.choice((0, 1, 1, 2)), kind, packet.header, piece, 20 + len(packet.ip_options), at)
            octets = packet.octets(partial=True)
            if chance.random() < 0.5:
                head, octets = bend(chance, head), bend(chance, octets)
            device.given.append((head + octets)[: chance.choice((None, None, None, 9, 10, 29, 30, 60))])
            done += 1
        for _ in range(20):
            mover.move_out()
        device.written.clear()
        for octets, peer in wire.sent:
            assert peer == (PEER, 8285)
            assert octets[0] >> 4 == 4
            assert int.from_bytes(octets[2:4], "big") == len(octets)
            assert octets[16:19] == THEM[:3]
        left += len(wire.sent)
        wire.sent.clear()
        if begun is None and done > COUNT // 4:
            begun = pages()
    assert begun is not None
    assert pages() - begun < GROWTH_PAGES
    assert left > COUNT // 4
