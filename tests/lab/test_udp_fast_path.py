"""udp in user space with offloads, on a real kernel: what comes through is what went in, and a peer without does not notice.

The lab and its drawing are those of the datapath's other tests.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from tests.lab.udp_support import CA, CB, HA, HB, MTU, Host, capture, first, inside, ip, network, pings, running, socket_in, until
from tests.unit.test_udp_fast_path import ACK, PSH, Packet, folded

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and TUN devices")
__all__ = ["network"]

SOL_UDP, UDP_SEGMENT = 17, 103
A_TO_B = {CA: ("10.5.9.2", CB), CB: ("10.5.72.2", CA)}
WITHIN_S = 60.0


@contextmanager
def datapaths(a_offload: bool = True, b_offload: bool = True) -> Iterator[tuple[Host, Host]]:
    """Both datapaths, each with its offloads or moving packets one by one."""
    a, b = Host(HA, "10.5.72.0/24", "192.0.2.1"), Host(HB, "10.5.9.0/24", "192.0.2.2")
    with running(a, b, *(f'{{"offload": {str(offload).lower()}}}' for offload in (a_offload, b_offload))):
        until(lambda: pings(CA, "10.5.9.2") and pings(CB, "10.5.72.2"))
        yield a, b


@pytest.fixture
def hosts(network: None) -> Iterator[tuple[Host, Host]]:
    with datapaths() as both:
        yield both


def transfer(source: str, megabytes: int, timeout_s: float = WITHIN_S) -> None:
    """Send that much by TCP from a container to the other one; both ends must have the same SHA-256."""
    address, target = A_TO_B[source]
    piece = random.Random(megabytes).randbytes(1 << 20)
    sent, got = hashlib.sha256(), hashlib.sha256()
    with (
        socket_in(target, socket.AF_INET, socket.SOCK_STREAM) as server,
        socket_in(source, socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind((address, 0))
        server.listen(1)
        client.settimeout(timeout_s)
        server.settimeout(timeout_s)
        client.connect((address, server.getsockname()[1]))
        connection, _ = server.accept()
        with connection:
            connection.settimeout(timeout_s)

            def send() -> None:
                with suppress(OSError):  # what is missing is seen below
                    for number in range(megabytes):
                        part = number.to_bytes(4, "big") + piece[4:]
                        sent.update(part)
                        client.sendall(part)
                    client.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=send)
            thread.start()
            try:
                while part := connection.recv(1 << 18):
                    got.update(part)
            finally:
                client.close()
                thread.join()
    assert got.digest() == sent.digest()


def test_two_hundred_megabytes_arrive_as_they_were_sent(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    transfer(CA, 150)
    transfer(CB, 50)
    for host in hosts:
        assert host.counters["outbound_segmented"] > 100
        assert host.counters["inbound_coalesced"] > 100
        assert host.counters.get("outbound_dropped_length", 0) == 0
    assert b.counters["inbound_packets"] <= a.counters["outbound_packets"]


@pytest.mark.parametrize(("a_offload", "b_offload"), [(True, False), (False, True)])
def test_a_peer_without_offloads_does_not_notice(network: None, a_offload: bool, b_offload: bool) -> None:
    with datapaths(a_offload, b_offload) as (a, b):
        transfer(CA, 15)
        transfer(CB, 15)
        for host, offload in ((a, a_offload), (b, b_offload)):
            assert ("outbound_segmented" in host.counters) == offload
            dropped = {name for name in host.counters if "dropped" in name} - {"outbound_dropped_not_ipv4"}
            assert not dropped


def test_loss_on_the_wire_costs_time_and_no_byte(hosts: tuple[Host, Host]) -> None:
    inside(HB, "nft add table ip lossy")
    try:
        inside(HB, "nft add chain ip lossy in { type filter hook input priority 0 ; }")
        inside(HB, "nft add rule ip lossy in udp dport 8285 numgen random mod 100 < 2 counter drop")
        transfer(CA, 10)
        assert "packets 0 " not in inside(HB, "nft list table ip lossy")
    finally:
        inside(HB, "nft delete table ip lossy")


def test_each_datagram_is_a_whole_packet_with_right_checksums(hosts: tuple[Host, Host]) -> None:
    """With the sender's wire made to segment, as a NIC does, every frame is seen as a peer gets it."""
    a, _ = hosts
    inside(HA, "ethtool -K eth1 tx-udp-segmentation off")
    try:
        with capture(HB, "eth1") as wire:
            wire.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
            transfer(CA, 3)
            seen = []
            wire.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    seen.append(wire.recv(1 << 16))
    finally:
        inside(HA, "ethtool -K eth1 tx-udp-segmentation on")
    inner = [frame[28:] for frame in seen if frame[12:16] == bytes((192, 0, 2, 1))]
    assert a.counters["outbound_segmented"] > 10
    assert len(inner) > 2000
    ids = []
    for packet in inner:
        assert packet[0] == 0x45
        assert len(packet) == int.from_bytes(packet[2:4], "big") <= MTU
        assert folded(packet[:20]) == 0xFFFF
        assert packet[8] == 62
        if packet[9] == 6:
            upper = packet[20:]
            assert folded(packet[12:20] + bytes((0, 6)) + len(upper).to_bytes(2, "big") + upper) == 0xFFFF
            ids.append(int.from_bytes(packet[4:6], "big"))
    assert max(len(packet) for packet in inner) == MTU
    assert sum((later - earlier) & 0xFFFF == 1 for earlier, later in itertools.pairwise(ids)) > len(ids) * 0.9


