"""
  ca 10.5.72.2 - cbr0 - ha - flannel0 ~~~~~~~~~~ UDP 8285 ~~~~~~~~~~ flannel0 - hb - cbr0 - cb 10.5.9.2
                        192.0.2.1 ======= r, takes 1400 bytes ======= 198.51.100.1

udp in user space as a router, each with its offloads and without: a path that takes less than the device, TTL, nobody's subnets.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from tests.lab import test_udp_fast_path
from tests.lab.udp_support import (
    BOUND_S,
    MTU,
    Host,
    add_container,
    capture,
    first,
    flood,
    inside,
    ip,
    pings,
    running,
    socket_in,
    until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and TUN devices")

PREFIX = f"udpr-{os.getpid()}-"
HA, HB, CA, CB, R = (PREFIX + name for name in ("a", "b", "ca", "cb", "r"))
A, B = ("10.5.72.2", CA), ("10.5.9.2", CB)
NARROW = 1400
ROOM = NARROW - 28

IP_TTL, IP_MTU_DISCOVER, IP_RECVERR = 2, 10, 11
DONT, WANT, DO = 0, 1, 2
ERROR = struct.Struct("=IBBBBII")
"""struct sock_extended_err (ip(7)): errno, origin, type, code, padding, info, data; then comes the address of who said so."""


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """The namespaces and their links; without datapaths."""
    with ExitStack() as undo:
        for name in (HA, HB, CA, CB, R):
            ip(f"netns add {name}")
            undo.callback(ip, f"netns del {name}")
            ip(f"-n {name} link set lo up")
        for host, container, net, subnet, side in ((HA, CA, "192.0.2", "10.5.72", "ra"), (HB, CB, "198.51.100", "10.5.9", "rb")):
            ip(f"link add eth1 netns {host} type veth peer {side} netns {R}")
            ip(f"-n {R} addr add {net}.254/24 dev {side}")
            ip(f"-n {R} link set {side} up")
            ip(f"-n {host} addr add {net}.1/24 dev eth1")
            ip(f"-n {host} link set eth1 up")
            ip(f"-n {host} route add default via {net}.254")
            add_container(host, container, subnet)
            inside(host, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0")
        inside(R, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0")
        yield


def narrow(mtu: int) -> None:
    """What the router takes, both ways."""
    for net, side in (("192.0.2.0/24", "ra"), ("198.51.100.0/24", "rb")):
        ip(f"-n {R} route replace {net} dev {side} mtu {mtu}")


def forget() -> None:
    """Nobody has ever learned a path MTU."""
    for name in (HA, HB, CA, CB):
        ip(f"-n {name} route flush cache")


@pytest.fixture(params=[True, False], ids=["offloads", "one by one"])
def hosts(network: None, request: pytest.FixtureRequest) -> Iterator[tuple[Host, Host]]:
    """Both datapaths, each knowing the other, and a path that takes 1400 bytes of which they know nothing."""
    a, b = Host(HA, "10.5.72.0/24", "192.0.2.1"), Host(HB, "10.5.9.0/24", "198.51.100.1")
    with running(a, b, f'{{"offload": {str(request.param).lower()}}}'):
        until(lambda: pings(CA, B[0]) and pings(CB, A[0]))
        narrow(NARROW)
        forget()
        yield a, b


# --------------------------------------------------------------------------------------------- a path that takes less


@pytest.fixture
def no_outer_fragments(network: None) -> Iterator[None]:
    """The router never saw a datagram in pieces: what is cut is cut inside."""
    inside(R, "nft add table ip seen")
    try:
        inside(R, "nft add chain ip seen wire { type filter hook prerouting priority -500 ; }")
        inside(R, "nft add rule ip seen wire ip frag-off & 0x3fff != 0 counter")
        inside(R, "nft add rule ip seen wire udp dport 8285 counter")
        yield
        pieces, datagrams = (line for line in inside(R, "nft list table ip seen").splitlines() if "counter" in line)
        assert "packets 0 " in pieces
        assert "packets 0 " not in datagrams
    finally:
        inside(R, "nft delete table ip seen")


@pytest.mark.usefixtures("no_outer_fragments")
def test_tcp_finds_out_what_fits(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_udp_fast_path, "A_TO_B", {CA: B, CB: A})
    for host, source, target in ((hosts[0], CA, B[0]), (hosts[1], CB, A[0])):
        forget()  # a receiver that knows of the path asks for less
        test_udp_fast_path.transfer(source, 10)
        assert f"mtu {ROOM}" in inside(source, f"ip route get {target}")
        counted = host.counters
        assert counted["outbound_dropped_too_big"] >= counted["icmp_fragmentation_needed"] >= 1
        assert "outbound_fragmented" not in counted  # TCP sets DF


def ping(namespace: str, target: str, size: int, discovery: str, count: int = 3) -> str:
    """What ping says to packets of that size, of its own kernel's errors too."""
    words = f"ip netns exec {namespace} ping -n -c{count} -i0.05 -W1 -M{discovery} -s{size - 28} {target}"
    return subprocess.run(words.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20).stdout


