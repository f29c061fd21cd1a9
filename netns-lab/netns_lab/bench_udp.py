"""How fast is udp, in user space and by the kernel? Beside it, in turn: a plain C pump, VXLAN, no tunnel at all, and others.

    python -m netns_lab.bench_udp [--wire] [--rounds 5] [--seconds 3] [--only pump,c]

  ca 10.99.1.2 -- ha ========= hb -- cb 10.99.2.2        iperf3, sendmmsg and ping between the containers ca and cb; each way
                  192.0.2.1    192.0.2.2                 carries in turn

Over veth a super-packet of the kernel crosses whole; with --wire the hosts' ends are as cards are. Both worlds are real: the first
between containers of one machine, the second between machines. What cannot be had here is left out, and said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from netns_lab import bench_table
from netns_lab.bench_udp_report import VETH, WIRE, Values, save, show
from netns_lab.bench_udp_ways import PUMPS, ROOT, SOURCES, UPLINK_MTU, WAYS, Ends, mtu_of, until
from netns_lab.errors import LabError
from netns_lab.interrupt import heed_interrupts
from netns_lab.ledger import Ledger
from netns_lab.namespaces import Namespace, Process, batch, run, write_sysctls

PINGS = 300
LOADED_INTERVAL_S = 0.01
LOAD_PORT = 5312
GB = 1e9


class Bench:
    """Two hosts with a container each, and one way between them at a time."""

    def __init__(self, ledger: Ledger, programs: Mapping[str, Path], seconds: float, world: str, tcp_alone: bool = False) -> None:
        self._ledger = ledger
        self._programs = programs
        self._seconds = seconds
        self._world = world
        self._tcp_alone = tcp_alone
        self._uneven = False
        self.ha, self.hb, self.ca, self.cb = (Namespace(f"{ledger.name}-{name}", ledger) for name in ("ha", "hb", "ca", "cb"))
        self._sides = ((self.ha, self.ca, 1), (self.hb, self.cb, 2))
        self.ends = Ends(ledger, (self.ha, self.hb), programs)

    async def build(self) -> None:
        """Namespaces, wires, addresses, and an iperf3 server in cb."""
        names = [each.name for each in (self.ha, self.hb, self.ca, self.cb)]
        self._ledger.note_namespaces(names)
        await batch([f"netns add {name}" for name in names])
        self._ledger.note_inodes(names)
        await batch([f"link add eth1 netns {self.ha.name} type veth peer name eth1 netns {self.hb.name}"])
        for host, container, number in self._sides:
            await batch([f"link add c0 netns {host.name} type veth peer name eth0 netns {container.name}"])
            subnet = f"10.99.{number}"
            lines = [f"addr add 192.0.2.{number}/24 dev eth1", f"addr add {subnet}.1/24 dev c0"]
            await batch([*lines, *(f"link set {device} up" for device in ("lo", "eth1", "c0"))], inside=host.path)
            lines = ["link set lo up", "link set eth0 up", f"addr add {subnet}.2/24 dev eth0", f"route add default via {subnet}.1"]
            await batch(lines, inside=container.path)
            write_sysctls(host.path, {"ipv4/ip_forward": "1"})
        self._uneven = self._world == WIRE and await self.ends.needs_checksums()
        self.cb.spawn("iperf3", ["iperf3", "-s"], log=self._ledger.directory / "iperf3.log", lasting=False)

    @property
    def uneven(self) -> bool:
        """Whether userspace ends kept their card's checksums, because the kernel segments by no device without."""
        return self._uneven

    @asynccontextmanager
    async def way(self, kind: str) -> AsyncIterator[list[Process]]:
        """The way of this kind for the block; yields the pumps' processes, if it has any."""
        await self.ends.wire(kind, self._world == WIRE, self._uneven)
        for host, container, _ in self._sides:
            mtu = mtu_of(kind)
            await batch([f"link set c0 mtu {mtu}"], inside=host.path)
            await batch([f"link set eth0 mtu {mtu}"], inside=container.path)
        processes: list[Process] = []
        try:
            await self.ends.stand(kind, processes)
            await until(f"a ping by {kind}", self.ca, "ping", "-c1", "-W1", "10.99.2.2", among=processes)
            yield [each for each in processes if each.role in PUMPS]
        finally:
            await self.ends.clear(processes)

    # --------------------------------------------------------------------------------------------------- measuring

    async def measure(self, kind: str) -> Values:
        """All measures of one way, once."""
        async with self.way(kind) as pumps:
            if self._tcp_alone:
                return await self._tcp(pumps)
            values = await self._round_trips()
            values |= await self._tcp(pumps)
            values |= await self._loaded_round_trips()
            if "load" in self._programs:
                values["small"] = await self._small(self.ca, self.cb, "10.99.2.2")
                values["small_back"] = await self._small(self.cb, self.ca, "10.99.1.2")
            for size in (64, 1400):
                end = await self._iperf("-u", "-b", "0", "-l", str(size))
                got = end["sum"]
                values[f"udp{size}"] = (got["packets"] - got["lost_packets"]) / got["seconds"] / 1e3
        return values

    async def _small(self, source: Namespace, target: Namespace, address: str) -> float:
        """Datagrams of 64 bytes that come through, in thousands a second."""
        load, port, limit_s = str(self._programs["load"]), str(LOAD_PORT), self._seconds + 60
        receiving = asyncio.create_task(target.exec(load, "receive", port, timeout_s=limit_s))
        try:
            await until("a receiver", target, "sh", "-c", f"ss -Hlun sport = :{port} | grep -q .")
            await source.exec(load, "send", address, port, "64", f"{self._seconds:g}", timeout_s=limit_s)
            got = json.loads(await receiving)
        finally:
            receiving.cancel()
        if not got["seconds"]:
            raise LabError(f"of the small datagrams to {address} {got['packets']} came")
        return float(got["packets"]) / float(got["seconds"]) / 1e3

    async def _round_trips(self) -> Values:
        printed = await self.ca.exec("ping", "-c", str(PINGS), "-i", "0.005", "10.99.2.2", timeout_s=60)
        middle, high = percentiles(printed, PINGS, least=0.9)
        return {"rtt50": middle, "rtt99": high}

    async def _loaded_round_trips(self) -> Values:
        """Pings for as long as a TCP stream fills the way. A pump that drops packets loses pings, too; those do not count."""
        stream = asyncio.create_task(self._iperf())
        try:
            await until("a stream by iperf3", self.ca, "sh", "-c", "[ $(ss -Htn state established dport = 5201 | wc -l) -ge 2 ]")
            count = int(self._seconds * 0.8 / LOADED_INTERVAL_S)
            words = ["ping", "-c", str(count), "-i", str(LOADED_INTERVAL_S), "-W", "1", "10.99.2.2"]
            printed = (await self.ca.attempt(*words, timeout_s=60)).stdout
            await stream
        finally:
            stream.cancel()
        middle, high = percentiles(printed, count, least=0.1)
        return {"loaded50": middle, "loaded99": high}

    async def _tcp(self, pumps: Sequence[Process]) -> Values:
        values: Values = {}
        octets = retransmits = 0.0
        before = sum(cpu_s(pump.pid) for pump in pumps)
        for name, words in (("tcp1", ()), ("tcp1_back", ("-R",)), ("tcp4", ("-P", "4")), ("tcp4_back", ("-P", "4", "-R"))):
            end = await self._iperf(*words)
            values[name] = end["sum_received"]["bits_per_second"] / 1e9
            octets += end["sum_received"]["bytes"]
            retransmits += end["sum_sent"]["retransmits"]
        values["retransmits"] = retransmits / (octets / GB)
        if len(pumps) == len(self._sides):
            values["cpu"] = (sum(cpu_s(pump.pid) for pump in pumps) - before) / (octets / GB)
        return values

    async def _iperf(self, *words: str) -> Mapping[str, Mapping[str, float]]:
        """The end of iperf3's report; tried again where the server is not ready for the next test yet."""
        said = "nothing"
        for _ in range(20):
            command = ("iperf3", "-J", "-c", "10.99.2.2", "-t", f"{self._seconds:g}", *words)
            outcome = await self.ca.attempt(*command, timeout_s=self._seconds + 30)
            try:
                report = json.loads(outcome.stdout)
            except ValueError:
                report = {"error": outcome.stderr}
            if "error" not in report:
                end: Mapping[str, Mapping[str, float]] = report["end"]
                return end
            said = report["error"]
            await asyncio.sleep(0.2)
        raise LabError(f"iperf3 {' '.join(words)}: {said}")


