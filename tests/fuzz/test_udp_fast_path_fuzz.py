"""Bent packets by the thousand through the whole fast path: no exception, none past the filter, none made up, no memory kept.

What may pass is said by a judge that knows only the wire format, what must leave by a router in plain Python. UDP_FUZZ_COUNT is the
number of packets for each direction; five millions take about ten minutes. FUZZ_SEED: others.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from backends.udp.counters import CELLS
from backends.udp.protocol import GUARDS, HEADER_BYTES, Guard, Setting
from backends.udp.worker import fast_path
from backends.udp.worker.fast_path import FastPath
from backends.udp.worker.virtio import HEADER, KIND_ECN, KIND_TCP, KIND_UDP, NEEDS_CHECKSUM
from tests.fuzz.judge import Judge, older, within
from tests.fuzz.mutation import SEED
from tests.unit.test_udp_fast_path import ACK, ALL, CWR, FIN, PSH, RST, SYN, TIMESTAMPS, URG, Packet, folded

COUNT = int(os.environ.get("UDP_FUZZ_COUNT", "20000"))
MTU = 600
NETWORK, OWN, PEER_NET, OTHER_NET = 0x0A050000, 0x0A054800, 0x0A050900, 0x0A050A80
PEER, OTHER, STRANGER = "192.0.2.2", "192.0.2.3", "198.51.100.9"
US, THEM, THIRD, NOBODY = bytes((10, 5, 72, 2)), bytes((10, 5, 9, 2)), bytes((10, 5, 10, 130)), bytes((10, 5, 10, 2))
ITSELF, OUTSIDE, OURS = bytes((192, 0, 2, 2)), bytes((8, 8, 8, 8)), bytes((192, 0, 2, 1))
PEERS = {PEER: (PEER_NET, PEER_NET + 255), OTHER: (OTHER_NET, OTHER_NET + 127)}
HOMES = {THEM: PEER, THIRD: OTHER}
GROWTH_PAGES = 500
"""Two megabytes, in pages of 4 KB: what the allocator may still take after a quarter of the packets."""


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
    """Stands for ``os`` in the forwarder, and so for the TUN device: gives what is to be read, keeps what is written."""

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
    monkeypatch.setattr(fast_path, "os", made)
    return made


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture(params=GUARDS)
def judge(request: pytest.FixtureRequest) -> Judge:
    return Judge((OWN, OWN + 255), PEERS, (NETWORK, NETWORK + 0xFFFF), request.param, frozenset((OURS,)))


@pytest.fixture
def forwarder(device: Device, wire: Wire, judge: Judge) -> FastPath:
    """A forwarder between both that knows two peers, one of them with a /25."""
    setting = Setting(0, 0, 0, 0, 0, 8285, OWN, 24, NETWORK, 16, cast(Guard, judge.rule), ALL.value)
    made = FastPath(setting, wire, [0] * CELLS)  # type: ignore[arg-type]
    made.peers.set(PEER_NET, 24, 0xC0000202)
    made.peers.set(OTHER_NET, 25, 0xC0000203)
    made.ingress._is_ours = lambda address: address.to_bytes(4, "big") == OURS
    return made


def some(chance: random.Random, src: bytes, dst: bytes) -> Packet:
    """A packet in order, of any kind that the fast path knows."""
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


def received_together(chance: random.Random, source: bytes, target: bytes) -> list[bytes]:
    """What one reception may hold, of equal sizes but for the last: segments of one packet, in order or not, or what looks so."""
    packet = replace(some(chance, source, target), fragment=chance.choice((0x4000, 0x4000, 0x4000, 0, 0x2000, 0x2012, 0x0012)))
    piece = chance.randrange(30, 560)
    segments = packet.segments(piece)[:64] or [packet]
    twist = chance.randrange(10)
    if twist == 0:  # out of order
        segments = [*segments[1:], *segments[:1]]
    elif twist == 1:  # two flows, one among the other
        both = [segments, replace(packet, ports=b"\x20\x01\x20\x02", ident=9).segments(piece)]
        segments = [each.pop(0) for _ in range(64) if (each := chance.choice(both))]
    elif twist == 2:  # one of somebody else
        segments[chance.randrange(len(segments))] = replace(segments[0], src=chance.choice((THIRD, NOBODY, US)))
    elif twist == 3:  # flags that only the last may have, or none, on all of them
        segments = [replace(each, flags=each.flags | chance.choice((PSH, PSH, FIN, CWR, SYN, RST, URG))) for each in segments]
    elif twist == 4:  # and the next one, which has no payload
        last = segments[-1]
        after = (last.sequence + len(last.payload)) % 2**32
        segments = [*segments[:63], replace(last, payload=b"", sequence=after, ident=(last.ident + 1) % 2**16)]
    raw = [each.octets(no_checksum=twist == 5) for each in segments]
    if twist == 6:  # every header's checksum wrong by the same
        raw = [each[:10] + bytes((each[10] ^ 1,)) + each[11:] for each in raw]
    return raw


class Memory:
    """Is memory flat? Resident pages of this process (proc_pid_statm(5)) after a quarter of the work and at its end."""

    def __init__(self) -> None:
        self.early = 0

    def look(self, done: int) -> None:
        """Note them once a quarter is done."""
        if not self.early and done > COUNT // 4:
            self.early = self._pages()

    def check(self) -> None:
        """Not more at the end than the bound."""
        late = self._pages()
        print(f"resident: {self.early * 4} KB after a quarter, {late * 4} KB at the end")
        assert self.early > 0
        assert late - self.early < GROWTH_PAGES

    def _pages(self) -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1])


def cut_again(written: bytes) -> list[bytes]:
    """The packets of something written to the device: itself, or what a router makes of the GSO packet."""
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
    assert read.fragment & ~0x4000 == 0
    assert not tcp or not octets[33] & (SYN | RST | URG)
    assert octets == read.octets(partial=True)
    return [each.octets() for each in read.segments(piece)]


def alike(one: bytes, other: bytes) -> bool:
    """The same packet; but for the id, with its checksum, where DF makes it meaningless. A wrong checksum is never made right."""
    if one == other:
        return True
    right = folded(one[:20]) == folded(other[:20]) == 0xFFFF
    return right and one[6] & 0x40 != 0 and one[:4] + one[6:10] + one[12:] == other[:4] + other[6:10] + other[12:]


@pytest.mark.timeout(0 if COUNT > 100_000 else 120)
def test_bent_datagrams(forwarder: FastPath, device: Device, wire: Wire, judge: Judge) -> None:
    chance = random.Random(SEED)
    done = accepted = joined = foreign = answered = 0
    memory = Memory()
    while done < COUNT:
        source, target = (
            chance.choice((*(THEM,) * 8, THIRD, NOBODY, US, ITSELF, OUTSIDE, OURS)),
            chance.choice((*(US,) * 8, THEM, THIRD)),
        )
        raw = received_together(chance, source, target)
        if chance.random() < 0.5:
            raw = [bend(chance, each) for each in raw]
        size = len(raw[0])
        batch = b"".join(each.ljust(size, b"\0")[:size] for each in raw[:-1]) + raw[-1][:size]
        datagrams = [batch[at : at + size] for at in range(0, len(batch), size)]
        sender = HOMES.get(source, PEER) if chance.random() < 0.8 else chance.choice((PEER, OTHER, STRANGER))
        wanted = [passed for each in datagrams if (passed := judge.passed(each, sender)) is not None]
        wire.received.append((batch, size, sender))
        before = sum(forwarder.counts)
        forwarder.forward_in()
        written, device.written = device.written, []
        emitted = [each for written_one in written for each in cut_again(written_one)]
        assert len(emitted) == len(wanted)
        assert all(alike(one, other) for one, other in zip(emitted, wanted, strict=True))
        assert sum(forwarder.counts) > before
        spent = list(datagrams)
        for answer, peer in wire.sent:  # nothing leaves but time exceeded, once for each that is let in, to who has its source
            home = next(host for host, span in PEERS.items() if within(answer[16:20], span))
            assert peer == (home, 8285)
            assert home == sender or judge.rule in ("peers", "off")
            spent.remove(judge.told(answer, spent, sender))
        answered += len(wire.sent)
        wire.sent.clear()
        done += len(datagrams)
        accepted += len(emitted)
        foreign += len(datagrams) - len(wanted)
        joined += len(written) < len(emitted)
        memory.look(done)
    print(f"{done} datagrams: {accepted} let in, {foreign} refused, none wrongly; {joined} times joined, {answered} answers")
    memory.check()
    assert answered > 0
    assert accepted > COUNT // 10
    assert foreign > COUNT // 20
    assert joined > COUNT // 1000


def given_to_device(chance: random.Random, packet: Packet, piece: int) -> bytes:
    """As the kernel hands a packet, or with a piece a GSO packet, to a device with offloads."""
    at = 16 if packet.protocol == 6 else 6
    kind = 0
    if piece:
        kind = (KIND_TCP | (KIND_ECN if packet.flags & CWR else 0)) if packet.protocol == 6 else KIND_UDP
    head = HEADER.pack(NEEDS_CHECKSUM, kind, packet.header, piece, 20 + len(packet.ip_options), at)
    return head + packet.octets(partial=True)


def completed(packet: Packet) -> bytes:
    """With the checksum that was left to the device. One that comes out as 0 is sent as 0xffff, in TCP too (CSUM_MANGLED_0)."""
    octets = packet.octets()
    at = 20 + len(packet.ip_options) + (16 if packet.protocol == 6 else 6)
    return octets[:at] + (b"\xff\xff" if octets[at : at + 2] == b"\0\0" else octets[at : at + 2]) + octets[at + 2 :]


@pytest.mark.timeout(0 if COUNT > 100_000 else 120)
@pytest.mark.parametrize("judge", ["default"], indirect=True)
def test_reads_from_the_device_leave_as_from_a_router(forwarder: FastPath, device: Device, wire: Wire) -> None:
    """Nothing bent: each packet and each segment leaves once, to whom it belongs, with every checksum right."""
    chance = random.Random(SEED + 2)
    done = 0
    memory = Memory()
    wanted: dict[str, list[bytes]]
    while done < COUNT // 4:
        wanted = {PEER: [], OTHER: []}
        for _ in range(chance.randrange(1, 20)):
            packet = replace(some(chance, US, chance.choice((THEM, THEM, THIRD, NOBODY))), protocol=chance.choice((6, 17)))
            piece = chance.randrange(1, MTU - packet.header + 1) if chance.random() < 0.3 and len(packet.payload) > 1 else 0
            if packet.protocol == 17 and packet.ip_options:
                packet = replace(packet, ip_options=b"")
            if not piece:
                packet = replace(packet, payload=packet.payload[: MTU - packet.header])
            alike = [packet] * (1 if piece else chance.choice((1, 1, 8, 30)))  # of one size, which may leave together
            if chance.random() < 0.3:
                alike[-1] = replace(packet, dst=chance.choice((THEM, THIRD, NOBODY)), ttl=chance.choice((64, 1)))
            for each in alike:
                device.given.append(given_to_device(chance, each, piece))
                parts = [part.octets() for part in each.segments(piece)] if piece else [completed(each)]
                if each.dst in HOMES and each.ttl > 1:
                    wanted[HOMES[each.dst]] += [older(part) for part in parts]
                done += len(parts)
        while device.given:
            forwarder.forward_out()
        forwarder.forward_out()
        device.written.clear()
        for peer, packets in wanted.items():
            sent = [octets for octets, to in wire.sent if to == (peer, 8285)]
            assert sent == packets
        assert len(wire.sent) == sum(map(len, wanted.values()))
        wire.sent.clear()
        memory.look(done * 4)
    memory.check()


@pytest.mark.timeout(0 if COUNT > 100_000 else 120)
@pytest.mark.parametrize("judge", ["default"], indirect=True)
def test_bent_reads_from_the_device(forwarder: FastPath, device: Device, wire: Wire) -> None:
    chance = random.Random(SEED + 1)
    done = left = 0
    memory = Memory()
    while done < COUNT:
        for _ in range(chance.randrange(1, 20)):
            packet = some(chance, US, chance.choice((THEM, THEM, THIRD, NOBODY, US)))
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
        while device.given:
            forwarder.forward_out()
        device.written.clear()
        for octets, (address, port) in wire.sent:
            assert port == 8285
            assert octets[0] >> 4 == 4
            assert int.from_bytes(octets[2:4], "big") == len(octets)
            first, last = PEERS[address]
            assert first <= int.from_bytes(octets[16:20], "big") <= last
        left += len(wire.sent)
        wire.sent.clear()
        memory.look(done)
    print(f"{done} reads: {left} packets left")
    memory.check()
    assert left > COUNT // 4
