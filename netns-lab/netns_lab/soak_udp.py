"""Does udp in user space hold for long? Traffic of all kinds between two hosts for minutes, and a look at what the processes hold.

    python -m netns_lab.soak_udp [--minutes 10]

  c1 - h1 ==== udp ==== h2 - c2         etcd with a swarm of nodes that come and go; garbage to both ports from etcd's machine

Streams, short connections, datagrams of odd sizes, pings, destinations that nobody leased. Exit 1 where descriptors or threads of
an agent or a worker grew, memory rose by more than a bound, or a byte was wrong. Table, lab-out/soak-udp.json and
lab-out/soak-udp.svg; ctrl-C ends it early, with what there is.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from netns_lab.errors import LabError
from netns_lab.etcd import EtcdFailedError
from netns_lab.footprint import GROWTH_KB, Footprint, draw
from netns_lab.host import Host
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import Lab
from netns_lab.namespaces import open_socket
from netns_lab.pinging import Pinging
from netns_lab.topology import Topology
from netns_lab.traffic import Pair, call, datagrams, transfer

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "lab-out"
TOPOLOGY = Topology(
    hosts=2,
    backend="udp",
    agent_options=("--ip-masq", "--udp-engine=userspace"),
    config={"SubnetMax": "10.1.199.0", "SubnetLen": 24},
)
UNLEASED = "10.1.250."
"""Addresses in the network that no host can lease."""
PORT = 8285
EAR = 4000
STREAM = 50_000_000
STUCK_S = 120.0
NODES, CHURN = 60, 10


@dataclass(slots=True)
class Tally:
    """What was done, and what was wrong with it."""

    stream_octets: int = 0
    streams: int = 0
    connections: int = 0
    datagrams: int = 0
    datagrams_lost: int = 0
    unknown: int = 0
    garbage: int = 0
    pings: int = 0
    pings_lost: int = 0
    changes: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    """What the workers of both hosts have counted."""
    wrong: list[str] = field(default_factory=list)


class Soak:
    """A lab under all kinds of traffic."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._chance = random.Random(1)
        self._stop = asyncio.Event()
        self.tally = Tally()
        self.footprints: list[Footprint] = []

    def stop(self) -> None:
        """End early."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Was it ended early?"""
        return self._stop.is_set()

    async def run(self, seconds: float, tell: Callable[[float, Tally], None]) -> None:
        """Traffic for so long, or until ``stop``; a look at the processes every now and then, and ``tell`` after each."""
        self.footprints = await self._processes()
        log = self._lab.directory / "swarm.log"
        words = [sys.executable, "-m", "netns_lab.swarm", self._lab.etcd.urls[0], f"--nodes={NODES}", f"--churn={CHURN}", "--json"]
        env = {"PYTHONPATH": f"{ROOT}:{ROOT}/netns-lab"}
        swarm = self._lab.box("etcd").namespace.spawn("swarm", words, log=log, env=env, lasting=False)
        kinds: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self._streams,
            self._connections,
            self._datagrams,
            self._unknown,
            self._garbage,
        )
        pings = Pinging()
        try:
            async with self._lab.pinging("c1", "c2", per_second=20) as pings:
                tasks = [asyncio.create_task(kind(), name=kind.__name__.strip("_")) for kind in kinds]
                try:
                    await self._watch(seconds, tasks, tell)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            for host in self._lab.hosts:
                for name, count in (await self._told(host))["counters"].items():
                    self.tally.counted[name] = self.tally.counted.get(name, 0) + count
        finally:
            if swarm.exit_code is not None:
                self.tally.wrong.append(f"the swarm ended: {swarm.tail(1)}")
            await swarm.stop()
            self.tally.pings, self.tally.pings_lost = pings.sent, pings.lost
            with suppress(ValueError, StopIteration):
                lines = (line for line in log.read_text().splitlines() if line.startswith("{"))
                self.tally.changes = json.loads(next(lines))["changes"]

    async def _watch(self, seconds: float, tasks: list[asyncio.Task[None]], tell: Callable[[float, Tally], None]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        every_s = min(max(seconds / 100, 0.25), 3.0)
        while True:
            now = loop.time() - began
            for each in self.footprints:
                if not each.look(now):
                    raise LabError(f"{each.name} (pid {each.pid}) ended after {now:.0f} s")
            for task in tasks:
                if task.done():
                    raise LabError(f"{task.get_name()} ended after {now:.0f} s: {task.exception()!r}")
            tell(now, self.tally)
            if now >= seconds or self.stopped:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._stop.wait()

    async def _processes(self) -> list[Footprint]:
        """Each agent, and its workers."""
        found = []
        for host in self._lab.hosts:
            found.append(Footprint(f"{host.name} agent", host.agent.pid))
            workers = (await self._told(host))["workers"]
            found += [Footprint(f"{host.name} worker {number}", worker["pid"]) for number, worker in enumerate(workers, 1)]
        return found

    async def _told(self, host: Host) -> dict[str, Any]:
        """What the host's agent tells of its datapath. Raises LabError."""
        assert host.settings is not None
        said = await host.exec(*host.settings.program, "status", f"--run-dir={host.run_dir}", "--json")
        told: dict[str, Any] = json.loads(said)["pump"]
        return told

    # ----------------------------------------------------------------------------------------------------- traffic

    def _pair(self) -> Pair:
        source, target = self._chance.sample(self._lab.containers, 2)
        return Pair(source.namespace.path, target.namespace.path, str(target.address))

    async def _in_time(self, what: str, work: Awaitable[Any]) -> Any:
        """What it gives; None, and a line in the tally, where it fails or hangs."""
        try:
            async with asyncio.timeout(STUCK_S):
                return await work
        except TimeoutError:
            self.tally.wrong.append(f"{what}: not done within {STUCK_S:g} s")
        except (OSError, ExceptionGroup) as error:
            self.tally.wrong.append(f"{what}: {error}")
        return None

    async def _streams(self) -> None:
        for seed in itertools.count(1):
            if (done := await self._in_time("stream", transfer(self._pair(), STREAM, seed))) is not None:
                self.tally.streams += 1
                self.tally.stream_octets += done.octets
                if done.got != done.sent:
                    self.tally.wrong.append(f"stream {seed}: other octets came than were sent")

    async def _connections(self) -> None:
        for seed in itertools.count(1):
            if (calls := await self._in_time("connections", call(self._pair(), 100, at_once=20, seed=seed))) is not None:
                self.tally.connections += calls.good
                self.tally.wrong += calls.wrong

    async def _datagrams(self) -> None:
        for seed, longest in enumerate(itertools.cycle((64, 1400, 200, 4000)), 1):
            if (got := await self._in_time("datagrams", datagrams(self._pair(), 3000, longest=longest, seed=seed))) is not None:
                self.tally.datagrams += got.sent
                self.tally.datagrams_lost += got.sent - len(got.came)
                if got.bent or got.received > len(got.came):
                    self.tally.wrong.append(f"datagrams {seed}: {got.bent} came bent, {got.received - len(got.came)} came again")

    async def _unknown(self) -> None:
        """To addresses that no host can lease: ICMP says so, and the socket is none the wiser."""
        with open_socket(self._lab.container("c1").namespace.path, socket.AF_INET, socket.SOCK_DGRAM) as source:
            source.setblocking(False)
            while True:
                for _ in range(20):
                    with suppress(OSError):  # EAGAIN while the device is full
                        source.sendto(b"anybody there", (f"{UNLEASED}{self._chance.randrange(1, 255)}", 9))
                        self.tally.unknown += 1
                await asyncio.sleep(0.1)

    async def _garbage(self) -> None:
        """From a machine that is no peer: noise of any length, and packets that would be in order if c2 had sent them."""
        one, two = self._lab.container("c1"), self._lab.container("c2")
        with (
            open_socket(self._lab.box("etcd").namespace.path, socket.AF_INET, socket.SOCK_DGRAM) as stranger,
            open_socket(one.namespace.path, socket.AF_INET, socket.SOCK_DGRAM) as ear,
            open_socket(two.namespace.path, socket.AF_INET, socket.SOCK_DGRAM) as friend,
        ):
            for each in (stranger, ear, friend):
                each.setblocking(False)
            ear.bind((str(one.address), EAR))
            friend.bind((str(two.address), EAR))
            forged = udp_packet(str(two.address), str(one.address), EAR, b"forged")
            friend.sendto(b"honest", (str(one.address), EAR))
            async with asyncio.timeout(STUCK_S):
                heard = await asyncio.get_running_loop().sock_recv(ear, 100)
            if heard != b"honest":
                self.tally.wrong.append(f"heard {heard!r} where only an honest datagram was sent")
            while True:
                for _ in range(20):
                    noise = self._chance.randbytes(self._chance.choice((0, 1, 19, 20, 300, 1472)))
                    for octets in (noise, forged, forged[: self._chance.randrange(len(forged))]):
                        target = self._chance.choice(self._lab.hosts)
                        with suppress(OSError):
                            stranger.sendto(octets, (str(target.address), PORT))
                            self.tally.garbage += 1
                await asyncio.sleep(0.1)
                with suppress(BlockingIOError):
                    self.tally.wrong.append(f"a stranger's packet was let in: {ear.recv(100)!r}")


def udp_packet(source: str, target: str, port: int, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram that has no checksum (RFC 791, 768)."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    start = b"\x45\x00" + (28 + len(payload)).to_bytes(2, "big") + b"\x00\x01\x00\x00\x40\x11"
    total = sum(int.from_bytes((start + ends)[at : at + 2], "big") for at in range(0, 18, 2))
    checksum = 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))
    ports = port.to_bytes(2, "big") * 2 + (8 + len(payload)).to_bytes(2, "big") + b"\0\0"
    return start + checksum.to_bytes(2, "big") + ends + ports + payload