def percentiles(printed: str, sent: int, *, least: float) -> tuple[float, float]:
    """p50 and p99 of what ping has printed, in ms. Raises LabError where fewer than this share came back."""
    times = sorted(float(found) for found in re.findall(r"time=([\d.]+)", printed))
    if len(times) < max(sent * least, 1):
        raise LabError(f"{sent - len(times)} of {sent} pings were lost")
    return statistics.median(times), times[int(len(times) * 0.99)]


def children(pid: int) -> list[int]:
    """Those that live, of a process' first thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(pid: int) -> float:
    """CPU time used by a process and by its children that live, in seconds (proc(5))."""
    total = 0.0
    for each in (pid, *children(pid)):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


# ---------------------------------------------------------------------------------------------------------------- run


async def compiled(directory: Path) -> dict[str, Path]:
    """The C pump and the load, built with cc, by name; nothing where there is no compiler."""
    if shutil.which("cc") is None:
        return {}
    programs = {}
    for name in ("refpump", "load"):
        programs[name] = directory / name
        built = await run(["cc", "-O2", "-o", str(programs[name]), str(SOURCES / f"{name}.c")])
        if built.code:
            raise LabError(f"{name}.c does not compile: {built.stderr.strip().splitlines()[-1]}")
    return programs


async def compare(given: argparse.Namespace, about: dict[str, object], progress: Progress) -> dict[str, list[Values]]:
    """All rounds; what was left out, and why, is added to ``about``."""
    kinds = [kind for kind in WAYS if kind in given.only.split(",")]
    rounds: dict[str, list[Values]] = {}
    task = progress.add_task("building", total=None)
    ledger = Ledger(given.name)
    ledger.claim({"bench": "udp"})
    try:
        bench = Bench(ledger, await compiled(ledger.directory), given.seconds, WIRE if given.wire else VETH, given.tcp_alone)
        await bench.build()
        about["userspace_keeps_checksums"] = bench.uneven
        left_out = {kind: reason for kind in kinds if (reason := await bench.ends.missing(kind))}
        about["left_out"] = left_out
        for kind, reason in left_out.items():
            progress.console.print(f"without {WAYS[kind].label}: {reason}")
        for each in range(given.rounds):
            for kind in kinds:
                if kind not in left_out:
                    progress.update(task, description=f"round {each + 1} of {given.rounds}: {WAYS[kind].label}")
                    rounds.setdefault(kind, []).append(await bench.measure(kind))
    finally:
        ledger.remove()
    return rounds


def main() -> int:
    """Run it; 0 where every target was met, 1 where one was missed or it could not be run."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wire", action="store_true", help="the hosts' ends are as cards are: packets of MTU size, and GRO")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run of iperf3 and the load")
    parser.add_argument("--tcp-alone", action="store_true", help="no round trips and no datagrams, which a guest is too slow for")
    parser.add_argument("--only", default=",".join(WAYS), help=f"ways, comma separated, of {','.join(WAYS)}")
    parser.add_argument("--name", default="bench-udp", help="of the lab that it makes")
    parser.add_argument("--suffix", default="", help="of the names of the files that it writes")
    given = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    loaded = os.getloadavg()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    about: dict[str, object] = {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load_before": loaded,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "mtu": {kind: mtu_of(kind) for kind in WAYS},
        "uplink_mtu": UPLINK_MTU,
    }
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            rounds = uvloop.run(compare(given, about, progress))
            look_ups = bench_table.measure()
    except LabError as error:
        print(f"bench-udp: {error}", file=sys.stderr)
        return 1
    world = WIRE if given.wire else VETH
    met = show(rounds, world, look_ups, console)
    paths = save(rounds, world, look_ups, about, given.suffix)
    console.print(f"load average before it: {', '.join(f'{each:.1f}' for each in loaded)}")
    console.print(f"written: {', '.join(f'{path.parent.name}/{path.name}' for path in paths)}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
