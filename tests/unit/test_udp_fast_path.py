"""Splitting and joining against a router that is written here in plain Python: byte for byte, every checksum by its own sum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.udp.protocol import HEADER_BYTES, Offload
from backends.udp.worker.batch import Batch
from backends.udp.worker.coalesce import Coalescer
from backends.udp.worker.headers import Cache
from backends.udp.worker.packet import ttl_decremented
from backends.udp.worker.peers import PeerTable
from backends.udp.worker.segment import Segmenter, Segments
from backends.udp.worker.virtio import HEADER, KIND_ECN, KIND_TCP, KIND_UDP, NEEDS_CHECKSUM

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
ALL = Offload.HEADER | Offload.CHECKSUM | Offload.TCP | Offload.TCP_ECN | Offload.UDP | Offload.GSO | Offload.GRO


# ------------------------------------------------------------------------------------------- the router, in plain Python


def folded(octets: bytes) -> int:
    """The one's complement sum of 16-bit words, an odd last byte padded (RFC 1071), the slow way."""
    total = 0
    for at in range(0, len(octets), 2):
        total += octets[at] << 8 | (octets[at + 1] if at + 1 < len(octets) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet of TCP or UDP, by its fields."""

    payload: bytes
    src: bytes = bytes((10, 5, 72, 2))
    dst: bytes = bytes((10, 5, 9, 2))
    ports: bytes = b"\x14\x51\xa0\x01"
    tos: int = 0
    ident: int = 7
    fragment: int = 0x4000
    ttl: int = 62
    ip_options: bytes = b""
    protocol: int = 6
    sequence: int = 1000
    ack: int = 2000
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = b""

    @property
    def header(self) -> int:
        return 20 + len(self.ip_options) + (20 + len(self.options) if self.protocol == 6 else 8)

    def octets(self, *, partial: bool = False, no_checksum: bool = False) -> bytes:
        """On the wire; ``partial``: with the pseudo header's sum for a checksum, as the kernel leaves it to a device."""
        if self.protocol == 6:
            upper = (
                self.ports
                + self.sequence.to_bytes(4, "big")
                + self.ack.to_bytes(4, "big")
                + bytes((((20 + len(self.options)) // 4) << 4, self.flags))
                + self.window.to_bytes(2, "big")
                + bytes(2)
                + self.urgent.to_bytes(2, "big")
                + self.options
            )
            field = 16
        else:
            upper = self.ports + (8 + len(self.payload)).to_bytes(2, "big") + bytes(2)
            field = 6
        upper += self.payload
        pseudo = self.src + self.dst + bytes((0, self.protocol)) + len(upper).to_bytes(2, "big")
        if partial:
            check = folded(pseudo)
        else:
            check = 0xFFFF - folded(pseudo + upper)
            if self.protocol == 17:
                check = 0 if no_checksum else check or 0xFFFF
        upper = upper[:field] + check.to_bytes(2, "big") + upper[field + 2 :]
        ip = (
            bytes((0x45 + len(self.ip_options) // 4, self.tos))
            + (20 + len(self.ip_options) + len(upper)).to_bytes(2, "big")
            + self.ident.to_bytes(2, "big")
            + self.fragment.to_bytes(2, "big")
            + bytes((self.ttl, self.protocol, 0, 0))
            + self.src
            + self.dst
            + self.ip_options
        )
        return ip[:10] + (0xFFFF - folded(ip)).to_bytes(2, "big") + ip[12:] + upper

    def segments(self, piece: int) -> list[Packet]:
        """What a router with segmentation sends for it."""
        made = []
        starts = range(0, len(self.payload), piece)
        for number, start in enumerate(starts):
            flags = self.flags
            if start != starts[-1]:
                flags &= ~(FIN | PSH)
            if number:
                flags &= ~CWR
            made.append(
                replace(
                    self,
                    payload=self.payload[start : start + piece],
                    ident=(self.ident + number) & 0xFFFF,
                    sequence=(self.sequence + start) & 0xFFFFFFFF,
                    flags=flags,
                )
            )
        return made


TIMESTAMPS = b"\x01\x01\x08\x0a\x11\x22\x33\x44\x55\x66\x77\x88"
SACK = b"\x01\x01\x05\x0a" + bytes(range(8))

packets = st.builds(
    Packet,
    payload=st.integers(1, 6000).flatmap(
        lambda size: st.sampled_from([bytes(size), b"\xff" * size]) | st.randoms().map(lambda random: random.randbytes(size))
    ),
    src=st.binary(min_size=4, max_size=4),
    ports=st.binary(min_size=4, max_size=4),
    tos=st.integers(0, 255),
    ident=st.integers(0, 0xFFFF) | st.integers(0xFFF0, 0xFFFF),
    fragment=st.sampled_from([0, 0x4000]),
    ttl=st.integers(2, 255),
    protocol=st.sampled_from([6, 17]),
    sequence=st.integers(0, 2**32 - 1) | st.integers(2**32 - 3000, 2**32 - 1),
    ack=st.integers(0, 2**32 - 1),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | PSH | FIN, ACK | ECE, ACK | CWR, ACK | CWR | ECE | PSH]),
    window=st.integers(0, 0xFFFF),
    urgent=st.sampled_from([0, 5]),
    options=st.sampled_from([b"", TIMESTAMPS, TIMESTAMPS + SACK, b"\x01" * 40]),
)


# -------------------------------------------------------------------------------------------------------------- split


def segmented(segmenter: Segmenter, packet: Packet, piece: int, at: int = 0, kind: int | None = None) -> Segments | None:
    """As the forwarder does it: the packet stands somewhere in a buffer full of what was there before."""
    raw = packet.octets(partial=True)
    buffer = bytearray(b"\xee" * at + raw + b"\xee" * 100)
    if kind is None:
        kind = KIND_TCP if packet.protocol == 6 else KIND_UDP
    return segmenter.segment(buffer, np.frombuffer(buffer, np.uint8), at, len(raw), kind, piece)


def pieces(cut: Segments | None) -> list[bytes]:
    """The packets of a result, as the kernel cuts them."""
    assert cut is not None
    octets = bytes(cut.octets)
    found = [octets[at : at + cut.size] for at in range(0, len(octets), cut.size)]
    assert len(found) == cut.count
    return found


SEGMENTER = Segmenter()


@settings(max_examples=300, deadline=None)
@given(packets, st.integers(1, 1500), st.integers(0, 3), st.sampled_from([b"", b"\x94\x04\x00\x00"]))
def test_split_is_what_a_router_sends(packet: Packet, piece: int, at: int, ip_options: bytes) -> None:
    packet = replace(packet, ip_options=ip_options)
    if piece < 20:
        packet = replace(packet, payload=packet.payload[: 60 * piece])
    assert pieces(segmented(SEGMENTER, packet, piece, at)) == [each.octets() for each in packet.segments(piece)]


@pytest.mark.parametrize("size", [1, 1420, 1421, 2839, 2840, 65483])
@pytest.mark.parametrize("piece", [535, 1420, 8949])
@pytest.mark.parametrize("protocol", [6, 17])
def test_split_of_every_size(size: int, piece: int, protocol: int) -> None:
    packet = Packet(bytes(range(251)) * 261, protocol=protocol)
    packet = replace(packet, payload=packet.payload[: min(size, 65535 - packet.header)], ident=0xFFF8, sequence=2**32 - 4000)
    assert pieces(segmented(SEGMENTER, packet, piece)) == [each.octets() for each in packet.segments(piece)]


def test_split_ids_and_checksums_at_every_turn() -> None:
    payload = bytes(3 * 40)
    for ident in (*range(0xFFF0, 0x10000), *range(0, 0xFFF0, 331)):
        packet = Packet(payload, ident=ident)
        assert pieces(segmented(SEGMENTER, packet, 40)) == [each.octets() for each in packet.segments(40)]


@pytest.mark.parametrize("protocol", [6, 17])
def test_split_checksums_that_come_out_even(protocol: int) -> None:
    """A sum of 0xffff is sent as 0 in TCP and as 0xffff in UDP."""
    seen = set()
    for low in range(0x10000):
        packet = Packet(low.to_bytes(2, "big") + bytes(2), protocol=protocol)
        raw = packet.octets()
        at = 36 if protocol == 6 else 26
        if raw[at : at + 2] in (b"\0\0", b"\xff\xff"):
            assert pieces(segmented(SEGMENTER, packet, 2))[0] == packet.segments(2)[0].octets()
            seen.add(pieces(segmented(SEGMENTER, replace(packet, payload=packet.payload), 4))[0][at : at + 2])
    assert seen == {b"\0\0" if protocol == 6 else b"\xff\xff"}


@pytest.mark.parametrize(
    ("packet", "piece", "kind"),
    [
        (Packet(b"x" * 100), 0, KIND_TCP),
        (Packet(b""), 10, KIND_TCP),
        (Packet(b"x" * 100, fragment=0x2000), 10, KIND_TCP),
        (Packet(b"x" * 100, fragment=1), 10, KIND_TCP),
        (Packet(b"x" * 100), 10, KIND_UDP),
        (Packet(b"x" * 100, protocol=17), 10, KIND_TCP),
        (Packet(b"x" * 100, protocol=17), 10, 3),
        (Packet(b"x" * 100, protocol=1), 10, KIND_TCP),
        (Packet(b"x" * 60000), 1, KIND_TCP),
        (Packet(b"x" * 65490), 65470, KIND_TCP),  # more than a datagram carries
    ],
)
def test_what_no_kernel_hands_over_is_not_segmented(packet: Packet, piece: int, kind: int) -> None:
    assert segmented(SEGMENTER, packet, piece, kind=kind) is None


# --------------------------------------------------------------------------------------------------------------- coalescing


class Receiver:
    """A coalescer and the buffer that packets are received into."""

    def __init__(self, offloads: Offload = ALL) -> None:
        self.buffer = bytearray(b"\xee" * (2 << 16))
        self.coalescer = Coalescer(self.buffer, np.frombuffer(self.buffer, np.uint8), offloads)

    def take(self, received: list[bytes]) -> list[bytes]:
        """What is written to the device, each with its virtio header."""
        raw = b"".join(received)
        size = len(received[0])
        assert all(len(each) == size for each in received[:-1])
        assert 0 < len(received[-1]) <= size
        self.buffer[: len(raw)] = raw
        made = []
        reached = 0
        for first, past in self.coalescer.runs(len(raw), size):
            assert first == reached < past
            reached = past
            if past - first == 1:
                made.append(bytes(HEADER_BYTES) + received[first])
            else:
                made.append(b"".join(self.coalescer.coalesce(first, past, len(raw), size)))
        assert reached == len(received)
        assert bytes(self.buffer[: len(raw)]) == raw
        return made


RECEIVER = Receiver()


def whole(packet: Packet, piece: int) -> bytes:
    """The packet as a GSO packet with its virtio header."""
    kind = KIND_UDP if packet.protocol == 17 else KIND_TCP | (KIND_ECN if packet.flags & CWR else 0)
    at = 6 if packet.protocol == 17 else 16
    return HEADER.pack(NEEDS_CHECKSUM, kind, packet.header, piece, 20, at) + packet.octets(partial=True)


def as_it_is(packet: Packet) -> bytes:
    return bytes(HEADER_BYTES) + packet.octets()


@settings(max_examples=300, deadline=None)
@given(packets, st.integers(21, 1500))
def test_coalescing_undoes_segmentation(packet: Packet, piece: int) -> None:
    packet = replace(packet, payload=packet.payload[: 60 * piece])
    segments = [each.octets() for each in packet.segments(piece)]
    wanted = [whole(packet, piece)] if len(segments) > 1 else [as_it_is(packet)]
    if packet.ident + len(segments) > 0x10000:
        assert len(RECEIVER.take(segments)) >= 1
    assert RECEIVER.take(segments) == wanted


BASE = Packet(bytes(range(200)) * 5, options=TIMESTAMPS)  # five of 200 bytes
BASE_UDP = replace(BASE, protocol=17)


def changed(base: Packet, **fields: object) -> list[Packet]:
    """Five segments with the middle one changed."""
    segments = base.segments(200)
    segments[2] = replace(segments[2], **fields)  # type: ignore[arg-type]
    return segments


ODD_ONES: list[tuple[Packet, dict[str, object]]] = [
    *((BASE, {"flags": ACK | flag}) for flag in (SYN, RST, URG, ECE)),
    (BASE, {"flags": 0}),
    (BASE, {"sequence": 1}),
    (BASE, {"ack": 1}),
    (BASE, {"window": 1}),
    (BASE, {"urgent": 1}),
    (BASE, {"options": TIMESTAMPS[:-1] + b"\0"}),
    *(
        (base, fields)
        for base in (BASE, BASE_UDP)
        for fields in (
            {"ident": 1},
            {"ttl": 9},
            {"tos": 1},
            {"fragment": 0},
            {"fragment": 0x6000},
            {"fragment": 0x4001},
            {"fragment": 0xC000},
            {"src": b"abcd"},
            {"dst": b"abcd"},
            {"ports": b"abcd"},
            {"protocol": 6 if base.protocol == 17 else 17},
        )
    ),
]


@pytest.mark.parametrize(("base", "fields"), ODD_ONES)
def test_an_odd_one_is_passed_on_alone(base: Packet, fields: dict[str, object]) -> None:
    segments = changed(base, **fields)
    if len({each.header for each in segments}) > 1:  # keep them equal-sized
        segments[2] = replace(segments[2], payload=bytes(200 + segments[0].header - segments[2].header))
    made = RECEIVER.take([each.octets() for each in segments])
    joined = replace(segments[0], payload=base.payload[:400]), replace(segments[3], payload=base.payload[600:])
    assert made == [whole(joined[0], 200), as_it_is(segments[2]), whole(joined[1], 200)]


@pytest.mark.parametrize("at", [10, 11, 30, 37, 60, 251])
@pytest.mark.parametrize("base", [BASE, BASE_UDP])
def test_a_wrong_checksum_is_not_covered_up(base: Packet, at: int) -> None:
    received = [each.octets() for each in base.segments(200)]
    at = min(at, len(received[2]) - 1)
    received[2] = received[2][:at] + bytes([received[2][at] ^ 0x10]) + received[2][at + 1 :]
    made = RECEIVER.take(received)
    assert bytes(HEADER_BYTES) + received[2] in made
    assert len(made) == 3


def test_push_and_fin_end_a_run_and_cwr_begins_one() -> None:
    for flag, expected in ((PSH, [3, 2]), (FIN, [3, 2]), (CWR, [2, 3])):
        made = RECEIVER.take([each.octets() for each in changed(BASE, flags=ACK | flag)])
        assert [(len(each) - 62) // 200 for each in made] == expected


def test_cwr_is_left_alone_where_the_device_does_not_know_it() -> None:
    segments = replace(BASE, flags=ACK | CWR).segments(200)
    made = Receiver(ALL & ~Offload.TCP_ECN).take([each.octets() for each in segments])
    assert [(len(each) - 62) // 200 for each in made] == [1, 4]


def test_ids_that_stay_are_joined_where_they_mean_nothing() -> None:
    segments = [replace(each, ident=5) for each in BASE.segments(200)]
    assert RECEIVER.take([each.octets() for each in segments]) == [whole(replace(BASE, ident=5), 200)]
    segments = [replace(each, fragment=0) for each in segments]
    assert RECEIVER.take([each.octets() for each in segments]) == [as_it_is(each) for each in segments]
    mixed = [replace(each, ident=ident) for each, ident in zip(BASE.segments(200), (5, 5, 5, 6, 7), strict=True)]
    assert [(len(each) - 62) // 200 for each in RECEIVER.take([each.octets() for each in mixed])] == [3, 2]


def test_udp_without_checksum_is_not_joined() -> None:
    even = BASE_UDP.segments(200)  # so that the sum without a checksum is right
    even = [replace(each, payload=bytes(200)) for each in even]
    even = [replace(each, payload=bytes(198) + each.octets()[26:28]) for each in even]
    for segments in (BASE_UDP.segments(200), even):
        received = [each.octets(no_checksum=True) for each in segments]
        assert RECEIVER.take(received) == [bytes(HEADER_BYTES) + each for each in received]


def test_what_the_device_does_not_take_is_not_joined() -> None:
    tcp, udp = ([each.octets() for each in base.segments(200)] for base in (BASE, BASE_UDP))
    without = Receiver(ALL & ~Offload.UDP)
    assert len(without.take(udp)) == 5
    assert len(without.take(tcp)) == 1
    without.coalescer.forgo(0)
    assert len(without.take(tcp)) == 5


def test_two_flows_are_joined_each_for_itself() -> None:
    other = replace(BASE, ports=b"abcd", sequence=77)
    one, two = BASE.segments(200), other.segments(200)
    made = RECEIVER.take([each.octets() for each in [*one[:3], *two, *one[3:]]])
    assert [(len(each) - 62) // 200 for each in made] == [3, 5, 2]
    assert made[1] == whole(other, 200)
    shuffled = [each for pair in zip(one, two, strict=True) for each in pair]
    assert RECEIVER.take([each.octets() for each in shuffled]) == [as_it_is(each) for each in shuffled]


@pytest.mark.parametrize("last", [1, 8, 19, 20, 33, 52])
def test_a_last_one_without_payload_or_header_is_alone(last: int) -> None:
    received = [each.octets() for each in BASE.segments(200)]
    received[-1] = received[-1][:last]
    made = RECEIVER.take(received)
    assert len(made) == 2
    assert made[1] == bytes(HEADER_BYTES) + received[-1]


@pytest.mark.parametrize(
    "fields",
    [
        {"ip_options": b"\x01\x01\x01\x01"},
        {"fragment": 0x2000},
        {"flags": SYN},
        {"flags": ACK | URG},
        {"flags": ACK | RST},
        {"flags": ACK | PSH},
        {"protocol": 1},
    ],
)
def test_what_is_never_joined(fields: dict[str, object]) -> None:
    segments = [replace(each, **fields) for each in BASE.segments(200)]  # type: ignore[arg-type]
    assert RECEIVER.take([each.octets() for each in segments]) == [as_it_is(each) for each in segments]


# -------------------------------------------------------------------------------------------------------------- burst


def table() -> PeerTable:
    made = PeerTable(0x0A054800, 24, 8285)
    made.set(0x0A050900, 24, 0xC0000202)
    return made


@given(st.lists(packets, min_size=2, max_size=2), st.integers(1, 30), st.integers(1, 64), st.booleans())
def test_a_burst_ages_and_completes_as_one_by_one(pair: list[Packet], half: int, count: int, partial: bool) -> None:
    alike = [replace(pair[number % 2], payload=bytes([number]) * half * 2, protocol=pair[0].protocol) for number in range(count)]
    alike = [replace(each, options=alike[0].options) for each in alike]
    memory = bytearray(b"".join(each.octets(partial=partial) for each in alike))
    size = len(memory) // count
    head = HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, 20, 16 if pair[0].protocol == 6 else 6) if partial else bytes(HEADER_BYTES)
    before = bytes(memory)
    peer = Batch(np.frombuffer(memory, np.uint8)).prepare(0, size, count, head * count, table())
    assert peer == ("192.0.2.2", 8285)
    for number, each in enumerate(alike):
        wire = replace(each, ttl=each.ttl - 1).octets()
        found = bytes(memory[number * size : (number + 1) * size])
        if each.protocol == 6 and partial and wire[36:38] == b"\0\0":
            wire = wire[:36] + b"\xff\xff" + wire[38:]  # as Linux for a single packet
        assert found == wire
        word = ttl_decremented(int.from_bytes(before[number * size + 8 : number * size + 12], "big"))
        assert found[8:12] == word.to_bytes(4, "big")


def test_a_burst_of_unlike_packets_is_left_untouched() -> None:
    base = Packet(bytes(20), protocol=17)
    plain = bytes(HEADER_BYTES)
    for odd in (
        {"dst": bytes((10, 5, 10, 2))},
        {"ttl": 1},
        {"ip_options": b"\x01" * 4, "payload": bytes(16)},
    ):
        raw = b"".join(each.octets() for each in (base, replace(base, **odd), base))  # type: ignore[arg-type]
        memory = bytearray(raw)
        assert Batch(np.frombuffer(memory, np.uint8)).prepare(0, len(raw) // 3, 3, plain * 3, table()) is None
        assert memory == raw
    raw = base.octets()
    for bent in (b"\x65" + raw[1:], raw[:2] + b"\0\x31" + raw[4:]):
        memory = bytearray(raw + bent)
        assert Batch(np.frombuffer(memory, np.uint8)).prepare(0, len(raw), 2, plain * 2, table()) is None
    memory = bytearray(raw * 2)
    heads = plain + HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, 20, 6)
    assert Batch(np.frombuffer(memory, np.uint8)).prepare(0, len(raw), 2, heads, table()) is None
    wrong = HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, 20, 60)
    assert Batch(np.frombuffer(memory, np.uint8)).prepare(0, len(raw), 2, wrong * 2, table()) is None


def test_what_is_kept_is_bounded() -> None:
    kept: Cache[int, str] = Cache(str, 3)
    for number in range(10):
        assert kept[number] == str(number)
    assert len(kept) == 3
    assert kept[9] is kept[9]