def test_a_containers_udp_segments_are_split_and_joined(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    with socket_in(CB, socket.AF_INET, socket.SOCK_DGRAM) as target, socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as source:
        target.bind(("10.5.9.2", 4000))
        payload = random.Random(1).randbytes(39 * 1001 + 500)
        source.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1001))], 0, ("10.5.9.2", 4000))
        assert b"".join(target.recv(2000) for _ in range(40)) == payload
    until(lambda: b.counters.get("inbound_coalesced", 0) >= 1)  # counted after it has been handed on
    assert a.counters["outbound_packets"] >= 40


def gathered(outer: str, packets: list[bytes]) -> None:
    """Send equal-sized packets to host b as one buffer, which b receives in one."""
    with socket_in(HA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((outer, 0))
        size = len(packets[0])
        sender.sendmsg([b"".join(packets)], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))], 0, ("192.0.2.2", 8285))


FORGED = Packet(bytes(range(200)) * 5)
"""Five segments of a TCP flow from container a to b."""


@pytest.mark.parametrize(
    ("outer", "fields", "reason"),
    [
        ("198.51.100.9", {}, "outer_source"),
        ("192.0.2.1", {"src": bytes((10, 5, 200, 2))}, "inner_source"),
        ("192.0.2.1", {"src": bytes((10, 5, 9, 7))}, "inner_source"),
        ("192.0.2.1", {"dst": bytes((10, 5, 72, 2))}, "inner_destination"),
        ("192.0.2.1", {"ttl": 1}, "ttl"),
    ],
)
def test_a_forged_buffer_is_refused_whole_and_one_forged_among_good_alone(
    hosts: tuple[Host, Host], outer: str, fields: dict[str, object], reason: str
) -> None:
    _, b = hosts
    name = f"inbound_dropped_{reason}"
    good = [each.octets() for each in FORGED.segments(200)]
    bad = [each.octets() for each in replace(FORGED, **fields).segments(200)]  # type: ignore[arg-type]
    passed = b.counters["inbound_packets"]
    gathered(outer, bad)
    until(lambda: b.counts(name, 5))
    assert b.counters["inbound_packets"] == passed
    gathered(outer, [*good[:2], bad[2], *good[3:]])
    stranger = reason == "outer_source"
    until(lambda: b.counts(name, 10 if stranger else 6))
    assert b.counters["inbound_packets"] == passed + (0 if stranger else 4)


def test_a_buffer_of_packets_above_the_mtu_is_the_kernels_to_cut_or_to_refuse(hosts: tuple[Host, Host]) -> None:
    """Joined, as any: the kernel segments it again, and then fragments each or answers that it must not."""
    _, b = hosts
    run = Packet(random.Random(2).randbytes(4500), protocol=17, ports=struct.pack("!HH", 5000, 4000), fragment=0)
    for name in (HA, HB):
        ip(f"-n {name} link set eth1 mtu 1600")
    try:
        with socket_in(CB, socket.AF_INET, socket.SOCK_DGRAM) as target:
            target.bind(("10.5.9.2", 4000))
            gathered("192.0.2.1", [each.octets() for each in run.segments(1500)])
            assert b"".join(target.recv(2000) for _ in range(3)) == run.payload
        until(lambda: b.counts("inbound_coalesced", 1))
        with capture(CA, "eth0") as seen:
            gathered("192.0.2.1", [each.octets() for each in replace(run, fragment=0x4000).segments(1500)])
            told = first(seen, lambda packet: packet[9] == 1 and packet[20:22] == bytes((3, 4)))
        assert int.from_bytes(told[26:28], "big") == MTU  # the bridge's
    finally:
        for name in (HA, HB):
            ip(f"-n {name} link set eth1 mtu 1500")


def test_a_joined_flow_has_its_push_and_its_order(hosts: tuple[Host, Host]) -> None:
    _, b = hosts
    with capture(CB, "eth0") as seen:
        gathered("192.0.2.1", [each.octets() for each in replace(FORGED, flags=ACK | PSH).segments(200)])
        whole = seen.recv(1 << 16)
        while whole[9] != 6:
            whole = seen.recv(1 << 16)
    until(lambda: b.counts("inbound_coalesced", 1))
    assert whole[40:] == FORGED.payload  # one of a thousand bytes, not five
    assert whole[33] == ACK | PSH
    assert whole[8] == 60


def test_a_path_that_takes_less_than_the_mtu_is_still_served(hosts: tuple[Host, Host]) -> None:
    """The kernel refuses to segment for a route with a smaller MTU; TCP is told what fits."""
    a, _ = hosts
    ip(f"-n {HA} route replace 192.0.2.2/32 dev eth1 mtu 1000")
    try:
        transfer(CA, 2)
    finally:
        ip(f"-n {HA} route del 192.0.2.2/32")
        ip(f"-n {CA} route flush cache")
    assert a.counters["outbound_packets"] > 1000
    assert a.counters["icmp_fragmentation_needed"] >= 1