@pytest.mark.usefixtures("no_outer_fragments")
def test_a_ping_that_must_not_be_cut_is_told_what_fits(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    said = ping(CA, B[0], MTU, "do")
    assert f"From {B[0]} icmp_seq=2 Frag needed and DF set (mtu = {ROOM})" in said
    until(lambda: " 0% packet loss" in ping(CA, B[0], ROOM, "do"))
    assert f"mtu={ROOM}" in ping(CA, B[0], ROOM + 1, "do")  # its own kernel knows by now
    assert a.counters["icmp_fragmentation_needed"] == a.counters["outbound_dropped_too_big"] == 1
    # A process of the host itself is told, too.
    ping(HA, B[0], MTU, "do", 1)
    assert f"mtu={ROOM}" in ping(HA, B[0], MTU, "do")


@pytest.mark.usefixtures("no_outer_fragments")
@pytest.mark.parametrize("size", [ROOM + 1, MTU, 4000], ids=["one more", "the largest", "in pieces already"])
def test_a_ping_that_may_be_cut_arrives(hosts: tuple[Host, Host], size: int) -> None:
    ping(CA, B[0], size, "dont", 2)  # at the router, each host loses one and learns
    assert " 0% packet loss" in ping(CA, B[0], size, "dont")
    for host in hosts:
        until(lambda host=host: host.counters.get("outbound_fragmented", 0) >= 3)  # type: ignore[misc]
        assert "icmp_fragmentation_needed" not in host.counters


def datagrams(source: tuple[str, str], target: tuple[str, str], discovery: int) -> tuple[socket.socket, socket.socket]:
    """A pair of UDP sockets, and how the first one discovers path MTUs."""
    receiver = socket_in(target[1], socket.AF_INET, socket.SOCK_DGRAM)
    sender = socket_in(source[1], socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((target[0], 4000))
    receiver.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
    sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discovery)
    sender.connect((target[0], 4000))
    return sender, receiver


@pytest.mark.usefixtures("no_outer_fragments")
def test_udp_without_df_arrives_whole_alone_and_in_runs(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    ping(CA, B[0], MTU, "dont", 1)
    sender, receiver = datagrams(A, B, DONT)
    chance = random.Random(7)
    with sender, receiver:
        for size in (MTU - 28, ROOM - 28, ROOM - 27, 5000, 1):
            sender.send(payload := chance.randbytes(size))
            assert receiver.recv(65536) == payload
        before = a.counters.get("outbound_fragmented", 0)
        runs = chance.randbytes(30 * 1400 + 99)  # one super-packet, where the device has them
        sender.sendmsg([runs], [(17, 103, struct.pack("=H", 1400))])
        assert b"".join(receiver.recv(65536) for _ in range(31)) == runs
        until(lambda: a.counts("outbound_fragmented", before + 30))
        many = [number.to_bytes(4, "big") + chance.randbytes(1396) for number in range(60)]
        for each in many:  # a run of single ones
            sender.send(each)
        assert [receiver.recv(65536) for _ in many] == many
        until(lambda: a.counts("outbound_fragmented", before + 90))
        small = [number.to_bytes(4, "big") for number in range(200)]
        for each in small:
            sender.send(each)
        assert [receiver.recv(65536) for _ in small] == small
    assert a.counters["outbound_fragmented"] == before + 90
    assert "outbound_dropped_too_big" not in a.counters


def test_udp_with_df_is_told_and_a_run_only_once(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    ping(HA, B[0], MTU, "dont", 1)  # the host has learned, the container has not
    sender, receiver = datagrams(A, B, DO)
    with sender, receiver:
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sender.sendmsg([bytes(30 * 1400)], [(17, 103, struct.pack("=H", 1400))])
        assert error(sender) == (errno.EMSGSIZE, 3, 4, ROOM, B[0])
        until(lambda: a.counts("outbound_dropped_too_big", 30))
        told = a.counters["icmp_fragmentation_needed"]
        assert told >= 1
        # What was read together is one run; it need not have been read in one.
        assert told + a.counters.get("icmp_ratelimited", 0) <= 30
        if "outbound_segmented" in a.counters:
            assert told == 1
    sender, receiver = datagrams(A, B, DO)
    with sender, receiver:  # the container's kernel has learned it for everybody in there
        with pytest.raises(OSError, match="Message too long"):
            sender.send(bytes(ROOM - 27))
        sender.send(bytes(ROOM - 28))
        assert len(receiver.recv(65536)) == ROOM - 28


def error(sock: socket.socket) -> tuple[int, int, int, int, str]:
    """The next error of a socket's queue: errno, ICMP type and code, its info, and who said so."""
    seen: list[tuple[int, int, int, int, str]] = []

    def read() -> bool:
        try:
            _, notes, _, _ = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except OSError:  # nothing yet
            return False
        code, origin, kind, sub, _, info, _ = ERROR.unpack_from(notes[0][2])
        assert origin == 2  # ICMP, not our own kernel
        seen.append((code, kind, sub, info, socket.inet_ntoa(notes[0][2][ERROR.size + 4 : ERROR.size + 8])))
        return True

    until(read)
    return seen[0]


def test_a_path_that_grows_back_is_used_again(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    for name in (HA, HB, CA):
        inside(name, "sysctl -qw net.ipv4.route.mtu_expires=2")
    try:
        assert " icmp_seq=5 " in ping(CA, B[0], MTU, "dont", 5)
        assert " 100% packet loss" in ping(CA, B[0], MTU, "do")
        narrow(1500)
        until(lambda: " 0% packet loss" in ping(CA, B[0], MTU, "do", 1))
        before = a.counters["outbound_fragmented"]
        assert " 0% packet loss" in ping(CA, B[0], MTU, "dont")
        assert a.counters["outbound_fragmented"] == before
    finally:
        for name in (HA, HB, CA):
            inside(name, "sysctl -qw net.ipv4.route.mtu_expires=600")


def test_a_host_that_does_no_discovery_keeps_to_that(network: None) -> None:
    """With ip_no_pmtu_disc the outer DF is not set and the router cuts: as it was asked for."""
    a = Host(HA, "10.5.72.0/24", "192.0.2.1")
    inside(HA, "sysctl -qw net.ipv4.ip_no_pmtu_disc=1")
    with ExitStack() as undo:
        undo.callback(inside, HA, "sysctl -qw net.ipv4.ip_no_pmtu_disc=0")
        a.begin()
        undo.callback(a.end)
        assert a.tell("open") is None
        a.tell("update", {"10.5.9.0/24": "198.51.100.1"})
        a.configure()
        a.tell("run")
        with capture(R, "ra") as wire, socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"as it was", ("10.5.9.2", 4000))
            assert IP(first(wire, lambda packet: packet.endswith(b"as it was"))).flags == 0


# --------------------------------------------------------------------------------- from a peer, longer than the device


@pytest.mark.parametrize("size", [MTU + 1, 4000, 60_000])
def test_a_datagram_above_the_mtu_is_the_kernels_to_cut_or_to_refuse(hosts: tuple[Host, Host], size: int) -> None:
    """As from a flanneld with a larger MTU, whose kernel sends its datagrams in pieces."""
    payload = random.Random(size).randbytes(size - 28)

    def send(flags: str) -> None:
        with socket_in(HB, socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, DONT)
            packet = IP(src=B[0], dst=A[0], id=9, flags=flags) / UDP(sport=5000, dport=4000) / payload
            peer.sendto(bytes(packet), ("192.0.2.1", 8285))

    with socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((A[0], 4000))
        send("")
        assert receiver.recv(65536) == payload
    with capture(CB, "eth0") as seen:
        send("DF")
        told = IP(first(seen, lambda packet: packet[9] == 1 and packet[20:22] == bytes((3, 4))))
    assert (told.src, told.dst, told[ICMP].nexthopmtu) == ("10.5.72.0", B[0], MTU)


# ------------------------------------------------------------------------------------------------------- TTL, nobody's


def hops(namespace: str, target: str) -> list[str]:
    """As traceroute: who answers a probe of each TTL, until it is the target itself."""
    found = []
    with socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as prober:
        prober.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        for ttl in range(1, 9):
            prober.setsockopt(socket.IPPROTO_IP, IP_TTL, ttl)
            send_to(prober, target, 33434 + ttl)
            _, kind, code, _, who = error(prober)
            found.append(who)
            if (kind, code) == (3, 3):  # port unreachable: it has arrived
                break
            assert (kind, code) == (11, 0)
    return found


def send_to(sock: socket.socket, target: str, port: int) -> None:
    """The error of an earlier one may be what a send returns; it is cleared by that."""
    try:
        sock.sendto(b"probe", (target, port))
    except OSError:
        sock.sendto(b"probe", (target, port))


def test_a_traceroute_shows_both_hosts(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert hops(CA, B[0]) == ["10.5.72.1", "10.5.72.0", "10.5.9.0", "10.5.9.0", B[0]]
    assert hops(CB, A[0]) == ["10.5.9.1", "10.5.9.0", "10.5.72.0", "10.5.72.0", A[0]]
    assert hops(HA, B[0]) == ["10.5.72.0", "10.5.9.0", "10.5.9.0", B[0]]
    for host, out in ((a, 2), (b, 1)):
        assert host.counters["outbound_dropped_ttl"] == out
        assert host.counters["icmp_time_exceeded"] == 3
        assert host.counters["outbound_dropped_ttl"] + host.counters["inbound_dropped_ttl"] == 3


def test_a_traceroute_of_pings_is_answered_and_errors_are_not(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    for ttl, who in ((2, "10.5.72.0"), (3, "10.5.9.0")):
        assert f"From {who} icmp_seq=1 Time to live exceeded" in inside(CA, f"ping -n -c1 -W1 -t{ttl} {B[0]}", check=False)
    with socket_in(CA, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for kind in (3, 5, 11, 12):
            raw.sendto(bytes(IP(src=A[0], dst=B[0], ttl=2) / ICMP(type=kind) / bytes(28)), (B[0], 0))
            raw.sendto(bytes(IP(src=A[0], dst=B[0], ttl=3) / ICMP(type=kind) / bytes(28)), (B[0], 0))
        raw.sendto(bytes(IP(src=A[0], dst=B[0], ttl=3, frag=5) / bytes(40)), (B[0], 0))
    until(lambda: a.counts("outbound_dropped_ttl", 5) and b.counts("inbound_dropped_ttl", 6))
    assert a.counters["icmp_time_exceeded"] == b.counters["icmp_time_exceeded"] == 1


def test_a_spent_packet_is_quoted_with_its_checksum(hosts: tuple[Host, Host]) -> None:
    """The kernel leaves it to the device to make; who tells probes apart by it gets it back whole."""
    with capture(CA, "eth0") as seen, socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_TTL, 2)
        sender.bind((A[0], 4001))
        sender.sendto(b"whose is it", (B[0], 4000))
        quoted = first(seen, lambda packet: packet[9] == 1 and packet[20] == 11)[28:]
    again = IP(quoted)
    assert again.ttl == 1
    del again[UDP].chksum
    assert bytes(again) == quoted


@pytest.mark.parametrize("namespace", [CA, HA], ids=["container", "host"])
def test_nobodys_subnet_is_known_at_once(hosts: tuple[Host, Host], namespace: str) -> None:
    began = time.monotonic()
    with socket_in(namespace, socket.AF_INET, socket.SOCK_STREAM) as client, pytest.raises(OSError, match="unreachable") as caught:
        client.connect(("10.5.200.1", 80))
    assert caught.value.errno == errno.ENETUNREACH
    assert time.monotonic() - began < BOUND_S / 2
    with socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sender.sendto(b"anybody", ("10.5.200.1", 4000))
        assert error(sender) == (errno.ENETUNREACH, 3, 0, 0, "10.5.72.0")


def test_without_accept_local_none_of_it_arrives_but_what_fits(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    inside(HA, "sysctl -qw net.ipv4.conf.flannel0.accept_local=0")
    assert "Time to live exceeded" not in inside(CA, f"ping -n -c1 -W0.2 -t2 {B[0]}", check=False)
    assert a.counters["icmp_time_exceeded"] == 1
    assert f"Frag needed and DF set (mtu = {ROOM})" in ping(CA, B[0], MTU, "do")


def test_a_flood_is_answered_so_often_and_no_more_and_silences_nobody(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    enough = threading.Event()
    began = time.monotonic()
    thread = threading.Thread(target=flood, args=(CA, "10.5.200.1", lambda number: not enough.is_set()))
    thread.start()
    try:
        until(lambda: a.counters.get("outbound_dropped_no_peer", 0) > 5000, within_s=30)
        with socket_in(HA, socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            answered = []

            def probe() -> bool:
                """The device's queue is full of the flood: some are lost on their way in."""
                send_to(other, "10.5.200.1", 4000)
                other.setblocking(False)
                try:
                    answered.append(other.recvmsg(0, 512, socket.MSG_ERRQUEUE))
                except OSError:
                    return False
                return True

            until(probe)
    finally:
        enough.set()
        thread.join()
    assert pings(CA, B[0])  # behind the last of the flood
    took = time.monotonic() - began
    counted = a.counters
    assert counted["outbound_dropped_no_peer"] == counted["icmp_unreachable"] + counted["icmp_ratelimited"]
    assert counted["icmp_ratelimited"] > 1000
    # Two senders, each with a burst of 20 and a share of 100 in a second.
    assert counted["icmp_unreachable"] <= 2 * (20 + 100 * took) + 2
