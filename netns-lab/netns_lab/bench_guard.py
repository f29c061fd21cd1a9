"""What does source validation cost a vxlan host? Without a guard and with one, at 10 and 10,000 peers: TCP through VXLAN by iperf3,
and the processor's time for a small datagram from end to end, which no other load of the machine disturbs much.

s 10.5.9.0 - 192.0.2.2 ======= veth ======= 192.0.2.1 - r 10.5.72.0        two namespaces; the guard is r's, the flow is s to r

Prints the ratio to the runs without, the median of the rounds' own: what else the machine does meets all of a round alike, and each
round begins with another.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Guard, GuardedPort
from flannelpy.core.guard import Side, guard_chains, guard_elements, guard_sets
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Scope
from flannelpy.core.plan import plan
from flannelpy.core.rules import FirewallOptions, firewall
from flannelpy.kernel.netlink import NetlinkKernel

DATAGRAMS = 50_000
PEERS = (0, 10, 10_000)
"""0: no guard at all."""
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


def _at(address: int) -> LeaseAttrs:
    return LeaseAttrs(IPAddress(address, 4))


def _ip(text: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True)


def make(sender: str, receiver: str) -> None:
    """Both hosts with their devices and entries."""
    _ip(f"netns add {sender}\nnetns add {receiver}\nlink add eth1 netns {sender} type veth peer name eth1 netns {receiver}\n")
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
    with inside(receiver):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind(("10.5.72.0", 9999))  # is never read: what does not fit is dropped at the very end
    with inside(sender):
        source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink, source:
        source.connect(("10.5.72.0", 9999))
        began = time.thread_time_ns()
        for _ in range(DATAGRAMS):
            source.send(b"12345678")
        return (time.thread_time_ns() - began) / DATAGRAMS


def measure(sender: str, seconds: int) -> float:
    """Gbit/s of one TCP flow."""
    command = ["ip", "netns", "exec", sender, "iperf3", "-J", "-t", str(seconds), "-c", "10.5.72.0"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _bench(rounds: int, seconds: int) -> None:
    sender, receiver = (f"guard-{os.getpid()}-{which}" for which in "sr")
    server = None
    try:
        make(sender, receiver)
        server = subprocess.Popen(["ip", "netns", "exec", receiver, "iperf3", "-s"], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        found: dict[int, list[float]] = {peers: [] for peers in PEERS}
        cost: dict[int, list[float]] = {peers: [] for peers in PEERS}
        for number in range(rounds):
            first = number % len(PEERS)
            for peers in (*PEERS[first:], *PEERS[:first]):
                asyncio.run(guard(receiver, peers))
                cost[peers].append(datagram_ns(sender, receiver))
                found[peers].append(measure(sender, seconds))
        nanoseconds = {peers: statistics.median(cost[peers]) for peers in PEERS}
        print(f"without a guard    {statistics.median(found[0]):6.2f} Gbit/s{'':25}{nanoseconds[0]:6.0f} ns a datagram")
        for peers in PEERS[1:]:
            ratios = sorted(rate / bare for rate, bare in zip(found[peers], found[0], strict=True))
            rate, ratio = statistics.median(found[peers]), statistics.median(ratios)
            spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{peers:6,} peers        {rate:6.2f} Gbit/s  {ratio:.2f} x  {spread}  {nanoseconds[peers]:6.0f} ns a datagram")
        print(f"{rounds} rounds of {seconds} s; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    finally:
        if server is not None:
            server.terminate()
            server.wait()
        for name in (sender, receiver):
            subprocess.run(["ip", "netns", "del", name], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_guard", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    given = parser.parse_args()
    _bench(given.rounds, given.seconds)


if __name__ == "__main__":
    main()
