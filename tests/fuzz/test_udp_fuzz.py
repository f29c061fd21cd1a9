"""Any bytes from device or wire: never an exception, never a look past the packet's end, never past the ingress filter."""

from __future__ import annotations

import os

from hypothesis import given, seed, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork
from scapy.layers.inet import ICMP, IP, UDP

from backends.udp.counters import COUNTERS, OUT_NO_PEER, OUT_TTL
from backends.udp.protocol import GUARDS, Guard
from backends.udp.worker.fragment import fragments
from backends.udp.worker.icmp import TIME_EXCEEDED, TOO_BIG, UNREACHABLE, deserves_error, error_for
from backends.udp.worker.ingress import PASSED, IngressFilter
from backends.udp.worker.packet import SHORTEST, checksum, inbound, outbound
from backends.udp.worker.peers import PeerTable
from tests.fuzz.judge import Judge
from tests.fuzz.mutation import SEED

EXAMPLES = max(400, int(os.environ.get("UDP_FUZZ_COUNT", "20000")) // 500)
"""Each is tried in two ways, beside what scapy makes of it: hundreds of times as slow as the fast path."""
OWN, NINE = IPNetwork("10.5.72.0/24"), IPNetwork("10.5.9.0/24")
PEER = "192.0.2.2"
MTU = 200

TABLE = PeerTable(OWN.first, OWN.prefixlen, 8285)
TABLE.set(NINE.first, NINE.prefixlen, int(IPAddress(PEER)))
OURS, OUTSIDE = "192.0.2.1", "8.8.8.8"
INGRESS = {
    guard: IngressFilter(TABLE, (OWN.first, 24), (0x0A050000, 16), guard, lambda address: address == 0xC0000201) for guard in GUARDS
}
NETWORK, ADDRESSES = (0x0A050000, 0x0A05FFFF), frozenset((bytes((192, 0, 2, 1)),))
JUDGES = {guard: Judge((OWN.first, OWN.last), {PEER: (NINE.first, NINE.last)}, NETWORK, guard, ADDRESSES) for guard in GUARDS}

address = st.sampled_from(
    ["10.5.72.0", "10.5.72.9", "10.5.9.0", "10.5.9.255", "10.5.8.255", "10.5.73.0", "127.0.0.1", OURS, PEER, OUTSIDE]
)
well_formed = st.builds(
    lambda src, dst, ttl, options, upper: bytes(IP(src=src, dst=dst, ttl=ttl, options=[b"\x01"] * options) / upper),
    address,
    address,
    st.integers(0, 255),
    st.integers(0, 40),
    st.sampled_from([UDP(), ICMP(), UDP() / bytes(150)]),
)


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    """A packet that was in order, with some bytes changed and its end cut or lengthened."""
    packet = bytearray(draw(well_formed))
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(packet) - 1), st.integers(0, 255)), max_size=3)):
        packet[at] = value
    return (
        bytes(packet[: draw(st.integers(0, len(packet)))]) if draw(st.booleans()) else bytes(packet) + draw(st.binary(max_size=2))
    )


packets = st.one_of(st.binary(max_size=MTU + 20), well_formed, bent())


def filled(packet: bytes, stale: int) -> bytearray:
    """A buffer as the worker's: the packet, then what earlier ones left."""
    return bytearray(packet + bytes([stale]) * 100)


@seed(SEED)
@settings(max_examples=EXAMPLES, deadline=None)
@given(packets)
def test_outbound(packet: bytes) -> None:
    verdicts: list[object] = []
    for stale in (0x00, 0xFF):
        held = filled(packet, stale)
        verdict = outbound(held, len(packet), TABLE)
        verdicts.append(verdict)
        assert held[len(packet) :] == filled(packet, stale)[len(packet) :]
        if verdict in (OUT_NO_PEER, OUT_TTL):
            for error in (UNREACHABLE, TIME_EXCEEDED, TOO_BIG):
                quoted = memoryview(held)[: len(packet)]
                reply = error_for(quoted, error, OWN.first) if deserves_error(quoted, error) else None
                verdicts.append(reply)
                if reply is not None:
                    assert checksum(reply[:20]) == checksum(reply[20:]) == 0
                    assert packet.startswith(reply[28:])
                    assert len(reply) <= (28 + 56 + 8 if error is UNREACHABLE else 576)
        if isinstance(verdict, int):
            assert COUNTERS[verdict].startswith("outbound_dropped_")
            assert held == filled(packet, stale)
        else:
            assert IPAddress(IP(packet).dst) in NINE
            assert held[8] == packet[8] - 1
            for room in (MTU, 68, 28):
                pieces = fragments(memoryview(held)[: len(packet)], room)
                assert all(len(piece) <= room and checksum(piece[: (piece[0] & 15) * 4]) == 0 for piece in pieces)
                assert not pieces or b"".join(piece[(piece[0] & 15) * 4 :] for piece in pieces) == packet[(packet[0] & 15) * 4 :]
    assert verdicts[: len(verdicts) // 2] == verdicts[len(verdicts) // 2 :]


@seed(SEED)
@settings(max_examples=EXAMPLES, deadline=None)
@given(packets, st.sampled_from([PEER, "192.0.2.3"]), st.sampled_from(GUARDS))
def test_inbound(packet: bytes, sender: str, guard: Guard) -> None:
    verdicts = set()
    for stale in (0x00, 0xFF):
        held = filled(packet, stale)
        verdict = inbound(held, len(packet), sender, INGRESS[guard])
        verdicts.add(verdict)
        if verdict == PASSED:
            read = IP(packet)
            assert JUDGES[guard].lets_in(packet, sender)
            assert SHORTEST <= len(packet) == read.len
            assert read.version == 4
            assert held[8] == packet[8] - 1 >= 1
        else:
            assert COUNTERS[verdict].startswith("inbound_dropped_")
            assert JUDGES[guard].passed(packet, sender) is None
            assert held == filled(packet, stale)
    assert len(verdicts) == 1
