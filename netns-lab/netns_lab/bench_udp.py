"""How fast is udp in user space? Beside it, in turn and in one run: a plain C pump, the kernel's VXLAN, and no tunnel at all.

    python -m netns_lab.bench_udp [--rounds 5] [--seconds 3] [--only pump,c]

  ca 10.99.1.2 -- ha ========= hb -- cb 10.99.2.2        iperf3 and ping between the containers ca and cb; each way carries in turn
                  192.0.2.1    192.0.2.2

Absolute figures say more about the machine; the ratios of ways that alternate in one run are what counts. Table,
lab-out/bench-udp.json and lab-out/bench-udp.svg.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from netns_lab import bench_table
from netns_lab.errors import LabError
from netns_lab.interrupt import heed_interrupts
from netns_lab.ledger import Ledger
from netns_lab.namespaces import Namespace, Process, batch, run, write_sysctls

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "netns-lab" / "refpump" / "refpump.c"
OUT = ROOT / "lab-out"
PORT = 8285
DEVICE = "flannel0"
WIRE_MTU = 1500
WITHIN_S = 10.0
PINGS = 300
LOADED_INTERVAL_S = 0.01
GB = 1e9

LABELS = {"direct": "direct route", "vxlan": "kernel VXLAN", "c": "C pump", "pump": "flannelpy"}
MTUS = {"direct": WIRE_MTU, "vxlan": WIRE_MTU - 50, "c": WIRE_MTU - 28, "pump": WIRE_MTU - 28}


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the report; ``target`` and ``aim`` are ratios of our datapath to the C pump."""

    name: str
    text: str
    unit: str
    digits: int
    more_is_better: bool
    target: float | None = None
    aim: float | None = None


MEASURES = (
    Measure("tcp1", "TCP, one stream", "Gbit/s", 2, True, 4.0, 6.0),
    Measure("tcp1_back", "TCP, one stream, the other way", "Gbit/s", 2, True, 4.0, 6.0),
    Measure("tcp4", "TCP, four streams", "Gbit/s", 2, True, 4.0, 6.0),
    Measure("tcp4_back", "TCP, four streams, the other way", "Gbit/s", 2, True, 4.0, 6.0),
    Measure("udp64", "UDP of 64 bytes, delivered", "k/s", 1, True, 1.6, 2.5),
    Measure("udp1400", "UDP of 1400 bytes, delivered", "k/s", 1, True),
    Measure("rtt50", "round trip while idle, p50", "ms", 3, False, 1.8, 1.2),
    Measure("rtt99", "round trip while idle, p99", "ms", 3, False),
    Measure("loaded50", "round trip beside a TCP stream, p50", "ms", 2, False),
    Measure("loaded99", "round trip beside a TCP stream, p99", "ms", 2, False),
    Measure("retransmits", "TCP retransmits", "per GB", 1, False, 0.01, 0.01),
    Measure("cpu", "CPU of both pumps, TCP", "s/GB", 2, False, 0.35, 0.2),
)
BY_NAME = {measure.name: measure for measure in MEASURES}
Values = dict[str, float]


