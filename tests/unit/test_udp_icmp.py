"""ICMP errors: scapy reads every one, each is answered that should be and no other, and never too many."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.packet import Raw

from backends.udp.counters import CELLS, COUNTERS, HEARTBEAT, IN_INNER_SOURCE, IN_TTL, OUT_LENGTH, OUT_NO_PEER, OUT_TTL
from backends.udp.protocol import Setting
from backends.udp.worker.icmp import TIME_EXCEEDED, TOO_BIG, UNREACHABLE, Error, deserves_error, error_for
from backends.udp.worker.icmp_errors import IcmpErrors
from backends.udp.worker.peers import Peer, PeerTable
from backends.udp.worker.rate_limit import BURST, MOST_SHARES, PER_S, SHARE_BURST, SHARE_PER_S, Bucket, RateLimit

OWN = IPNetwork("10.5.72.0/24")
SOURCE = OWN.first
PEER = ("192.0.2.2", 8285)
ERRORS = {"unreachable": UNREACHABLE, "too big": TOO_BIG, "time exceeded": TIME_EXCEEDED}
FORM = {UNREACHABLE: (3, 0, 0, 8), TOO_BIG: (3, 4, 0xC0, 64), TIME_EXCEEDED: (11, 0, 0xC0, 64)}


def udp(**fields: object) -> bytes:
    return bytes(IP(**{"src": "10.5.72.2", "dst": "10.5.9.2", **fields}) / UDP(sport=1000, dport=2000) / b"more than is quoted")


# ----------------------------------------------------------------------------------------------------------------- form


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FORM)), st.integers(0, 10), st.binary(max_size=1500), st.integers(0, 65535), st.booleans())
def test_scapy_reads_every_message_as_it_was_meant(error: Error, options: int, payload: bytes, mtu: int, viewed: bool) -> None:
    packet = bytes(IP(src="10.5.72.2", dst="10.5.9.2", proto=99, options=[b"\x01"] * options * 4) / Raw(payload))
    reply = error_for(memoryview(packet) if viewed else bytearray(packet), error, SOURCE, mtu if error is TOO_BIG else 0)
    ip = IP(reply)
    assert (ip[ICMP].type, ip[ICMP].code, ip.tos, ip.ttl) == FORM[error]
    assert (ip.src, ip.dst, ip.id, ip.flags, ip.frag, ip.proto, ip.ihl, ip.len) == (
        "10.5.72.0",
        "10.5.72.2",
        0,
        0,
        0,
        1,
        5,
        len(reply),
    )
    assert len(reply) <= 576
    quoted = reply[28:]
    assert quoted == packet[: len(quoted)]
    most = (20 + 4 * options + 8) if error is UNREACHABLE else 548
    assert len(quoted) == min(len(packet), most)
    assert ip[ICMP].nexthopmtu == mtu if error is TOO_BIG else reply[24:28] == bytes(4)
    assert isinstance(ip[ICMP].payload, IPerror)
    again = IP(reply)
    del again.chksum, again[ICMP].chksum
    assert bytes(again) == reply


def test_unreachable_has_flannels_form() -> None:
    offender = udp(dst="10.5.200.1", options=[b"\x94\x04\x00\x00"])
    reply = error_for(offender, UNREACHABLE, SOURCE)
    assert reply == bytes(IP(src="10.5.72.0", dst="10.5.72.2", ttl=8, id=0) / ICMP(type=3, code=0) / offender[: 24 + 8])


# --------------------------------------------------------------------------------------------------------- what deserves one


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(
    ("fields", "answered"),
    [
        ({}, True),
        ({"flags": "MF"}, True),  # the first of its fragments
        ({"flags": "DF"}, True),
        ({"frag": 1}, False),
        ({"frag": 0x1FFF, "flags": "MF"}, False),
        ({"src": "0.0.0.0"}, False),
        ({"src": "0.1.2.3"}, False),
        ({"src": "127.0.0.1"}, False),
        ({"src": "223.255.255.255"}, True),
        ({"src": "224.0.0.1"}, False),
        ({"src": "240.0.0.1"}, False),
        ({"src": "255.255.255.255"}, False),
        ({"dst": "223.255.255.255"}, True),
        ({"dst": "224.0.0.1"}, False),
        ({"dst": "255.255.255.255"}, False),
    ],
)
def test_only_one_host_and_only_a_packets_beginning_is_answered(error: Error, fields: dict[str, object], answered: bool) -> None:
    assert deserves_error(udp(**fields), error) == answered


@pytest.mark.parametrize("kind", range(256))
def test_of_icmp_only_what_is_known_to_be_no_error_and_unreachable_none(kind: int) -> None:
    packet = bytes(IP(src="10.5.72.2", dst="10.5.9.2", proto=1) / Raw(bytes((kind, 0)) + bytes(6)))
    queries = {0, 8, 9, 10, *range(13, 19)}  # those with a number in RFC 792, 950 and 1256 that are no errors
    assert deserves_error(packet, TIME_EXCEEDED) == deserves_error(packet, TOO_BIG) == (kind in queries)
    assert not deserves_error(packet, UNREACHABLE)
    assert not deserves_error(packet[:20], TIME_EXCEEDED)  # nothing to tell by


@pytest.mark.parametrize(("options", "answered"), [(36, True), (40, False)])
def test_unreachable_is_kept_back_where_flannel_keeps_it_back(options: int, answered: bool) -> None:
    packet = udp(options=[b"\x01"] * options)
    assert deserves_error(packet, UNREACHABLE) == answered
    assert deserves_error(packet, TIME_EXCEEDED)


# ---------------------------------------------------------------------------------------------------------------- limit


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(8, 5, now=100)
    assert [bucket.take(100) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [bucket.take(100.25), bucket.take(100.25), bucket.take(100.25)] == [True, True, False]
    assert not bucket.take(100.3125)
    assert bucket.take(100.375)
    assert [bucket.take(900) for _ in range(7)] == [True] * 5 + [False] * 2  # no more than the burst is saved up


def test_one_address_has_a_share_and_leaves_the_rest_to_others() -> None:
    limit = RateLimit(0)
    assert sum(limit.allows(1, 0) for _ in range(1000)) == SHARE_BURST
    assert limit.allows(2, 0)
    assert sum(limit.allows(1, second / 1000) for second in range(10_000)) == pytest.approx(10 * SHARE_PER_S, abs=SHARE_BURST + 1)


def test_the_whole_is_limited_however_many_ask() -> None:
    limit = RateLimit(0)
    assert sum(limit.allows(address, 0) for address in range(5000)) == BURST
    told = sum(limit.allows(address, 1 + address / 10_000) for address in range(20_000))
    assert told == pytest.approx(2 * PER_S, abs=BURST + 1)


def test_addresses_are_not_remembered_for_ever() -> None:
    limit = RateLimit(0)
    for address in range(MOST_SHARES * 3 + 5):
        limit.allows(address, float(address))
        assert len(limit._shares) <= MOST_SHARES


# -------------------------------------------------------------------------------------------------------------- errors


class Place:
    """IcmpErrors with a device, a socket and a clock that are seen through."""

    def __init__(self, length: int = 24) -> None:
        self.now = 5.0
        self.counts = [0] * CELLS
        self.injected: list[bytes] = []
        self.posted: list[tuple[bytes, Peer]] = []
        self.takes = True
        table = PeerTable(OWN.first, length, 8285)
        table.set(int(IPAddress("10.5.9.0")), 24, int(IPAddress(PEER[0])))
        setting = Setting(0, 0, 0, 0, 0, 8285, OWN.first, length, 0x0A050000, 16, "strict")
        self.errors = IcmpErrors(setting, self.counts, table, self, self.inject, lambda: self.now)  # type: ignore[arg-type]

    def inject(self, packet: bytes) -> bool:
        self.injected.append(packet)
        return self.takes

    def sendto(self, packet: bytes, peer: Peer) -> None:
        if not self.takes:
            raise OSError(errno.ENOBUFS, "")
        self.posted.append((packet, peer))

    @property
    def counted(self) -> dict[str, int]:
        return {name: count for name, count in zip(COUNTERS, self.counts[:HEARTBEAT], strict=True) if count}


@pytest.fixture
def place() -> Place:
    return Place()


def test_a_spent_packet_of_ours_is_answered_into_the_device(place: Place) -> None:
    packet = udp(ttl=1)
    place.errors.drop_outbound(OUT_TTL, packet)
    assert place.injected == [error_for(packet, TIME_EXCEEDED, SOURCE)]
    assert place.posted == []
    assert place.counted == {"outbound_dropped_ttl": 1, "icmp_time_exceeded": 1}


def test_a_spent_packet_of_a_peers_is_answered_over_the_wire(place: Place) -> None:
    packet = udp(src="10.5.9.2", dst="10.5.72.2", ttl=1)
    place.errors.drop_inbound(IN_TTL, packet, PEER[0], 5)
    assert place.posted == [(error_for(packet, TIME_EXCEEDED, SOURCE), PEER)]
    assert place.injected == []
    assert place.counted == {"inbound_dropped_ttl": 5, "icmp_time_exceeded": 1}
    place.errors.drop_inbound(IN_TTL, udp(src="10.5.200.2", dst="10.5.72.2", ttl=1), PEER[0])  # guard off: nobody's
    assert len(place.posted) == 1


def test_an_unknown_subnet_is_answered_into_the_device(place: Place) -> None:
    place.errors.drop_outbound(OUT_NO_PEER, udp(dst="10.5.200.1"))
    place.errors.drop_outbound(OUT_NO_PEER, bytes(IP(src="10.5.72.2", dst="10.5.200.1") / ICMP()))
    assert place.injected == [error_for(udp(dst="10.5.200.1"), UNREACHABLE, SOURCE)]
    assert place.counted == {"outbound_dropped_no_peer": 2, "icmp_unreachable": 1}


def test_what_is_dropped_for_other_reasons_is_counted_in_silence(place: Place) -> None:
    place.errors.drop_outbound(OUT_LENGTH, b"")
    place.errors.drop_inbound(IN_INNER_SOURCE, b"", PEER[0], 3)
    assert (place.injected, place.posted) == ([], [])
    assert place.counted == {"outbound_dropped_length": 1, "inbound_dropped_inner_source": 3}


def test_too_big_is_told_once_to_each_pair_of_a_run_and_from_the_destination(place: Place) -> None:
    told: set[bytes] = set()
    first, second = udp(flags="DF"), bytes(IP(src="10.5.72.3", dst="10.5.9.2", flags="DF") / TCP() / bytes(1400))
    for packet in (first, second, first, second):
        place.errors.drop_too_big(packet, 1372, told)
    assert place.injected == [error_for(packet, TOO_BIG, int(IPAddress("10.5.9.2")), 1372) for packet in (first, second)]
    assert place.counted == {"outbound_dropped_too_big": 4, "icmp_fragmentation_needed": 2}


def test_our_own_broadcast_address_is_no_host(place: Place) -> None:
    place.errors.drop_outbound(OUT_TTL, udp(src="10.5.72.255"))
    assert place.counted == {"outbound_dropped_ttl": 1}
    smaller = Place(length=25)
    smaller.errors.drop_outbound(OUT_TTL, udp(src="10.5.72.127"))
    smaller.errors.drop_outbound(OUT_TTL, udp(src="10.5.72.255"))
    assert smaller.counted == {"outbound_dropped_ttl": 2, "icmp_time_exceeded": 1}


@pytest.mark.parametrize(
    "drop",
    [
        lambda errors: errors.drop_outbound(OUT_TTL, udp(ttl=1)),
        lambda errors: errors.drop_outbound(OUT_NO_PEER, udp(dst="10.5.200.1")),
        lambda errors: errors.drop_inbound(IN_TTL, udp(src="10.5.9.2", dst="10.5.72.2", ttl=1), PEER[0]),
        lambda errors: errors.drop_too_big(udp(flags="DF"), 1000, set()),
    ],
)
def test_what_is_one_too_many_is_counted_and_what_fails_is_no_answer(place: Place, drop: Callable[[IcmpErrors], None]) -> None:
    for _ in range(100):
        drop(place.errors)
    burst = int(SHARE_BURST)
    assert len(place.injected) + len(place.posted) == burst
    assert sorted(place.counted.values()) == [burst, 100 - burst, 100]
    assert place.counted["icmp_ratelimited"] == 100 - burst
    place.now += 1.5 / SHARE_PER_S
    drop(place.errors)
    assert len(place.injected) + len(place.posted) == burst + 1
    place.now += 1
    place.takes = False
    drop(place.errors)
    assert sorted(place.counted.values()) == [burst + 1, 100 - burst, 102]
