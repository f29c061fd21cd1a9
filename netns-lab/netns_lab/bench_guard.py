"""What does source validation cost a vxlan host? Without a guard and with one, at 10 and 10,000 peers: TCP through VXLAN, by time
and by the processor's time for it, which no other load of the machine disturbs much; and the same for a small datagram.

c 10.5.9.2 - s ======= veth ======= r - d 10.5.72.2          the guard is r's, the flow is from container c to container d

There are such four namespaces for each, all made beforehand, so that nothing but the flow takes time. They take turns, the one
without a guard between any two: each run is compared with those without right before and right after it, so that what else the
machine does meets both alike, also where it comes or goes. Printed are the median of these ratios, the bounds between which it lies
with a probability of 95 %, whatever their distribution is, and whether that tells that it is at least the promised one.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import math
import os
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Guard, GuardedPort
from flannelpy.core.guard import Side, guard_chains, guard_elements, guard_sets
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Scope
from flannelpy.core.plan import plan
from flannelpy.core.rules import FirewallOptions, firewall
from flannelpy.kernel.netlink import NetlinkKernel

DATAGRAMS = 20_000
STREAM_BYTES = 100_000_000
"""Some 0.1 s of TCP: many short runs tell more than a few long ones, for the machine is another one by then."""
CHUNK_BYTES = 1 << 18
SINK = "10.5.72.2"
"""The address of the container that takes the flow."""
PEERS = (0, 10, 10_000)
"""0: no guard at all."""
PROMISED = 0.97
"""Of the throughput without a guard."""
SURE = 0.95
SIDE = Side(IPNetwork("10.0.0.0/8"), IPNetwork("10.5.72.0/24"), 24)
GUARD = Guard(GuardedPort("vxlan", 8472, inner=30, ethertype=28, vni=1), "default")


def wanted(peers: int) -> HostState:
    """The firewall of a host with so many peers; the last is the sender."""
    if not peers:
        return HostState()
    first = int(IPAddress("198.18.0.0"))
    others = [Lease(IPNetwork(f"10.{128 + at // 256}.{at % 256}.0/24"), _at(first + at)) for at in range(peers - 1)]
    leases = [*others, Lease(IPNetwork("10.5.9.0/24"), _at(int(IPAddress("192.0.2.2"))))]
    elements = [item for lease in leases for item in guard_elements(GUARD, "flannelpy", [SIDE], lease)]
    chains = firewall("flannelpy", [], FirewallOptions(forward=False), guard_chains(GUARD, [SIDE]))
    return guard_sets(GUARD, "flannelpy", [SIDE]) | chains | HostState.from_iterable(elements)


def container(host: str) -> str:
    """The namespace of the container on this host."""
    return f"{host}-c"


def _at(address: int) -> LeaseAttrs:
    return LeaseAttrs(IPAddress(address, 4))


def _ip(text: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True)


def make(sender: str, receiver: str) -> None:
    """Both hosts with their devices and entries, and a container on each."""
    _ip(f"netns add {sender}\nnetns add {receiver}\nlink add eth1 netns {sender} type veth peer name eth1 netns {receiver}\n")
    for host, subnet in ((sender, "10.5.9"), (receiver, "10.5.72")):
        inner = container(host)
        _ip(f"netns add {inner}\nlink add c0 netns {host} type veth peer name eth0 netns {inner}\n")
        subprocess.run(["ip", "netns", "exec", host, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
        for name, words in (
            (host, (f"addr add {subnet}.1/24 dev c0", "link set c0 up")),
            (inner, (f"addr add {subnet}.2/24 dev eth0", "link set eth0 mtu 1450 up", f"route add default via {subnet}.1")),
        ):
            subprocess.run(["ip", "-n", name, "-batch", "-"], input="\n".join(words) + "\n", text=True, check=True)
    ends = ((sender, "192.0.2.2", "10.5.9.0", 9), (receiver, "192.0.2.1", "10.5.72.0", 72))
    for (name, outer, inner, mac), (_, peer, far, far_mac) in zip(ends, reversed(ends), strict=True):
        lines = (
            f"addr add {outer}/24 dev eth1",
            "link set eth1 up",
            f"link add flannel.1 address 02:00:00:00:00:{mac:02} mtu 1450"
            f" type vxlan id 1 dev eth1 local {outer} dstport 8472 nolearning",
            f"addr add {inner}/32 dev flannel.1",
            "link set flannel.1 up",
            f"neigh add {far} lladdr 02:00:00:00:00:{far_mac:02} dev flannel.1 nud permanent",
            f"route add {far}/24 via {far} dev flannel.1 onlink src {inner}",
        )
        subprocess.run(["ip", "-n", name, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)
        fdb = ["ip", "netns", "exec", name, "bridge", "fdb", "add", f"02:00:00:00:00:{far_mac:02}", "dev", "flannel.1", "dst", peer]
        subprocess.run(fdb, check=True)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    libc.setns(there, 0)
    try:
        yield
    finally:
        libc.setns(home, 0)
        os.close(home)
        os.close(there)


async def guard(receiver: str, peers: int) -> None:
    """Have the receiver's firewall as it is with so many peers."""
    with inside(receiver):
        kernel = NetlinkKernel()
        try:
            observed = await kernel.observe(Scope())
            results = await kernel.apply(plan(wanted(peers), observed))
            assert all(result.error is None for result in results)
        finally:
            await kernel.close()


