"""Does the datapath do what flannel's does, and refuse what it must? Packet by packet, between two hosts (udp_support.py)."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6

from tests.lab.udp_support import (
    CA,
    CB,
    HA,
    HB,
    Host,
    capture,
    first,
    flood,
    hosts,
    inside,
    ip,
    network,
    pings,
    runs,
    socket_in,
    start_s,
    until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and TUN devices")
__all__ = ["hosts", "network"]


# -------------------------------------------------------------------------------------------------------------- tests


def test_containers_and_hosts_reach_each_other(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert pings(CA, "10.5.9.2")
    assert pings(CB, "10.5.72.2")
    assert pings(HA, "10.5.9.2")  # from the TUN address, the base of the lease
    assert pings(HB, "10.5.72.0")
    before = b.counters["inbound_packets"]
    inside(CA, "ping -c3 -i0.01 -s1444 -Mdo 10.5.9.2")  # 1472 bytes: just fits
    until(lambda: b.counters["inbound_packets"] == before + 3)  # counted a moment after it is written
    assert "outbound_dropped_send_failed" not in a.counters


def test_the_path_costs_four_hops(hosts: tuple[Host, Host]) -> None:
    with capture(CB, "eth0") as seen, socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"how far", ("10.5.9.2", 4000))
        packet = IP(first(seen, lambda packet: packet.endswith(b"how far")))
    assert packet.ttl == 60


def test_a_datagram_is_one_ipv4_packet_and_nothing_else(hosts: tuple[Host, Host]) -> None:
    with capture(HB, "eth1") as wire, socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("10.5.72.2", 5000))
        sender.sendto(b"to the letter", ("10.5.9.2", 4000))
        outer = IP(first(wire, lambda packet: b"to the letter" in packet))
    assert (outer.src, outer.dst, outer[UDP].sport, outer[UDP].dport) == ("192.0.2.1", "192.0.2.2", 8285, 8285)
    payload = bytes(outer[UDP].payload)
    inner = IP(payload)
    assert inner.len == len(payload)
    again = IP(payload)
    del again.chksum, again[UDP].chksum
    assert bytes(again) == payload
    assert (inner.src, inner.dst, inner.ttl, inner[UDP].sport, inner[UDP].dport) == ("10.5.72.2", "10.5.9.2", 62, 5000, 4000)


def test_an_unknown_subnet_is_answered_with_icmp(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    with capture(HA, "flannel0") as device, socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"anybody there", ("10.5.200.1", 4000))
        reply = IP(first(device, lambda packet: packet[9] == 1))
        assert (reply.src, reply.dst, reply.ttl, reply.id) == ("10.5.72.0", "10.5.72.2", 8, 0)
        assert (reply[ICMP].type, reply[ICMP].code) == (3, 0)
        until(lambda: a.counters.get("icmp_unreachable") == 1)  # counted a moment after it is sent
        assert not pings(CA, "10.5.200.1")  # any ICMP stays unanswered
    assert a.counters["icmp_unreachable"] == 1
    assert a.counters["outbound_dropped_no_peer"] == 2


SPOOFED: list[tuple[str, dict[str, object], str]] = [
    ("198.51.100.9", {}, "outer_source"),
    ("192.0.2.1", {"src": "10.5.200.2"}, "inner_source"),
    ("192.0.2.1", {"src": "10.5.9.7"}, "inner_source"),
    ("192.0.2.1", {"dst": "10.5.72.2"}, "inner_destination"),
    ("192.0.2.1", {"dst": "127.0.0.1"}, "inner_destination"),
    ("192.0.2.1", {"ttl": 1}, "ttl"),
]


def test_forged_datagrams_are_refused_and_counted(hosts: tuple[Host, Host]) -> None:
    _, b = hosts

    def forge(outer: str, packet: bytes) -> None:
        with socket_in(HA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((outer, 0))
            sender.sendto(packet, ("192.0.2.2", 8285))

    def packet(**fields: object) -> bytes:
        return bytes(IP(**{"src": "10.5.72.2", "dst": "10.5.9.2", **fields}) / UDP(dport=4000) / b"forged")

    for outer, fields, reason in SPOOFED:
        name = f"inbound_dropped_{reason}"
        passed, refused = b.counters["inbound_packets"], b.counters.get(name, 0)
        forge(outer, packet(**fields))
        until(partial(b.counts, name, refused + 1))
        assert b.counters["inbound_packets"] == passed, fields
    before = b.counters
    forge("192.0.2.1", packet()[:-1])
    forge("192.0.2.1", bytes(IPv6(dst="ff02::2") / UDP(dport=4000)))
    forge("192.0.2.1", b"")
    reasons = ("length", "not_ipv4", "short")
    until(lambda: all(b.counters.get(f"inbound_dropped_{reason}") == 1 for reason in reasons))
    assert b.counters["inbound_packets"] == before["inbound_packets"]
    with capture(CB, "eth0") as seen:  # and one that is in order passes, so the refusals above mean something
        forge("192.0.2.1", packet())
        assert first(seen, lambda packet: packet.endswith(b"forged"))


def test_noise_and_spent_packets_from_the_device_stay_here(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    before = a.counters
    with socket_in(HA, socket.AF_PACKET, socket.SOCK_DGRAM) as raw:
        raw.sendto(bytes(IPv6(dst="ff02::2") / ICMP()), ("flannel0", 0x86DD))
        raw.sendto(bytes(IP(src="10.5.72.2", dst="10.5.9.2", ttl=1) / UDP()), ("flannel0", 0x0800))
    until(lambda: a.counters.get("outbound_dropped_ttl", 0) == before.get("outbound_dropped_ttl", 0) + 1)
    assert a.counters["outbound_dropped_not_ipv4"] > before.get("outbound_dropped_not_ipv4", 0)
    assert a.counters["outbound_packets"] == before["outbound_packets"]


def test_a_killed_worker_is_replaced_with_its_table(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    worker, sent = a.worker(), a.counters["outbound_packets"]
    assert worker is not None
    began = time.monotonic()
    os.kill(worker, 9)
    until(lambda: inside(CA, "ping -c1 -W1 10.5.9.2", check=False).count(" 0% packet loss") == 1)
    assert time.monotonic() - began < max(0.5, 2 * start_s())  # of a machine that is busy with other things no more can be asked
    assert a.worker() not in (None, worker)
    until(lambda: a.counters["outbound_packets"] > sent)  # counted a moment after it is sent


def test_a_peer_that_goes_is_no_longer_sent_to_nor_heard(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    a.tell("update", {b.subnet: None})
    until(lambda: not pings(CB, "10.5.72.2"))
    assert a.counters["inbound_dropped_outer_source"] >= 1
    a.tell("update", {b.subnet: b.address})
    until(lambda: pings(CB, "10.5.72.2"))


def test_a_deleted_device_ends_run_and_can_be_opened_again(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    ip(f"-n {HA} link del flannel0")
    assert a.tell("outcome") == "BackendError: TUN device flannel0 was deleted"
    assert a.worker() is None
    assert a.tell("open") is None
    a.configure()
    a.tell("run")
    until(lambda: pings(CA, "10.5.9.2"))


@pytest.mark.parametrize(
    ("done", "said"),
    [("name foo0", "renamed to foo0"), (f"netns {CA}", "moved to another network namespace")],
    ids=["renamed", "moved"],
)
def test_a_device_that_is_not_in_its_place_any_more_is_made_anew(hosts: tuple[Host, Host], done: str, said: str) -> None:
    """The worker's descriptor goes on as if nothing had happened."""
    a, _ = hosts
    ip(f"-n {HA} link set flannel0 {done}")
    assert a.tell("outcome") == f"BackendError: TUN device flannel0 was {said}"
    assert a.worker() is None
    assert a.tell("open") is None
    assert "foo0" not in inside(HA, "ip -br link")
    assert "flannel0" not in inside(CA, "ip -br link")
    a.configure()
    a.tell("run")
    until(lambda: pings(CA, "10.5.9.2"))


