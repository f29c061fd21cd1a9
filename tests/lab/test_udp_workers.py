"""Several workers in user space: is the work shared out, is each alone with its own, and does nobody notice one's end?

The lab and its drawing are those of udp's other tests; each host has four workers, with offloads or without.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from backends.udp.counters import COUNTERS
from backends.udp.worker.fast_path import READS
from tests.lab.test_udp_fast_path import transfer
from tests.lab.udp_support import CA, CB, HA, HB, Host, inside, ip, network, pings, running, runs, socket_in, start_s, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and TUN devices")
__all__ = ["network"]

WORKERS = 4
MOVERS = pytest.mark.parametrize("hosts", [True, False], indirect=True, ids=["offload", "plain"])
TCP_STREAMS = 4
FLOWS = PEERS = 64
"""So many that none of the four workers is left out: the kernel's hashes are seeded anew at each boot."""

FEW = 24
PACKETS = 20
PER_SECOND = 50
ROUNDS = 75
TARGET = ("10.5.9.2", 4000)
UVLOOPS = ("eventpoll", "eventfd", "io_uring")


def options(**told: object) -> str:
    return json.dumps({"Workers": WORKERS, "cores": WORKERS, **told})


@pytest.fixture
def hosts(network: None, request: pytest.FixtureRequest) -> Iterator[tuple[Host, Host]]:
    """Both datapaths with all their workers; the parameter says whether with offloads."""
    a, b = Host(HA, "10.5.72.0/24", "192.0.2.1"), Host(HB, "10.5.9.0/24", "192.0.2.2")
    with running(a, b, options(offload=getattr(request, "param", True))):
        until(lambda: pings(CA, "10.5.9.2") and pings(CB, "10.5.72.2"))
        for host in (a, b):
            until(lambda host=host: [is_nobody(pid) for pid in host.workers()] == [True] * WORKERS)
        yield a, b


def is_nobody(pid: int) -> bool:
    """A worker is, shortly before it moves packets."""
    return "\nUid:\t65534\t65534\t65534\t65534\n" in Path(f"/proc/{pid}/status").read_text()


def queues(host: Host) -> list[dict[str, int]]:
    """Counters of each worker, and by what its descriptors are known."""
    told: list[dict[str, int]] = host.tell("queues")
    return told


def worker_of(host: Host, queue: int) -> int | None:
    """The process that works on a queue."""
    word = f"tun={queues(host)[queue]['tun']}".encode()
    for pid in host.workers():
        try:
            if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


# --------------------------------------------------------------------------------------------------------------- flows


@dataclass
class Flows:
    """UDP flows from container a to one socket in b, which answers where it is asked to."""

    clients: list[socket.socket]
    sent: list[int] = field(default_factory=lambda: [0] * FLOWS)
    came: list[dict[int, float]] = field(default_factory=lambda: [{} for _ in range(FLOWS)])
    """For each flow, when which number came."""

    def send(self, flow: int, *, asking: bool = False) -> None:
        self.clients[flow].sendto(bytes([asking]) + flow.to_bytes(2, "big") + self.sent[flow].to_bytes(4, "big"), TARGET)
        self.sent[flow] += 1

    def exchange(self, flow: int) -> None:
        """Ask once, and wait for the answer."""
        self.send(flow, asking=True)
        self.clients[flow].recv(100)

    def receive(self, server: socket.socket) -> None:
        """What the other end does."""
        while True:
            with suppress(TimeoutError):
                data, sender = server.recvfrom(100)
                if data == b"enough":
                    return
                self.came[int.from_bytes(data[1:3], "big")][int.from_bytes(data[3:], "big")] = time.monotonic()
                if data[0]:
                    server.sendto(data, sender)

    def longest_gap_s(self, flow: int, since: float) -> float:
        """Between two that came, in seconds."""
        times = [since, *sorted(at for at in self.came[flow].values() if at > since)]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def lost(self, flow: int) -> int:
        return self.sent[flow] - len(self.came[flow])


