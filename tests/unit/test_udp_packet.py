"""The packet path: each decision, and every checksum against an independent full computation (scapy's)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6

from backends.udp.counters import COUNTERS
from backends.udp.protocol import Guard
from backends.udp.worker.ingress import PASSED, IngressFilter
from backends.udp.worker.packet import checksum, inbound, outbound, ttl_decremented
from backends.udp.worker.peers import PeerTable

OWN = IPNetwork("10.5.72.0/24")
PEER, OTHER, STRANGER = "192.0.2.2", "192.0.2.3", "198.51.100.9"


@pytest.fixture
def table() -> PeerTable:
    made = PeerTable(OWN.first, OWN.prefixlen, 8285)
    made.set(int(IPAddress("10.5.9.0")), 24, int(IPAddress(PEER)))
    made.set(int(IPAddress("10.5.10.0")), 24, int(IPAddress(OTHER)))
    return made


def buffer(packet: bytes) -> bytearray:
    """A packet at the head of a larger buffer full of what an earlier one left."""
    return bytearray(packet + b"\xee" * 100)


def send(packet: bytes, table: PeerTable) -> object:
    """The decision on a packet from the TUN, drops by name."""
    verdict = outbound(buffer(packet), len(packet), table)
    return COUNTERS[verdict] if isinstance(verdict, int) else verdict


def ingress(table: PeerTable, guard: Guard) -> IngressFilter:
    return IngressFilter(table, (OWN.first, OWN.prefixlen), (int(IPAddress("10.5.0.0")), 16), guard, lambda _: False)


def receive(packet: bytes, sender: str, table: PeerTable, guard: Guard = "strict") -> str:
    """The decision on a datagram, by name."""
    verdict = inbound(buffer(packet), len(packet), sender, ingress(table, guard))
    return "passed" if verdict == PASSED else COUNTERS[verdict]


def out(**fields: object) -> bytes:
    """A packet of ours to a peer."""
    return bytes(IP(**{"src": "10.5.72.2", "dst": "10.5.9.2", **fields}) / UDP(sport=1000, dport=2000) / b"payload")


def into(**fields: object) -> bytes:
    """A packet of a peer to us."""
    return out(**{"src": "10.5.9.2", "dst": "10.5.72.2", **fields})


# ------------------------------------------------------------------------------------------------- TTL and checksum


@given(
    st.integers(1, 255),
    st.integers(0, 255),
    st.integers(0, 0xFFFF),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
)
def test_aged_equals_a_full_computation(ttl: int, proto: int, ident: int, src: int, dst: int, tos: int) -> None:
    layers = {
        "ttl": ttl,
        "proto": proto,
        "id": ident,
        "src": str(IPAddress(src)),
        "dst": str(IPAddress(dst)),
        "tos": tos,
        "len": 20,
    }
    before, after = bytes(IP(**layers)), bytes(IP(**{**layers, "ttl": ttl - 1}))
    assert ttl_decremented(int.from_bytes(before[8:12], "big")).to_bytes(4, "big") == after[8:12]


def test_aged_for_every_checksum_stays_valid_and_is_never_ffff() -> None:
    for value in range(0xFFFF):
        word = ttl_decremented(0x4011_0000 | value)
        assert word >> 16 == 0x3F11
        assert word & 0xFFFF != 0xFFFF
        # The sum of the changed words and their checksum is the same in one's complement.
        assert (0x3F11 + (word & 0xFFFF)) % 0xFFFF == (0x4011 + value) % 0xFFFF


def aged_by_scapy(packet: bytes) -> bytes:
    """The packet with one hop less and a checksum made from nothing."""
    layers = IP(packet)
    layers.ttl -= 1
    del layers.chksum
    return bytes(layers)


def test_only_ttl_and_checksum_of_a_packet_change(table: PeerTable) -> None:
    packet = out(ttl=64, options=[b"\x94\x04\x00\x00"])
    held = buffer(packet)
    assert outbound(held, len(packet), table) == (PEER, 8285)
    assert held == buffer(aged_by_scapy(packet))
    packet = into(ttl=64)
    held = buffer(packet)
    assert inbound(held, len(packet), PEER, ingress(table, "strict")) == PASSED
    assert held == buffer(aged_by_scapy(packet))


@given(st.binary(max_size=80))
def test_checksum_verifies(octets: bytes) -> None:
    padded = octets + b"\0" * (len(octets) % 2)
    total = sum(padded[i] << 8 | padded[i + 1] for i in range(0, len(padded), 2)) + checksum(octets)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


# ------------------------------------------------------------------------------------------------------- outbound


def test_a_packet_goes_to_the_peer_that_owns_its_destination(table: PeerTable) -> None:
    assert send(out(), table) == (PEER, 8285)
    assert send(out(dst="10.5.10.255"), table) == (OTHER, 8285)
    assert send(bytes(IP(src="10.5.72.2", dst="10.5.9.2")), table) == (PEER, 8285)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "outbound_dropped_short"),
        (out()[:19], "outbound_dropped_short"),
        (bytes(IPv6(dst="ff02::2") / ICMP()), "outbound_dropped_not_ipv4"),
        (out()[:-1], "outbound_dropped_length"),
        (out() + b"x", "outbound_dropped_length"),
        (b"\x44" + out()[1:], "outbound_dropped_length"),
        (b"\x4f" + out()[1:], "outbound_dropped_length"),  # a header of 60 bytes in a packet of 35
        (out(dst="10.5.11.1"), "outbound_dropped_no_peer"),
        (out(dst="10.5.72.3"), "outbound_dropped_no_peer"),
        (out(ttl=1), "outbound_dropped_ttl"),
        (out(ttl=0), "outbound_dropped_ttl"),
        (out(ttl=2), (PEER, 8285)),
    ],
)
def test_what_is_not_sent_says_why(packet: bytes, reason: object, table: PeerTable) -> None:
    assert send(packet, table) == reason


# -------------------------------------------------------------------------------------------------------- inbound


@pytest.mark.parametrize(
    ("packet", "sender", "reason"),
    [
        (into(), PEER, "passed"),
        (into(src="10.5.9.0"), PEER, "passed"),  # the peer host itself: its TUN address
        (into(dst="10.5.72.0"), PEER, "passed"),
        (into(ttl=2), PEER, "passed"),
        (into(ttl=1), PEER, "inbound_dropped_ttl"),
        (into()[:19], PEER, "inbound_dropped_short"),
        (bytes(IPv6(dst="ff02::2") / ICMP()), PEER, "inbound_dropped_not_ipv4"),
        (into()[:-1], PEER, "inbound_dropped_length"),
        (into() + b"x", PEER, "inbound_dropped_length"),
        (b"\x44" + into()[1:], PEER, "inbound_dropped_length"),
        (into(), STRANGER, "inbound_dropped_outer_source"),
        (into(), OTHER, "inbound_dropped_inner_source"),
        (into(src="10.5.11.2"), PEER, "inbound_dropped_inner_source"),
        (into(src="10.5.72.9"), PEER, "inbound_dropped_inner_source"),  # ours, from outside
        (into(dst="10.5.10.2"), PEER, "inbound_dropped_inner_destination"),
        (into(dst="10.5.73.0"), PEER, "inbound_dropped_inner_destination"),
        (into(dst="127.0.0.1"), PEER, "inbound_dropped_inner_destination"),
    ],
)
def test_strict_lets_in_only_a_peers_own_packets_for_us(packet: bytes, sender: str, reason: str, table: PeerTable) -> None:
    assert receive(packet, sender, table) == reason


def test_guard_peers_looks_at_the_outer_source_only_and_off_at_none(table: PeerTable) -> None:
    odd = into(src="203.0.113.1", dst="10.5.10.2")
    assert receive(odd, PEER, table, "peers") == "passed"
    assert receive(odd, STRANGER, table, "peers") == "inbound_dropped_outer_source"
    assert receive(odd, STRANGER, table, "off") == "passed"
    assert receive(into()[:-1], PEER, table, "off") == "inbound_dropped_length"


@pytest.mark.parametrize("size", [1472, 1473, 9000, 65507])
def test_a_datagram_of_any_length_passes(size: int, table: PeerTable) -> None:
    """What is longer than the device's MTU is the kernel's to cut or to refuse."""
    packet = bytes(IP(src="10.5.9.2", dst="10.5.72.2") / UDP(sport=1000, dport=2000) / bytes(size - 28))
    assert len(packet) == size
    assert receive(packet, PEER, table) == "passed"
    assert receive(packet[:-1], PEER, table) == "inbound_dropped_length"
