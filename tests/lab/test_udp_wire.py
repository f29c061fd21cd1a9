"""udp in user space on a wire: packets cross no longer than the MTU, as between cards, and are gathered where they arrive.

The lab and its drawing are those of the datapath's other tests; over veth as it is made a super-packet crosses whole, so its
offloads are switched off at the senders. What is asserted is counted: frames, their checksums, and reads of the socket.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.test_udp_fast_path import datapaths, transfer
from tests.lab.udp_support import CA, CB, HA, HB, MTU, capture, inside, network

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and TUN devices")
__all__ = ["network"]

ETH_P_ALL = 3
PORT = 8285
MEGABYTES = 8


@pytest.fixture
def wire(network: None) -> Iterator[None]:
    for host in (HA, HB):
        inside(host, "ethtool -K eth1 tx off tso off gso off")
        inside(host, "ethtool -K eth1 gro on")
    yield
    for host in (HA, HB):
        inside(host, "ethtool -K eth1 tx on tso on gso on")
        inside(host, "ethtool -K eth1 gro off")


def received(host: str) -> tuple[int, int]:
    """Frames that came by the wire, and what was read from UDP sockets: what was gathered is read once (udp_recvmsg)."""
    frames = int(inside(host, "cat /sys/class/net/eth1/statistics/rx_packets"))
    names, values = (line.split() for line in inside(host, "cat /proc/net/snmp").splitlines() if line.startswith("Udp:"))
    return frames, int(dict(zip(names, values, strict=True))["InDatagrams"])


@contextmanager
def leaving(host: str) -> Iterator[list[tuple[int, int]]]:
    """Length and outer UDP checksum of packets that leave for the port in the block, as far as the tap has room for them."""
    seen, done = list[tuple[int, int]](), threading.Event()

    def look(tap: socket.socket) -> None:
        tap.settimeout(0.2)
        while not done.is_set():
            try:
                packet, about = tap.recvfrom(1 << 16)
            except TimeoutError:
                continue
            if about[2] == socket.PACKET_OUTGOING and packet[9] == 17 and packet[22:24] == PORT.to_bytes(2, "big"):
                seen.append((len(packet), int.from_bytes(packet[26:28], "big")))

    with capture(host, "eth1", ETH_P_ALL) as tap:
        looking = threading.Thread(target=look, args=(tap,))
        looking.start()
        try:
            yield seen
        finally:
            done.set()
            looking.join()


@pytest.mark.parametrize(("source", "sender", "receiver"), [(CA, HA, HB), (CB, HB, HA)], ids=["one way", "the other"])
def test_what_crosses_a_wire_is_checksummed_and_gathered(wire: None, source: str, sender: str, receiver: str) -> None:
    """Without an outer checksum the kernel gathers nothing for a socket (udp_gro_receive_segment)."""
    with datapaths(), leaving(sender) as seen:
        before = received(receiver)
        transfer(source, MEGABYTES)
        frames, reads = (now - then for now, then in zip(received(receiver), before, strict=True))
    assert max(length for length, _ in seen) == MTU + 28
    assert [length for length, checksum in seen if not checksum] == []
    assert frames >= MEGABYTES * (1 << 20) // MTU
    assert reads * 4 < frames, f"{frames} frames were {reads} reads"


def test_a_sender_without_offloads_is_checksummed_too(wire: None) -> None:
    with datapaths(a_offload=False), leaving(HA) as seen:
        transfer(CA, 1)
    assert len(seen) >= (1 << 20) // MTU // 2
    assert [length for length, checksum in seen if not checksum] == []
