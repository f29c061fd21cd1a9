"""Fragments against scapy and against a reassembly in plain Python; and a path that grows, shrinks and contradicts itself."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress
from scapy.layers.inet import IP, UDP, defragment
from scapy.packet import Raw
from scapy.plist import PacketList

from backends.udp.counters import CELLS, COUNTERS, HEARTBEAT
from backends.udp.protocol import SOL_UDP, UDP_SEGMENT, Setting
from backends.udp.worker.fragment import fragments
from backends.udp.worker.icmp import TOO_BIG, error_for
from backends.udp.worker.icmp_errors import IcmpErrors
from backends.udp.worker.peers import Peer, PeerTable
from backends.udp.worker.pmtu import FRESH_S, SMALLEST, PathMtu
from backends.udp.worker.send import TxBatch
from tests.unit.test_udp_fast_path import folded

PEER = ("192.0.2.2", 8285)
COPIED = (b"\x83\x07\x04\x0a\x05\x09\x02", b"\x94\x04\x00\x00", b"\x88\x04\x12\x34")  # loose source route, router alert, stream id
ONCE = (b"\x07\x07\x04\x00\x00\x00\x00", b"\x44\x08\x05\x00\x00\x00\x00\x00")  # record route, timestamp
NOTHING = b"\x01"


def cut(packet: bytes, room: int) -> list[bytes]:
    return fragments(memoryview(packet), room)


def place_of(packet: bytes) -> tuple[int, bool]:
    """Offset in bytes, and whether more follows."""
    word = int.from_bytes(packet[6:8], "big")
    return (word & 0x1FFF) * 8, bool(word & 0x2000)


# ------------------------------------------------------------------------------------------------------------ fragments


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A packet's header with options, and those that are in every fragment."""
    options = draw(st.lists(st.sampled_from((*COPIED, *ONCE, NOTHING)), max_size=5))
    assume(sum(map(len, options)) <= 40)
    fields = {
        "tos": draw(st.integers(0, 255)),
        "id": draw(st.integers(0, 65535)),
        "ttl": draw(st.integers(1, 255)),
        "proto": draw(st.sampled_from((6, 17, 1, 99))),
        "frag": draw(st.sampled_from((0, 0, 1, 100, 0x1F00))),
        "flags": draw(st.sampled_from((0, 1, 4, 5))),  # none, MF, the bit that nobody uses
    }
    raw = b"".join(options)
    raw += bytes(-len(raw) % 4)
    header = bytearray(bytes(IP(src="10.5.72.2", dst="10.5.9.2", **fields)) + raw)
    header[0] = 0x40 | len(header) // 4
    return bytes(header), [option for option in options if option in COPIED]