@pytest.fixture
def flows(hosts: tuple[Host, Host]) -> Iterator[Flows]:
    with ExitStack() as undo:
        server = undo.enter_context(socket_in(CB, socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(TARGET)
        made = Flows([undo.enter_context(socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(FLOWS)])
        thread = threading.Thread(target=made.receive, args=(server,))
        thread.start()
        try:
            yield made
        finally:
            with socket_in(CB, socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"enough", TARGET)
            thread.join()


def place(host: Host, direction: str, send: Callable[[], object]) -> int:
    """Which queue counts all of what is sent many times over: one and the same, or the bound is met."""
    before = queues(host)
    for _ in range(PACKETS):
        send()

    def found() -> list[int]:  # at most one: what was sent before, and is counted late, is far less
        pairs = enumerate(zip(queues(host), before, strict=True))
        return [queue for queue, (new, old) in pairs if new[direction] - old[direction] >= PACKETS]

    until(lambda: bool(found()))
    return found()[0]


# -------------------------------------------------------------------------------------------------------------- tests


@MOVERS
def test_flows_are_shared_out_and_answers_are_the_same_workers(hosts: tuple[Host, Host], flows: Flows) -> None:
    a, b = hosts
    assert {place(a, "outbound_packets", partial(flows.send, flow)) for flow in range(FLOWS)} == set(range(WORKERS))
    for host in (a, b):  # a peer is one worker's, and its flows are, once something came from it
        exchanges = [partial(flows.exchange, flow) for flow in range(4)]
        for exchange in exchanges:
            exchange()
        inbound = {place(host, "inbound_packets", exchange) for exchange in exchanges}
        assert {place(host, "outbound_packets", exchange) for exchange in exchanges} == inbound
        assert len(inbound) == 1
        until(partial(is_the_sum_of_its_queues, host))


def is_the_sum_of_its_queues(host: Host) -> bool:
    """What is counted between two looks (its own words, of IPv6) is in the second only."""
    each, total = queues(host), host.counters
    return {name: sum(queue[name] for queue in each) for name in COUNTERS} == {name: total.get(name, 0) for name in COUNTERS}


@MOVERS
def test_peers_are_shared_out(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    peers = {f"192.0.2.{100 + number}": f"10.5.{100 + number}.0/24" for number in range(PEERS)}
    b.tell("update", {a.subnet: a.address, **{subnet: address for address, subnet in peers.items()}})
    found = set()
    with ExitStack() as undo:
        for address, subnet in peers.items():
            ip(f"-n {HA} addr add {address}/24 dev eth1")
            undo.callback(ip, f"-n {HA} addr del {address}/24 dev eth1")
            packet = bytes(IP(src=subnet.replace(".0/24", ".2"), dst="10.5.9.2") / UDP(dport=4000))
            with socket_in(HA, socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind((address, 8286))
                found.add(place(b, "inbound_packets", partial(peer.sendto, packet, ("192.0.2.2", 8285))))
    assert found == set(range(WORKERS))


@MOVERS
def test_several_streams_each_way_arrive_as_they_were_sent(hosts: tuple[Host, Host]) -> None:
    with ThreadPoolExecutor(2 * TCP_STREAMS) as pool:
        for each in [pool.submit(transfer, source, 8 + number) for number in range(TCP_STREAMS) for source in (CA, CB)]:
            each.result()
    for host in hosts:
        dropped = {name: count for name, count in host.counters.items() if "dropped" in name and "not_ipv4" not in name}
        assert not dropped
        assert host.counters["inbound_packets"] > 1000


@MOVERS
def test_a_worker_that_is_killed_is_back_at_once_and_the_others_go_on(hosts: tuple[Host, Host], flows: Flows) -> None:
    a, b = hosts
    few = range(FEW)
    senders = [place(a, "outbound_packets", partial(flows.send, flow)) for flow in few]
    receivers = [place(b, "inbound_packets", partial(flows.send, flow)) for flow in few]
    assert len(set(senders)) > 1
    assert len(set(receivers)) == 1
    gaps, losses = [], []
    kills = [(a, b, senders, queue) for queue in sorted(set(senders))[:2]] + [(b, a, receivers, receivers[0])]
    for host, other, found, victim in kills:
        before = [worker_of(host, queue) for queue in range(WORKERS)]
        others = other.workers()
        lost = [flows.lost(flow) for flow in few]
        at = kill_under_load(before[victim], flows)
        after = [worker_of(host, queue) for queue in range(WORKERS)]
        assert [queue for queue in range(WORKERS) if after[queue] != before[queue]] == [victim]
        assert other.workers() == others
        gaps.append(max(flows.longest_gap_s(flow, at) for flow in few if found[flow] == victim))
        lost = [flows.lost(flow) - old for flow, old in zip(few, lost, strict=True)]
        assert sum(lost) == sum(lost[flow] for flow in few if found[flow] == victim)
        losses.append(sum(lost))
    assert min(losses) <= READS, losses  # what it had in hand; where others want the processors, what found no room meanwhile, too
    assert min(gaps) < max(0.5, 2 * start_s()), gaps  # of a machine that is busy with other things no more can be asked


def kill_under_load(pid: int | None, flows: Flows) -> float:
    """Send on a few flows before and after a worker is killed, and until the last one has come; when that was."""
    assert pid is not None
    began, at = time.monotonic(), 0.0
    for number in range(ROUNDS):
        if number == ROUNDS // 4:
            at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
        for flow in range(FEW):
            flows.send(flow)
        time.sleep(max(0.0, began + (number + 1) / PER_SECOND - time.monotonic()))
    until(lambda: all(flows.sent[flow] - 1 in flows.came[flow] for flow in range(FEW)))
    return at


@MOVERS
def test_each_worker_has_no_privileges_and_nothing_but_its_own(hosts: tuple[Host, Host]) -> None:
    for host in hosts:
        ours = set(descriptors(host.process.pid).values())
        log = descriptors(host.process.pid)[2]  # for tracebacks
        for number, queue in enumerate(queues(host)):
            pid = worker_of(host, number)
            assert pid is not None
            fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert fields["Uid"].split() == fields["Gid"].split() == ["65534"] * 4
            assert fields["Groups"].strip() == ""
            assert {fields[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
            assert fields["NoNewPrivs"] == "1"

            held = descriptors(pid)
            assert held[0] == held[1] == "/dev/null"
            assert [fd for fd, what in held.items() if what == "/dev/net/tun"] == [queue["tun"]]
            memory = {Path(f"/proc/{pid}/fd/{fd}").stat().st_ino for fd, what in held.items() if what.startswith("/memfd:")}
            assert memory == {queue["memory"]}
            speaking = {what for what in held.values() if what.startswith(("socket:", "pipe:"))}
            assert speaking & ours == {f"socket:[{queue['socket']}]"}
            rest = {what for what in held.values() if what not in speaking and not what.startswith("/memfd:")}
            assert rest - {log} <= {"/dev/null", "/dev/net/tun"} | {f"anon_inode:[{kind}]" for kind in UVLOOPS}
            # Control, and what uvloop and Python make for themselves: the two ends are both the worker's.
            unix = {f"socket:[{line.split()[6]}]" for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]}
            assert {what for what in speaking - ours if what.startswith("socket:")} <= unix


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open, as /proc shows it."""
    return {int(each.name): str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}


def test_a_deleted_device_ends_all_workers_and_can_be_opened_again(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    ip(f"-n {HA} link del flannel0")
    assert a.tell("outcome") == "BackendError: TUN device flannel0 was deleted"
    assert a.workers() == []
    counted = a.counters
    assert a.tell("open") is None
    a.configure()
    a.tell("run")
    until(lambda: pings(CA, "10.5.9.2"))
    until(lambda: a.counters["outbound_packets"] > counted["outbound_packets"])  # counted a moment after it is sent


def test_stop_and_close_leave_nothing(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    workers = a.workers()
    a.tell("stop")
    assert not any(runs(pid) for pid in workers)
    a.tell("close")
    assert "flannel0" not in inside(HA, "ip -br link")
    assert ":8285" not in inside(HA, "ss -Hlun")


def test_peers_that_change_change_for_all_workers(hosts: tuple[Host, Host], flows: Flows) -> None:
    a, b = hosts
    a.tell("update", {b.subnet: None})
    until(lambda: not pings(CA, "10.5.9.2"))
    for flow in range(FLOWS):
        flows.send(flow)
    until(lambda: all(queue["outbound_dropped_no_peer"] > 0 for queue in queues(a)))
    a.tell("update", {b.subnet: b.address})
    until(lambda: pings(CA, "10.5.9.2"))
    before = [flows.sent[flow] for flow in range(FLOWS)]
    for flow in range(FLOWS):
        flows.send(flow)
    until(lambda: all(first in flows.came[flow] for flow, first in enumerate(before)))


# ------------------------------------------------------------------------------------------------------ who is in the way


def test_a_foreign_holder_of_the_port_is_told(network: None) -> None:
    host = Host(HA, "10.5.72.0/24", "192.0.2.1")
    with ExitStack() as undo:
        host.begin(options())
        undo.callback(host.end)
        for address, shares in itertools.product(("192.0.2.1", "0.0.0.0"), (True, False)):
            with socket_in(HA, socket.AF_INET, socket.SOCK_DGRAM) as foreign:
                foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
                foreign.bind((address, 8285))
                assert host.tell("open").startswith("BackendError: UDP 192.0.2.1:8285: taken: a running flanneld or another agent")
                assert "flannel0" not in inside(HA, "ip -br link")
        assert host.tell("open") is None


def test_a_second_agent_joins_neither_port_nor_device(hosts: tuple[Host, Host]) -> None:
    in_the_way = {8285: "UDP 192.0.2.1:8285: taken", 8286: "TUN device flannel0: busy"}
    for (port, what), workers in itertools.product(in_the_way.items(), (1, WORKERS)):
        second = Host(HA, "10.5.73.0/24", "192.0.2.1")
        with ExitStack() as undo:
            second.begin(options(Workers=workers, Port=port))
            undo.callback(second.end)
            assert second.tell("open").startswith(f"BackendError: {what}: a running flanneld or another agent")
            assert ":8286" not in inside(HA, "ss -Hlun")
    assert len(inside(HA, "ss -Hlun").splitlines()) == WORKERS
    assert "numqueues 4 " in inside(HA, "ip -d link show flannel0")
    assert pings(CA, "10.5.9.2")


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_a_device_of_another_kind_is_told(network: None, workers: int) -> None:
    host = Host(HA, "10.5.72.0/24", "192.0.2.1")
    with ExitStack() as undo:
        host.begin(options(Workers=workers))
        undo.callback(host.end)
        ip(f"-n {HA} link add flannel0 type bridge")
        undo.callback(ip, f"-n {HA} link del flannel0")
        expected = "a device of this name and of another kind is in the way: ip link del flannel0"
        assert host.tell("open") == f"BackendError: TUN device flannel0: {expected}"


IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x4000, 0x0100


@pytest.mark.parametrize("known", [0, IFF_VNET_HDR, IFF_MULTI_QUEUE])
def test_a_kernel_with_a_single_queue_gets_one_worker(network: None, known: int) -> None:
    host = Host(HA, "10.5.72.0/24", "192.0.2.1")
    expected = WORKERS if known & IFF_MULTI_QUEUE else 1
    with ExitStack() as undo:
        host.begin(options(tun_features=known))
        undo.callback(host.end)
        assert host.tell("open") is None
        host.configure()
        host.tell("run")
        until(lambda: len(host.workers()) == expected)
        until(lambda: not pings(CA, "10.5.9.2") and host.counters.get("outbound_dropped_no_peer", 0) > 0)
        assert len(queues(host)) == expected
        assert len(inside(HA, "ss -Hlun sport = :8285").splitlines()) == expected
        details = inside(HA, "ip -d link show flannel0")
        assert ("multi_queue" in details) == (expected > 1)
        assert ("vnet_hdr on" in details) == bool(known & IFF_VNET_HDR)


# ------------------------------------------------------------------------------------------------ while nobody moves packets

MANY = 1900
"""What 1,000 packets a second are in most of two seconds; some room is left for what the device itself says."""


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_two_seconds_of_small_packets_wait_both_ways(network: None, workers: int) -> None:
    a, b = Host(HA, "10.5.72.0/24", "192.0.2.1"), Host(HB, "10.5.9.0/24", "192.0.2.2")
    with ExitStack() as undo:
        for host, peer in ((a, b), (b, a)):
            host.begin(options(Workers=workers))
            undo.callback(host.end)
            assert host.tell("open") is None
            host.tell("update", {peer.subnet: peer.address})
            host.configure()
        b.tell("run")
        inside(CA, "ping -c1 -W1 10.5.72.1")  # or the first packets wait for an answer to ARP, where few can
        with socket_in(CA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("10.5.72.2", 5000))
            for number in range(MANY):
                sender.sendto(number.to_bytes(4, "big"), ("10.5.9.2", 4000))
        with socket_in(HB, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(MANY):
                sender.sendto(number.to_bytes(4, "big"), ("192.0.2.1", 8285))
        a.tell("run")
        until(lambda: a.counts("inbound_dropped_short", MANY))
        until(lambda: a.counts("outbound_packets", MANY))
        until(lambda: b.counts("inbound_packets", MANY))