class Bench:
    """Two hosts with a container each, and one way between them at a time."""

    def __init__(self, ledger: Ledger, refpump: Path | None, seconds: float) -> None:
        self._ledger = ledger
        self._refpump = refpump
        self._seconds = seconds
        self.ha, self.hb, self.ca, self.cb = (Namespace(f"{ledger.name}-{name}", ledger) for name in ("ha", "hb", "ca", "cb"))
        self._sides = ((self.ha, self.ca, 1), (self.hb, self.cb, 2))

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
        self.cb.spawn("iperf3", ["iperf3", "-s"], log=self._log("iperf3"), lasting=False)

    def _log(self, name: str) -> Path:
        return self._ledger.directory / f"{name}.log"

    # -------------------------------------------------------------------------------------------------------- ways

    @asynccontextmanager
    async def way(self, kind: str) -> AsyncIterator[list[Process]]:
        """The way of this kind for the block; yields the pumps' processes, if it has any."""
        for host, container, _ in self._sides:
            mtu = MTUS[kind]
            await batch([f"link set c0 mtu {mtu}"], inside=host.path)
            await batch([f"link set eth0 mtu {mtu}"], inside=container.path)
        pumps: list[Process] = []
        try:
            for host, _, number in self._sides:
                peer = 3 - number
                if kind == "direct":
                    await batch([f"route add 10.99.{peer}.0/24 via 192.0.2.{peer}"], inside=host.path)
                elif kind == "vxlan":
                    await batch(_vxlan(number, peer), inside=host.path)
                    entry = f"02:00:00:00:00:0{peer} dev vx0 dst 192.0.2.{peer} self permanent"
                    await host.exec("bridge", "fdb", "add", *entry.split())
                else:
                    words = self._pump(kind, number, peer)
                    log = self._log(f"{kind}-{number}")
                    pumps.append(host.spawn(kind, words, log=log, env={"PYTHONPATH": f"{ROOT}:{ROOT}/netns-lab"}, lasting=False))
                    await self._until(f"{DEVICE} in {host.name}", host, "ip", "link", "show", "dev", DEVICE, among=pumps)
                    lines = (f"addr add 10.99.{number}.0/32 dev {DEVICE}", f"link set {DEVICE} mtu {MTUS[kind]} up")
                    await batch([*lines, f"route add 10.99.0.0/16 dev {DEVICE}"], inside=host.path)
            await self._until(f"a ping by {kind}", self.ca, "ping", "-c1", "-W1", "10.99.2.2", among=pumps)
            yield pumps
        finally:
            for pump in pumps:
                await pump.stop()
            for host, _, number in self._sides:
                # A worker ends a moment after the process that it was started by, and the next way wants its port.
                await self._until(f"a free port {PORT}", host, "sh", "-c", f"! ss -Hlun sport = :{PORT} | grep -q .", among=())
                await host.attempt("ip", "route", "del", f"10.99.{3 - number}.0/24")
                await host.attempt("ip", "link", "del", "vx0")

    def _pump(self, kind: str, number: int, peer: int) -> list[str]:
        if kind == "c":
            return [str(self._refpump), DEVICE, f"192.0.2.{number}", f"192.0.2.{peer}", str(PORT), str(MTUS[kind])]
        return [sys.executable, "-m", "netns_lab.bench_udp", "--carry", str(number)]

    async def _until(self, what: str, where: Namespace, *words: str, among: Sequence[Process] = ()) -> None:
        """Until the command succeeds. Raises LabError where it does not within the bound, or a pump has ended."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WITHIN_S
        while (await where.attempt(*words)).code:
            dead = next((pump for pump in among if pump.exit_code is not None), None)
            if dead is not None:
                raise LabError(f"{dead.role} ended with {dead.exit_code}: {dead.tail()}")
            if loop.time() > deadline:
                raise LabError(f"not there after {WITHIN_S:g} s: {what}")
            await asyncio.sleep(0.02)

    # --------------------------------------------------------------------------------------------------- measuring

    async def measure(self, kind: str) -> Values:
        """All measures of one way, once."""
        async with self.way(kind) as pumps:
            values = await self._round_trips()
            values |= await self._tcp(pumps)
            values |= await self._loaded_round_trips()
            for size in (64, 1400):
                end = await self._iperf("-u", "-b", "0", "-l", str(size))
                got = end["sum"]
                values[f"udp{size}"] = (got["packets"] - got["lost_packets"]) / got["seconds"] / 1e3
        return values

    async def _round_trips(self) -> Values:
        printed = await self.ca.exec("ping", "-c", str(PINGS), "-i", "0.005", "10.99.2.2", timeout_s=60)
        middle, high = percentiles(printed, PINGS, least=0.9)
        return {"rtt50": middle, "rtt99": high}

    async def _loaded_round_trips(self) -> Values:
        """Pings for as long as a TCP stream fills the way. A pump that drops packets loses pings, too; those do not count."""
        stream = asyncio.create_task(self._iperf())
        try:
            await self._until(
                "a stream by iperf3", self.ca, "sh", "-c", "[ $(ss -Htn state established dport = 5201 | wc -l) -ge 2 ]"
            )
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
        if pumps:
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


def _vxlan(number: int, peer: int) -> list[str]:
    """As the vxlan backend has it: gateway, its MAC and the peer's address by hand, nothing learned."""
    mac = f"02:00:00:00:00:0{peer}"
    return [
        f"link add vx0 address 02:00:00:00:00:0{number} type vxlan id 1 local 192.0.2.{number} dev eth1 dstport 8472 nolearning",
        f"addr add 10.99.{number}.0/32 dev vx0",
        f"link set vx0 mtu {MTUS['vxlan']} up",
        f"neigh add 10.99.{peer}.0 lladdr {mac} dev vx0 nud permanent",
        f"route add 10.99.{peer}.0/24 via 10.99.{peer}.0 dev vx0 onlink",
    ]