def test_stop_and_close_leave_nothing(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    worker = a.worker()
    a.tell("stop")
    assert a.worker() is None
    assert not runs(worker)
    a.tell("close")
    a.tell("close")
    assert "flannel0" not in inside(HA, "ip -br link")
    assert ":8285" not in inside(HA, "ss -Hlun")


def test_a_worker_does_not_outlive_a_killed_agent(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    worker = a.worker()
    a.process.kill()
    until(lambda: not runs(worker))


def test_who_is_in_the_way_is_named(hosts: tuple[Host, Host]) -> None:
    second = Host(HA, "10.5.73.0/24", "192.0.2.1")
    with ExitStack() as undo:
        second.begin()
        undo.callback(second.end)
        assert second.tell("open").startswith("BackendError: UDP 192.0.2.1:8285: taken: a running flanneld or another agent")
    third = Host(HA, "10.5.73.0/24", "192.0.2.1")
    with ExitStack() as undo:
        third.begin('{"Port": 8286}')
        undo.callback(third.end)
        assert third.tell("open").startswith("BackendError: TUN device flannel0: busy: a running flanneld or another agent")
        assert ":8286" not in inside(HA, "ss -Hlun")
    fourth = Host(HA, "10.5.73.0/24", "192.0.2.77")
    with ExitStack() as undo:
        fourth.begin()
        undo.callback(fourth.end)
        assert fourth.tell("open") == "BackendError: UDP 192.0.2.77:8285: no interface has 192.0.2.77 now"


def test_the_worker_has_no_privileges(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    status = Path(f"/proc/{a.worker()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["CapEff"] == fields["CapPrm"] == "0" * 16
    assert fields["Uid"].split()[0] == "65534"
    assert fields["NoNewPrivs"] == "1"


def test_ten_thousand_packets_each_way(hosts: tuple[Host, Host]) -> None:
    count = 10_000
    before = [host.counters for host in hosts]
    workers = [host.worker() for host in hosts]
    pairs = ((CA, "10.5.9.2"), (CB, "10.5.72.2"))
    threads = [threading.Thread(target=flood, args=(*pair, lambda number: number < count)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pings(CA, "10.5.9.2")
    # The device's queue may overflow, which is the kernel's to count; what the datapaths took they carried.
    for host, old in zip(hosts, before, strict=True):
        assert host.counters["inbound_packets"] > old["inbound_packets"] + count // 10
        assert "inbound_dropped_write_failed" not in host.counters
    assert [host.worker() for host in hosts] == workers


def test_orders_are_obeyed_under_load(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    enough = threading.Event()
    thread = threading.Thread(target=flood, args=(CA, "10.5.9.2", lambda number: not enough.is_set()))
    thread.start()
    try:
        until(lambda: a.counters["outbound_packets"] > 1000)
        a.tell("update", {b.subnet: None})
        until(lambda: a.counters.get("outbound_dropped_no_peer", 0) > 1000)
    finally:
        enough.set()
        thread.join()


def test_a_device_that_is_down_costs_nothing_and_comes_back(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    worker = a.worker()
    ip(f"-n {HA} link set flannel0 down")
    inside(CB, "ping -c3 -W1 -i0.01 10.5.72.2", check=False)
    until(lambda: a.counters.get("inbound_dropped_write_failed", 0) >= 3)
    used, began = a.cpu_s(), time.monotonic()
    until(lambda: time.monotonic() - began > 0.3)  # a span to measure in, not a wait for something
    assert a.cpu_s() - used < 0.1
    a.configure()
    until(lambda: pings(CB, "10.5.72.2"))
    assert a.worker() == worker
