"""What has a fault cost? A stream of pings, and the kernel's own record of every route that was taken away meanwhile."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from netns_lab.etcd import EtcdFailedError
from netns_lab.host import Host
from netns_lab.lab import Lab
from netns_lab.namespaces import Process
from tests.lab.agent_support import Log, Vtep, grant, routes, until

EVERY_DEADLINE_S = 13.0
"""Longer than any deadline towards etcd: calls 5 s, a silent watch 4 s, liveness 5 s, gRPC's keepalive 10 s."""

APART = {"SubnetMin": "10.1.128.0"}
"""Agents take their subnets from here up, so that they never meet the peers of the tests."""

LATE = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
GONE = Vtep("10.1.78.0/24", "192.168.50.78", "02:00:00:00:00:78")
"""Two peers that are only keys: one comes during a fault, the other goes."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one fault has cost."""

    fault: str
    seconds: float
    sent: int
    lost: int
    longest_ms: float
    removed: tuple[str, ...]

    def __str__(self) -> str:
        lost = f"{self.lost} of {self.sent} pings lost, longest gap {self.longest_ms:.0f} ms"
        return f"{self.fault}: {self.seconds:.1f} s, {lost}, {len(self.removed)} peers' routes taken away"


COSTS: list[Cost] = []
"""Of every fault of this run."""


@dataclass(slots=True)
class Fault:
    """A fault that goes on; ``removed`` tells which routes the kernel has lost so far, ``h1: 10.1.9.0/24 via ...``."""

    lab: Lab
    monitors: dict[str, Process]
    cost: Cost | None = None
    expected: set[str] = field(default_factory=set)

    def removed(self) -> list[str]:
        found = []
        for name, monitor in self.monitors.items():
            for line in monitor.printed().splitlines():
                match = re.match(r"Deleted (10\.1\.\d+\.0/24 .*dev flannel\.1.*)", line)
                if match is not None and match[1].split()[0] not in self.expected:
                    found.append(f"{name}: {match[1]}")
        return found


@asynccontextmanager
async def watched(lab: Lab, fault: str, *, leaving: Collection[Vtep] = ()) -> AsyncIterator[Fault]:
    """Pings from c1 to c2 and a record of the routes that go, for the time of the block; ``leaving`` may go."""
    monitors = {host.name: await _monitor(lab, host) for host in lab.hosts if host.agent.running}
    watching = Fault(lab, monitors, expected={peer.subnet for peer in leaving})
    started = time.monotonic()
    try:
        async with lab.pinging("c1", "c2", per_second=100) as pings:
            yield watching
            before = pings.answers()
            await until(
                lambda: pings.answers() > before + 10, 5, "pings answered after the fault", lambda: pings.log.read_text()[-500:]
            )
        seconds = time.monotonic() - started
        watching.cost = Cost(fault, seconds, pings.sent, pings.lost, pings.longest_ms, tuple(watching.removed()))
        COSTS.append(watching.cost)
    finally:
        for monitor in monitors.values():
            await monitor.kill()


@asynccontextmanager
async def unharmed(lab: Lab, fault: str, *, leaving: Collection[Vtep] = ()) -> AsyncIterator[Fault]:
    """The same, and nothing may be lost: no ping, no peer's route, not even for a moment; no host moves to another subnet."""
    subnets = [host.subnet for host in lab.hosts]
    before = {host.name: {line for line in await routes(host) if "dev flannel.1" in line} for host in lab.hosts}
    async with watched(lab, fault, leaving=leaving) as watching:
        yield watching
    cost = watching.cost
    assert cost is not None
    logs = "\n".join(f"--- {host.name}\n{Log.of(host).text[-2500:]}" for host in lab.hosts)
    assert cost.sent >= 10, cost
    assert not cost.removed, f"{cost.removed}\n{logs}"
    assert cost.lost == 0, f"{cost}\n{logs}"
    assert [host.subnet for host in lab.hosts] == subnets
    for host in lab.hosts:
        gone = before[host.name] - set(await routes(host))
        assert {line.split()[0] for line in gone} <= watching.expected, f"{host.name}: {gone}"


async def _monitor(lab: Lab, host: Host) -> Process:
    """``ip monitor route`` on a host: nothing that happens between two looks escapes it."""
    log = Path(lab.directory / f"monitor-{host.name}-{len(list(lab.directory.glob('monitor-*')))}.log")
    process = host.namespace.spawn(f"monitor {host.name}", ["ip", "monitor", "route"], log=log, lasting=False)
    table = Path(f"/proc/{process.pid}/net/netlink")

    def listens() -> bool:
        """Its socket (protocol 0, rtnetlink) has joined groups."""
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
        return any(row[1] == "0" and row[2] == str(process.pid) and int(row[3], 16) for row in rows)

    await until(listens, 5, "ip monitor listens")
    return process


@contextmanager
def stopped(lab: Lab, *members: int) -> Iterator[None]:
    """These members stand still (SIGSTOP) for the block: connections stay open, nothing comes back."""
    for member in members:
        lab.etcd.signal(member, signal.SIGSTOP)
    try:
        yield
    finally:
        for member in members:
            lab.etcd.signal(member, signal.SIGCONT)


@asynccontextmanager
async def cut_off(*hosts: Host) -> AsyncIterator[None]:
    """Packets between these hosts and etcd vanish without a word, both ways; what the hosts send each other goes on."""
    rules = """table inet cut {
        chain out { type filter hook output priority 0; ip daddr 192.168.50.5 drop; }
        chain in { type filter hook input priority 0; ip saddr 192.168.50.5 drop; }
    }"""
    for host in hosts:
        await host.exec("nft", "-f", "-", stdin=rules)
    try:
        yield
    finally:
        for host in hosts:
            await host.exec("nft", "delete", "table", "inet", "cut")


def put_peer(lab: Lab, peer: Vtep) -> None:
    """A peer that is nothing but a key under a lease of a day."""
    lab.etcd.ctl("put", f"--lease={grant(lab)}", "--", peer.key, peer.value)


async def until_put(lab: Lab, peer: Vtep) -> None:
    """Put while the members elect a leader."""
    deadline = asyncio.get_running_loop().time() + 15
    while True:
        try:
            return put_peer(lab, peer)
        except EtcdFailedError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.1)