@settings(max_examples=500, deadline=None)
@given(headers(), st.integers(0, 4000), st.integers(28, 2000), st.integers(0, 2**32))
def test_fragments_are_put_together_to_the_byte(made: tuple[bytes, list[bytes]], length: int, room: int, seed: int) -> None:
    header, copied = made
    payload = random.Random(seed).randbytes(length)
    packet = bytearray(header + payload)
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = (0xFFFF - folded(bytes(packet[:10]) + bytes(packet[12 : len(header)]))).to_bytes(2, "big")
    assume(len(packet) > room)
    start, more = place_of(packet)
    pieces = cut(bytes(packet), room)
    later = 20 + -(-sum(map(len, copied)) // 4) * 4
    if room < len(header) + 8 or room < later + 8:
        assert pieces == []
        return
    if not pieces:  # reaches beyond the longest packet: never a whole one
        assert start + length > 65535
        return
    assert len(pieces) > 1
    at = start
    for piece in pieces:
        size = (piece[0] & 15) * 4
        first, last = piece is pieces[0], piece is pieces[-1]
        assert len(piece) <= room
        assert int.from_bytes(piece[2:4], "big") == len(piece)
        assert folded(piece[:size]) == 0xFFFF
        assert place_of(piece) == (at, more or not last)
        assert (len(piece) - size) % 8 == 0 or last
        assert piece[6] & 0x80 == packet[6] & 0x80
        assert (piece[1], piece[4:6], piece[8:10], piece[12:20]) == (packet[1], packet[4:6], packet[8:10], packet[12:20])
        assert piece[20:size].rstrip(b"\0") == (header[20:] if first else b"".join(copied)).rstrip(b"\0")
        at += len(piece) - size
    assert b"".join(piece[(piece[0] & 15) * 4 :] for piece in pieces) == payload
    # As long as they can be: what follows does not fit into what is before it.
    assert all(len(one) + 8 > room for one in pieces[:-1])


@pytest.mark.parametrize("room", [68, 576, 1372, 1373, 1471])
@pytest.mark.parametrize("options", [[], [b"\x94\x04\x00\x00"]], ids=["plain", "options"])
def test_scapy_puts_them_together(room: int, options: list[bytes]) -> None:
    whole = (
        IP(src="10.5.72.2", dst="10.5.9.2", id=77, ttl=9, options=options)
        / UDP(sport=1, dport=2)
        / random.Random(room).randbytes(1444)
    )
    pieces = [IP(piece) for piece in cut(bytes(whole), room)]
    assert len(pieces) > 1
    together = defragment(PacketList(pieces))
    assert len(together) == 1
    assert bytes(together[0].payload) == bytes(IP(bytes(whole)).payload)


def test_a_fragment_is_cut_again_and_all_of_them_make_the_first_packet() -> None:
    whole = bytes(IP(src="10.5.72.2", dst="10.5.9.2", id=5) / UDP() / random.Random(1).randbytes(5000))
    pieces = [small for large in cut(whole, 1500) for small in cut(large, 577)]
    assert max(map(len, pieces)) <= 577
    together = defragment(PacketList([IP(piece) for piece in pieces]))
    assert len(together) == 1
    assert bytes(together[0].payload) == whole[20:]


@pytest.mark.parametrize("options", [b"\x83\x00\x00\x00", b"\x83\x01\x00\x00", b"\x83\x09\x00\x00", b"\x01\x01\x01\x83"])
def test_options_that_cannot_be_read_stay_with_the_first(options: bytes) -> None:
    packet = bytearray(bytes(IP(src="10.5.72.2", dst="10.5.9.2")) + options + bytes(100))
    packet[0] = 0x46
    packet[2:4] = len(packet).to_bytes(2, "big")
    first, second, *_ = cut(bytes(packet), 68)
    assert first[20:24] == options
    assert second[0] == 0x45
    assert folded(second[:20]) == 0xFFFF


def test_a_packet_that_would_be_longer_than_any_is_not_made() -> None:
    assert cut(bytes(IP(frag=0x1FFF) / Raw(bytes(200))), 100) == []
    assert len(cut(bytes(IP(frag=0x1FFF - 20) / Raw(bytes(160))), 100)) == 2


# ----------------------------------------------------------------------------------------------------------------- path


class Road:
    """Stands for a socket whose path takes ``mtu`` bytes, the kernel's knowledge of it, and the device."""

    def __init__(self, mtu: int = 1500) -> None:
        self.mtu = mtu
        self.says: int | None = None
        self.asked = 0
        self.fails = 0
        self.now = 0.0
        self.sent: list[bytes] = []
        self.injected: list[bytes] = []
        self.counts = [0] * CELLS
        table = PeerTable(int(IPAddress("10.5.72.0")), 24, 8285)
        setting = Setting(0, 0, 0, 0, 0, 8285, int(IPAddress("10.5.72.0")), 24, 0x0A050000, 16, "strict")
        answers = IcmpErrors(setting, self.counts, table, self, self.inject, self.clock)  # type: ignore[arg-type]
        self.path = PathMtu(self, self.counts, answers, self.clock, self.ask)  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.now

    def inject(self, packet: bytes) -> bool:
        self.injected.append(packet)
        return True

    def ask(self, sock: object, peer: Peer) -> int:
        assert (sock, peer) == (self, PEER)
        self.asked += 1
        return self.says or self.mtu

    def sendto(self, octets: bytes | memoryview, peer: Peer) -> None:
        assert peer == PEER
        if len(octets) + 28 > self.mtu:
            raise OSError(errno.EMSGSIZE, "Message too long")
        if self.fails:
            raise OSError(self.fails, "")
        self.sent.append(bytes(octets))

    def sendmsg(self, views: list[memoryview], notes: list[tuple[int, int, bytes]], flags: int, peer: Peer) -> None:
        ((level, option, raw),) = notes
        assert (level, option) == (SOL_UDP, UDP_SEGMENT)
        size = int.from_bytes(raw, "little")
        if size + 28 > self.mtu:
            raise OSError(errno.EINVAL, "")
        octets = b"".join(views)
        self.sent += [octets[at : at + size] for at in range(0, len(octets), size)]

    def send(self, *packets: bytes) -> None:
        """Packets of one size, of which the last may be shorter."""
        self.path.send((memoryview(b"".join(packets)),), len(packets[0]), PEER)

    @property
    def counted(self) -> dict[str, int]:
        return {name: count for name, count in zip(COUNTERS, self.counts[:HEARTBEAT], strict=True) if count}


def packet(size: int, flags: str = "") -> bytes:
    return bytes(IP(src="10.5.72.2", dst="10.5.9.2", id=size, flags=flags) / UDP() / bytes(size - 28))


@pytest.fixture
def road() -> Road:
    return Road(1400)


def test_what_fits_is_sent_and_nothing_is_asked(road: Road) -> None:
    road.send(packet(1372, "DF"), packet(1000))
    assert road.sent == [packet(1372, "DF"), packet(1000)]
    assert road.asked == 0
    assert road.counted == {"outbound_packets": 2, "outbound_bytes": 2372}


def test_with_df_the_sender_is_told_what_fits(road: Road) -> None:
    road.send(packet(1373, "DF"))
    assert road.sent == []
    assert road.injected == [error_for(packet(1373, "DF"), TOO_BIG, int(IPAddress("10.5.9.2")), 1372)]
    assert road.counted == {"outbound_dropped_too_big": 1, "icmp_fragmentation_needed": 1}


def test_without_df_it_is_cut_to_what_fits(road: Road) -> None:
    road.send(packet(1472))
    assert road.sent == cut(packet(1472), 1372)
    assert [len(each) for each in road.sent] == [1372, 120]
    assert road.injected == []
    assert road.counted == {"outbound_packets": 2, "outbound_bytes": 1492, "outbound_fragmented": 1}


def test_one_that_no_datagram_carries_is_refused_with_what_one_does() -> None:
    """A device of 65,508 bytes, and a path by loopback, whose MTU is 65,536."""
    road = Road(65_535)
    road.says = 65_536
    road.send(packet(65_507, "DF"), packet(65_507, "DF"))
    assert len(road.sent) == 2
    road.send(packet(65_508, "DF"))
    assert road.injected == [error_for(packet(65_508, "DF"), TOO_BIG, int(IPAddress("10.5.9.2")), 65_507)]


def test_the_kernel_is_asked_once_a_second(road: Road) -> None:
    for _ in range(10):
        road.send(packet(1472))
    assert road.asked == 1
    road.now += FRESH_S
    road.send(packet(1472))
    assert road.asked == 2


def test_a_path_that_grew_is_used_at_once(road: Road) -> None:
    road.send(packet(1472))
    road.mtu = 1500
    road.send(packet(1472))
    assert road.sent[-1] == packet(1472)


def test_a_path_that_shrank_costs_a_packet_and_is_asked_about_again(road: Road) -> None:
    road.send(packet(1472))
    road.mtu = 1300
    road.send(packet(1472))
    assert road.counts[COUNTERS.index("outbound_dropped_send_failed")] == 1
    road.send(packet(1472))
    assert [len(each) for each in road.sent[-2:]] == [1268, 224]
    road.mtu = 1200
    road.send(packet(1250, "DF"))  # shorter than what was believed to fit: that is asked about first
    assert IP(road.injected[-1]).nexthopmtu == 1172


def test_where_the_kernel_contradicts_itself_the_least_is_taken(road: Road) -> None:
    """Two routes to one peer, chosen by port: what is asked about need not be what is sent on."""
    road.says = 1500
    road.send(packet(1472))
    assert road.sent == cut(packet(1472), SMALLEST - 28)
    road.send(packet(1472, "DF"))
    assert IP(road.injected[-1]).nexthopmtu == SMALLEST - 28
    assert road.asked == 1


def test_what_cannot_even_be_cut_is_counted() -> None:
    road = Road(50)
    road.send(packet(1472))
    assert road.counted == {"outbound_dropped_send_failed": 1}


def test_what_fails_otherwise_is_lost(road: Road) -> None:
    road.fails = errno.ENOBUFS
    road.send(packet(1000), packet(1000))
    assert road.counted == {"outbound_dropped_send_failed": 2}
    assert road.asked == 0


@pytest.mark.parametrize(("sizes", "flags"), [((1472, 1472, 700), "DF"), ((1472,), "DF"), ((1472, 1472, 700), ""), ((1472,), "")])
def test_a_run_that_does_not_fit_is_refused_once_or_cut(road: Road, sizes: tuple[int, ...], flags: str) -> None:
    packets = [packet(size, flags) for size in sizes]
    box = TxBatch(road, road.counts, True, road.path)  # type: ignore[arg-type]
    box.add(memoryview(b"".join(packets)), sizes[0], len(sizes), PEER)
    box.flush()
    large, rest = [each for each in packets if len(each) > 1372], [each for each in packets if len(each) <= 1372]
    if flags:
        assert road.sent == rest
        assert road.injected == [error_for(packets[0], TOO_BIG, int(IPAddress("10.5.9.2")), 1372)]
        assert road.counts[COUNTERS.index("outbound_dropped_too_big")] == len(large)
    else:
        assert road.sent == [piece for each in large for piece in cut(each, 1372)] + rest
        assert road.counts[COUNTERS.index("outbound_fragmented")] == len(large)
    assert road.asked == 1
    box.add(memoryview(bytes(100) * 2), 100, 2, PEER)  # and the next run goes as ever
    box.flush()
    assert road.sent[-2:] == [bytes(100)] * 2