def cpu_s(pid: int) -> float:
    """CPU time used by a process and by its children that live, in seconds (proc(5))."""
    total = 0.0
    for each in (pid, *(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


async def carry(number: int) -> None:
    """Our datapath on host ``number``, as the agent would run it, until SIGTERM."""
    from netaddr import IPAddress, IPNetwork

    from backends.udp import Udp
    from flannelpy.core.backend import Local, NoFdStore, Uplink
    from flannelpy.core.config import NetworkConfig
    from flannelpy.core.model import Lease, LeaseAttrs

    def lease(side: int) -> Lease:
        return Lease(IPNetwork(f"10.99.{side}.0/24"), LeaseAttrs(IPAddress(f"192.0.2.{side}")))

    address = IPAddress(f"192.0.2.{number}")
    uplink = Uplink("eth1", 2, WIRE_MTU, address=address, public_ip=address)
    local = Local(NetworkConfig.parse('{"Network": "10.99.0.0/16"}'), uplink, lease(number))
    datapath = Udp(PORT, engine="userspace").datapath(local)
    assert datapath is not None
    peer = lease(3 - number)
    datapath.update({peer.key: peer})
    await datapath.open(NoFdStore())
    await datapath.run()


# ------------------------------------------------------------------------------------------------------------- report


def medians(rounds: Mapping[str, Sequence[Values]]) -> dict[str, Values]:
    """By way and measure."""
    return {
        kind: {name: statistics.median(each[name] for each in values) for name in values[0]}
        for kind, values in rounds.items()
        if values
    }


def ratio(rounds: Mapping[str, Sequence[Values]], name: str) -> float | None:
    """Our datapath's to the C pump's: the median over the rounds, in which both stood side by side."""
    pairs = list(zip(rounds.get("pump", ()), rounds.get("c", ()), strict=False))
    if not pairs:
        return None
    if name == "retransmits":  # a single round of ours has often none
        ours, theirs = (sum(each[name] for each in side) for side in zip(*pairs, strict=True))
        return ours / theirs if theirs else None
    return statistics.median(ours[name] / theirs[name] for ours, theirs in pairs)


def verdict(measure: Measure, found: float | None) -> str:
    """The ratio against its target, with colours for rich."""
    if found is None or measure.target is None or measure.aim is None:
        return ""
    met = found >= measure.target if measure.more_is_better else found <= measure.target
    reached = found >= measure.aim if measure.more_is_better else found <= measure.aim
    return "[green]aim reached[/]" if reached else "[green]met[/]" if met else "[red]missed[/]"


def show(rounds: Mapping[str, Sequence[Values]], look_ups: bench_table.LookUps, console: Console) -> bool:
    """The report, as a table; False where a target was missed."""
    middle = medians(rounds)
    table = Table(title="udp: medians of one run on this machine, the ways in turn")
    table.add_column("measured")
    for kind in middle:
        table.add_column(LABELS[kind], justify="right")
    for column in ("ours / C", "target (aim)", ""):
        table.add_column(column, justify="right")
    verdicts = []
    for measure in MEASURES:
        found = ratio(rounds, measure.name)
        sign = "≥" if measure.more_is_better else "≤"
        wanted = f"{sign} {measure.target:g} ({measure.aim:g})" if measure.target is not None else ""
        verdicts.append(verdict(measure, found))
        cells = [f"{values[measure.name]:.{measure.digits}f}" if measure.name in values else "" for values in middle.values()]
        shown = "" if found is None else f"{found:.2f}"
        table.add_row(f"{measure.text}, {measure.unit}", *cells, shown, wanted, verdicts[-1])
    console.print(table)
    missed = look_ups.ratio > bench_table.TARGET
    verdicts.append("[red]missed[/]" if missed else "[green]met[/]")
    console.print(
        f"a million look-ups of a peer: {look_ups.few_s:.3f} s among {bench_table.FEW}, {look_ups.many_s:.3f} s among "
        f"{bench_table.MANY:,}; ratio {look_ups.ratio:.2f}, target ≤ {bench_table.TARGET:g}: {verdicts[-1]}"
    )
    return not any("missed" in each for each in verdicts)


def draw(rounds: Mapping[str, Sequence[Values]]) -> str:
    """Bars of each way for each measure, each measure on a scale of its own; a dot for each round. SVG."""
    colours = {"direct": "#8d99ae", "vxlan": "#457b9d", "c": "#e09f3e", "pump": "#2a9d8f"}
    middle = medians(rounds)
    marks: list[str] = []
    y = 60
    for measure in MEASURES:
        present = [kind for kind in middle if measure.name in middle[kind]]
        if not present:
            continue
        most = max(each[measure.name] for kind in present for each in rounds[kind]) or 1.0
        better = "more is better" if measure.more_is_better else "less is better"
        marks.append(f'<text x="20" y="{y}" font-weight="bold">{measure.text}, {measure.unit} ({better})</text>')
        y += 10
        for kind in present:
            value = middle[kind][measure.name]
            width = 480 * value / most
            marks.append(f'<text x="20" y="{y + 12}">{LABELS[kind]}</text>')
            marks.append(f'<rect x="120" y="{y}" width="{width:.1f}" height="15" fill="{colours[kind]}"/>')
            for each in rounds[kind]:
                x = 120 + 480 * each[measure.name] / most
                marks.append(f'<circle cx="{x:.1f}" cy="{y + 7.5}" r="2.5" fill="#1d3557" fill-opacity="0.6"/>')
            marks.append(f'<text x="615" y="{y + 12}">{value:.{measure.digits}f}</text>')
            y += 19
        y += 26
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{y}" font-family="DejaVu Sans, sans-serif" font-size="12">'
    title = '<text x="20" y="28" font-size="16">udp backend: bars are medians, dots are rounds</text>'
    return "\n".join([head, f'<rect width="700" height="{y}" fill="white"/>', title, *marks, "</svg>", ""])


def save(rounds: Mapping[str, Sequence[Values]], look_ups: bench_table.LookUps, about: Mapping[str, object]) -> None:
    """lab-out/bench-udp.json and .svg."""
    OUT.mkdir(exist_ok=True)
    ratios = {measure.name: ratio(rounds, measure.name) for measure in MEASURES}
    report = {"about": about, "medians": medians(rounds), "ratios_to_c": ratios, "look_ups": asdict(look_ups), "rounds": rounds}
    (OUT / "bench-udp.json").write_text(json.dumps(report, indent=1) + "\n")
    (OUT / "bench-udp.svg").write_text(draw(rounds))


# ---------------------------------------------------------------------------------------------------------------- run


async def compile_refpump(directory: Path) -> Path | None:
    """The C pump, built with cc; None where there is no compiler."""
    if shutil.which("cc") is None:
        return None
    program = directory / "refpump"
    built = await run(["cc", "-O2", "-o", str(program), str(SOURCE)])
    if built.code:
        raise LabError(f"{SOURCE.name} does not compile: {built.stderr.strip().splitlines()[-1]}")
    return program


async def compare(kinds: Sequence[str], number: int, seconds: float, name: str, progress: Progress) -> dict[str, list[Values]]:
    """All rounds."""
    rounds: dict[str, list[Values]] = {kind: [] for kind in kinds}
    task = progress.add_task("building", total=None)
    ledger = Ledger(name)
    ledger.claim({"bench": "udp"})
    try:
        refpump = await compile_refpump(ledger.directory)
        if refpump is None and "c" in rounds:
            progress.console.print("no C compiler (apt-get install gcc): without the C pump there are no ratios")
            del rounds["c"]
        bench = Bench(ledger, refpump, seconds)
        await bench.build()
        for each in range(number):
            for kind in rounds:
                progress.update(task, description=f"round {each + 1} of {number}: {LABELS[kind]}")
                rounds[kind].append(await bench.measure(kind))
    finally:
        ledger.remove()
    return rounds


def main() -> int:
    """Run it; 0 where every target was met, 1 where one was missed or it could not be run."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each iperf3 run")
    parser.add_argument("--only", default=",".join(LABELS), help=f"ways, comma separated, of {','.join(LABELS)}")
    parser.add_argument("--name", default="bench-udp", help="of the lab that it makes")
    parser.add_argument("--carry", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.carry:
        uvloop.run(carry(given.carry))
        return 0
    kinds = [kind for kind in LABELS if kind in given.only.split(",")]
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            rounds = uvloop.run(compare(kinds, given.rounds, given.seconds, given.name, progress))
            look_ups = bench_table.measure()
    except LabError as error:
        print(f"bench-udp: {error}", file=sys.stderr)
        return 1
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    about = {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "mtu": MTUS,
    }
    met = show(rounds, look_ups, console)
    save(rounds, look_ups, about)
    console.print(f"written: {OUT.name}/bench-udp.json, {OUT.name}/bench-udp.svg")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