# ------------------------------------------------------------------------------------------------------------- report


def show(soak: Soak, console: Console) -> list[str]:
    """The report, as tables; what is wrong, one line each."""
    tally = soak.tally
    table = Table(title="what the processes hold: after the warm-up, at the end, most")
    for column in ("process", "descriptors", "threads", "resident, MB", "its trend, MB"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for each in soak.footprints:
        judged = each.judged or each.samples
        if not judged:
            continue
        cells = [
            f"{getattr(judged[0], what)}, {getattr(judged[-1], what)}, {max(getattr(sample, what) for sample in judged)}"
            for what in ("descriptors", "threads")
        ]
        memory = [sample.resident_kb / 1024 for sample in judged]
        cells.append(f"{memory[0]:.1f}, {memory[-1]:.1f}, {max(memory):.1f}")
        table.add_row(each.name, *cells, f"{each.growth_kb / 1024:+.2f}" if each.judged else "too few samples")
    console.print(table)
    reasons = {name: count for name, count in tally.counted.items() if count and "dropped" in name}
    dropped = ", ".join(f"{name.replace('_dropped_', ' ').replace('_', ' ')} {count:,}" for name, count in reasons.items())
    console.print(
        f"carried: {tally.streams} streams, {tally.stream_octets / 1e9:.2f} GB; {tally.connections:,} connections; "
        f"{tally.datagrams:,} datagrams ({tally.datagrams_lost:,} lost); {tally.pings:,} pings ({tally.pings_lost:,} lost)\n"
        f"not wanted: {tally.garbage:,} datagrams of a stranger; {tally.unknown:,} packets to nobody\n"
        f"dropped by the workers: {dropped or 'nothing'}\n"
        f"meanwhile: {tally.changes:,} changes of {NODES} other nodes in etcd",
        highlight=False,
    )
    wrong = [*tally.wrong, *(line for each in soak.footprints for line in each.complaints)]
    for line in wrong[:20]:
        console.print(f"[red]wrong[/] {line}", highlight=False)
    if not all(each.judged for each in soak.footprints):
        console.print("too short to tell what grows")
    elif not wrong:
        console.print(
            f"nothing grew: descriptors and threads as before, memory by at most {GROWTH_KB / 1024:g} MB; every byte was right"
        )
    return wrong


def save(soak: Soak, seconds: float, wrong: list[str]) -> None:
    """lab-out/soak-udp.json and .svg."""
    OUT.mkdir(exist_ok=True)
    processes = {each.name: [asdict(sample) for sample in each.samples] for each in soak.footprints}
    report = {"seconds": seconds, "tally": asdict(soak.tally), "wrong": wrong, "processes": processes}
    (OUT / "soak-udp.json").write_text(json.dumps(report, indent=1) + "\n")
    (OUT / "soak-udp.svg").write_text(draw(soak.footprints, "udp: what agents and workers hold under traffic of all kinds"))


async def soak_for(seconds: float, name: str, console: Console) -> int:
    """Make the lab, run, report; the exit code."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    async with Lab.up(TOPOLOGY, name=name) as lab:
        await lab.start_agents()
        await lab.connect_containers()
        soak = Soak(lab)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, soak.stop)
        with Progress(*columns, console=console, transient=True) as progress:
            shown = progress.add_task("soaking", total=seconds)

            def tell(now: float, tally: Tally) -> None:
                text = f"{tally.stream_octets / 1e9:.1f} GB, {tally.connections:,} connections, {len(tally.wrong)} wrong"
                progress.update(shown, completed=now, description=text)

            try:
                await soak.run(seconds, tell)
            except LabError as error:
                soak.tally.wrong.append(str(error))
    took = max((each.samples[-1].at_s for each in soak.footprints if each.samples), default=0.0)
    if soak.stopped:
        console.print(f"interrupted after {took:.0f} s; this is what there is")
    wrong = show(soak, console)
    save(soak, took, wrong)
    console.print(f"written: {OUT.name}/soak-udp.json, {OUT.name}/soak-udp.svg")
    return 1 if wrong else 130 if soak.stopped else 0


def main() -> int:
    """Run it; 0 where nothing grew and nothing was wrong, 1 where something did or was, 130 where it was interrupted before."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--name", default=f"soak{os.getpid()}", help="of the lab that it makes")
    given = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    try:
        return uvloop.run(soak_for(given.minutes * 60, given.name, console))
    except (LabError, EtcdFailedError) as error:
        print(f"soak-udp: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("soak-udp: interrupted; everything is removed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