def datagram_ns(sender: str, receiver: str) -> float:
    """Of this thread's time for one: through both hosts' kernels, which a veth pair does in the sender's call."""
    with inside(container(receiver)):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind((SINK, 9999))  # is never read: what does not fit is dropped at the very end
    with inside(container(sender)):
        source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink, source:
        source.connect((SINK, 9999))
        began = time.thread_time_ns()
        for _ in range(DATAGRAMS):
            source.send(b"12345678")
        return (time.thread_time_ns() - began) / DATAGRAMS


@dataclass(frozen=True)
class Run:
    """What was measured at a time: TCP's Gbit/s by time and by processor time, ns a datagram."""

    rate: float
    worth: float
    datagram: float


@dataclass
class Way:
    """A pair of namespaces, what was measured between them, and what of that to the runs of another pair before and after it."""

    sender: str
    receiver: str
    runs: list[Run] = field(default_factory=list)
    ratios: list[Run] = field(default_factory=list)

    def measure(self) -> Run:
        datagram = datagram_ns(self.sender, self.receiver)
        seconds, busy = stream_s(container(self.sender), container(self.receiver))
        self.runs.append(Run(8 * STREAM_BYTES / seconds / 1e9, 8 * STREAM_BYTES / busy / 1e9, datagram))
        return self.runs[-1]

    def compare(self, before: Run, after: Run) -> None:
        """The last run with those around it."""
        run = self.runs[-1]
        rate, worth = (
            each / statistics.mean(others)
            for each, others in (
                (run.rate, (before.rate, after.rate)),
                (run.worth, (before.worth, after.worth)),
            )
        )
        self.ratios.append(Run(rate, worth, run.datagram / statistics.mean((before.datagram, after.datagram))))


def stream_s(sender: str, receiver: str, address: str = SINK, size: int = STREAM_BYTES) -> tuple[float, float]:
    """How long one TCP flow of ``size`` bytes takes from namespace to namespace, and the time of both its ends' threads, the
    kernel's work in it.
    """
    with inside(receiver):
        listening = socket.create_server((address, 0))
    with inside(sender):
        source = socket.socket()
    busy = []

    def take() -> None:
        taken, room = 0, bytearray(CHUNK_BYTES)
        with listening.accept()[0] as sink:
            began = time.thread_time()
            while taken < size:
                taken += sink.recv_into(room)
            busy.append(time.thread_time() - began)

    with listening, source:
        source.connect(listening.getsockname())
        taker = threading.Thread(target=take)
        began, spent, data = time.perf_counter(), time.thread_time(), bytes(CHUNK_BYTES)
        taker.start()
        for first in range(0, size, CHUNK_BYTES):
            source.sendall(data[: size - first])
        busy.append(time.thread_time() - spent)
        taker.join()
        return time.perf_counter() - began, sum(busy)


@dataclass(frozen=True)
class Median:
    """Of what was found, and the bounds of what it is of: between them it lies with the probability ``SURE``."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, found: Sequence[float]) -> Median:
        """Each value lies above the true median or below it as a coin falls, so fewer than so many seldom lie on one side."""
        ordered, count = sorted(found), len(found)
        outside, chance = 0, 0.5**count
        while 2 * (chance + 0.5**count * math.comb(count, outside + 1)) <= 1 - SURE:
            outside += 1
            chance += 0.5**count * math.comb(count, outside)
        return cls(ordered[outside], statistics.median(ordered), ordered[-1 - outside])

    @property
    def verdict(self) -> str:
        """Whether it is ``PROMISED`` at least, where that can be told."""
        if self.low >= PROMISED:
            return f">= {PROMISED}"
        return f"< {PROMISED}" if self.high < PROMISED else f"whether >= {PROMISED} cannot be told: more ROUNDS"

    def __str__(self) -> str:
        return f"{self.middle:.3f} x ({self.low:.3f} to {self.high:.3f})"


def _bench(rounds: int) -> None:
    ways: dict[int, Way] = {}
    try:
        for peers in PEERS:
            ways[peers] = Way(f"guard-{os.getpid()}-{peers}-s", f"guard-{os.getpid()}-{peers}-r")
            make(ways[peers].sender, ways[peers].receiver)
            asyncio.run(guard(ways[peers].receiver, peers))
        for way in ways.values():
            stream_s(container(way.sender), container(way.receiver))  # the first one warms caches
        bare, *guarded = ways.values()
        before = bare.measure()
        for _ in range(rounds):
            for way in guarded:
                way.measure()
                after = bare.measure()
                way.compare(before, after)
                before = after
        for peers, way in ways.items():
            _tell(f"{peers:,} peers" if peers else "no guard", way)
        size = STREAM_BYTES // 1_000_000
        print(f"{rounds} rounds of {size} MB each; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    finally:
        for way in ways.values():
            for name in (container(way.sender), container(way.receiver), way.sender, way.receiver):
                subprocess.run(["ip", "netns", "del", name], check=False)


def _tell(name: str, way: Way) -> None:
    rate, worth, datagram = (statistics.median(getattr(run, each) for run in way.runs) for each in ("rate", "worth", "datagram"))
    print(f"{name}: TCP {rate:.2f} Gbit/s, by processor time {worth:.2f} Gbit/s; a datagram {datagram:.0f} ns")
    if way.ratios:
        by_time, by_processor, dearer = (
            Median.of([getattr(run, each) for run in way.ratios]) for each in ("rate", "worth", "datagram")
        )
        print(f"  of TCP without a guard, by time            {by_time}, {by_time.verdict}")
        print(f"  of TCP without a guard, by processor time  {by_processor}, {by_processor.verdict}")
        print(f"  a datagram to one without a guard          {dearer}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_guard", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=100, help="at least six")
    _bench(max(6, parser.parse_args().rounds))


if __name__ == "__main__":
    main()
