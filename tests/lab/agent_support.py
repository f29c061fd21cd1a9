"""What do the lab tests of the whole agent share? What an operator would type, and reading the log.

Expected state is written as ``ip``, ``bridge``, ``nft`` and ``etcdctl`` print it; nothing in here asks flannelpy's own code.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from netaddr import IPNetwork

from netns_lab.capture import Capture
from netns_lab.errors import LabError
from netns_lab.host import Box, Host
from netns_lab.lab import PREFIX, Lab

SUBNETS = f"{PREFIX}/subnets"
DAY_S = 86400
FLANNELD = Path(os.environ.get("FLANNELD", Path(__file__).resolve().parents[2] / ".venv/cache/flanneld"))
"""Real flanneld: the one that is named, or the one that ``make flanneld`` has built."""

_numbers = itertools.count(1)


# ---------------------------------------------------------------------------------------------- fixtures, imported by name


@pytest.fixture
def lab_name() -> str:
    """Labs of these tests are told apart from others by ``tst``."""
    return f"tst{os.getpid()}-{next(_numbers)}"


@pytest.fixture(autouse=True)
def no_traceback(lab: Lab) -> Iterator[None]:
    """Whatever a test does to an agent: no log of it may hold a traceback."""
    yield
    for host in lab.hosts:
        for path in host.directory.rglob("*log"):
            text = path.read_text(errors="replace")
            assert "Traceback" not in text, f"{path}: {text[text.index('Traceback') - 500 :][:3000]}"


@pytest.fixture
def no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count packets: none are sent but theirs."""
    monkeypatch.setenv("FLANNELPY_PROBE", "false")


@pytest.fixture(name="overlay")
async def settled_overlay(lab: Lab) -> Lab:
    """Agents that are ready and containers with addresses; host n has subnet n, so that a test can name others."""
    for host in lab.hosts:
        network = IPNetwork(lab.topology.network)
        remember_subnet(host, f"{network.network + 256 * host.plan.number}/24", str(network))
    await lab.start_agents()
    await lab.connect_containers()
    return lab


# ------------------------------------------------------------------------------------------------------------- the log


@dataclass(frozen=True, slots=True)
class Log:
    """A host's log from a moment on."""

    path: Path
    start: int = 0

    @classmethod
    def of(cls, host: Host) -> Log:
        """All of it, also of earlier runs."""
        return cls(host.directory / "agent.log")

    @classmethod
    def from_now(cls, host: Host) -> Log:
        path = host.directory / "agent.log"
        return cls(path, path.stat().st_size if path.exists() else 0)

    @property
    def text(self) -> str:
        """Empty where nothing was started yet."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read().decode(errors="replace")

    def lines(self, *words: str) -> list[str]:
        """The lines that hold all of these words, case aside."""
        return [line for line in self.text.splitlines() if all(word.lower() in line.lower() for word in words)]

    def begun(self, *words: str) -> list[str]:
        """The same without those that tell the end of something."""
        return [line for line in self.lines(*words) if " resolved: " not in line]


async def until_said(log: Log, *words: str, timeout_s: float = 30.0) -> str:
    """Wait for a line with all of these words; the line."""
    found = await until(lambda: log.lines(*words), timeout_s, f"a line with {words}", lambda: log.text[-1500:])
    return str(found[0])


PATIENCE_S = 30.0
"""At the least: on a loaded machine everything takes its time, and how long things take is for the benchmarks to tell."""


async def until(fact: Callable[[], object], timeout_s: float, what: str, seen: Callable[[], object] | None = None) -> list[str]:
    """Wait for a fact (plain or async); fails with what was seen last."""
    timeout_s = max(timeout_s, PATIENCE_S)
    deadline = time.monotonic() + timeout_s
    while True:
        value = fact()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value if isinstance(value, list) else [str(value)]
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; seen last: {seen() if seen else value}")
        await asyncio.sleep(0.01)


# --------------------------------------------------------------------------------------------- what an operator would type


async def shell(box: Box, command: str) -> list[str]:
    """Run a shell command inside; its lines, blanks at their ends taken off."""
    return [line.strip() for line in (await box.exec("sh", "-c", command)).splitlines()]


async def routes(box: Box, selector: str = "") -> list[str]:
    return await shell(box, f"ip route show {selector}")


async def neighbours(box: Box, device: str = "flannel.1") -> list[str]:
    return await shell(box, f"ip neigh show dev {device}")


async def fdb(box: Box, device: str = "flannel.1") -> list[str]:
    return await shell(box, f"bridge fdb show dev {device}")


async def mac(box: Box, device: str = "flannel.1") -> str:
    text = await box.exec("ip", "-o", "link", "show", device)
    found = re.search(r"link/ether (\S+)", text)
    assert found is not None, text
    return found[1]


@dataclass(frozen=True, slots=True)
class Vtep:
    """A vxlan peer: everything that the others have to know of it."""

    subnet: str
    address: str
    mac: str

    @property
    def base(self) -> str:
        return self.subnet.partition("/")[0]

    @property
    def key(self) -> str:
        return f"{SUBNETS}/{self.subnet.replace('/', '-')}"

    @property
    def value(self) -> str:
        data = f'{{"VNI":1,"VtepMAC":"{self.mac}"}}'
        return f'{{"PublicIP":"{self.address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}'

    @property
    def route(self) -> str:
        return f"{self.subnet} via {self.base} dev flannel.1 proto 102 onlink"

    @property
    def neighbour(self) -> str:
        return f"{self.base} lladdr {self.mac} PERMANENT"

    @property
    def fdb(self) -> str:
        return f"{self.mac} dst {self.address} self permanent"

    async def missing(self, host: Host) -> list[str]:
        """What of it is not in the kernel of this host; all of it where its device is not there."""
        try:
            seen = {*await routes(host), *await neighbours(host), *await fdb(host)}
        except LabError as error:
            if "Cannot find device" not in str(error):
                raise
            seen = set()
        return [each for each in (self.route, self.neighbour, self.fdb) if each not in seen]

    async def programmed(self, host: Host) -> bool:
        return not await self.missing(host)

    async def traces(self, host: Host) -> list[str]:
        """What of it is still in the kernel."""
        seen = (*await routes(host), *await neighbours(host), *await fdb(host))
        mine = re.compile(rf"(?<![\d.:a-f]){re.escape(self.base)}(?![\d.])|{self.mac}")
        return [line for line in seen if mine.search(line)]


async def vtep(host: Host) -> Vtep:
    """The VTEP of a host whose agent runs."""
    return Vtep(str(host.subnet), str(host.address), await mac(host))


async def until_programmed(host: Host, *peers: Vtep, timeout_s: float = 20.0) -> float:
    """Wait until route, neighbour and FDB entry of each are there; how long it took, in seconds."""
    start = time.monotonic()
    for peer in peers:
        while missing := await peer.missing(host):
            assert time.monotonic() < start + timeout_s, f"not within {timeout_s:g} s: {missing}; log: {Log.of(host).text[-1500:]}"
            await asyncio.sleep(0.01)
    return time.monotonic() - start


async def until_gone(host: Host, peer: Vtep, timeout_s: float = 30.0) -> None:
    """Wait until nothing of it is left. A key that goes is believed some seconds later: its owner may be taking it again."""
    deadline = time.monotonic() + timeout_s
    while traces := await peer.traces(host):
        assert time.monotonic() < deadline, f"still there after {timeout_s:g} s: {traces}; log: {Log.of(host).text[-1500:]}"
        await asyncio.sleep(0.01)


async def captured(capture: Capture, least: int) -> list[str]:
    """The packets so far, once there are as many; asked for inside the block, because the last ones are late."""
    deadline = time.monotonic() + 5
    while len(lines := await capture.lines()) < least:
        assert time.monotonic() < deadline, f"expected {least} packets, saw {lines}"
        await asyncio.sleep(0.02)
    return lines


async def until_cut_off(host: Host) -> None:
    """Wait until the agent has no connection to etcd any more."""

    async def none() -> bool:
        return not await shell(host, "ss -Htn state established dport = :2379")

    await until(none, 8, "no connection to etcd")


# -------------------------------------------------------------------------------------------------------------- etcd


def grant(lab: Lab, seconds: int = DAY_S) -> str:
    """An etcd lease; its id as etcdctl writes it."""
    return lab.etcd.ctl("lease", "grant", str(seconds)).split()[1]


def put_leased(lab: Lab, key: str, value: str, seconds: int = DAY_S) -> str:
    """What flanneld does: a new lease, then an unconditional put. The lease's id."""
    lease = grant(lab, seconds)
    lab.etcd.ctl("put", f"--lease={lease}", "--", key, value)
    return lease


def record(lab: Lab, key: str) -> dict[str, int]:
    """``lease``, ``mod_revision``, ``create_revision`` ... of a key; empty where it is absent. ``lease`` 0: it has none."""
    found = json.loads(lab.etcd.ctl("get", "-w", "json", key)).get("kvs", [])
    return {name: value for name, value in found[0].items() if isinstance(value, int)} if found else {}


def lease_of(lab: Lab, key: str) -> int:
    """The id of the etcd lease that a key hangs on; 0: none."""
    return record(lab, key).get("lease", 0)


def time_to_live(lab: Lab, lease: int) -> tuple[int, int]:
    """Granted and remaining seconds."""
    said = lab.etcd.ctl("lease", "timetolive", f"{lease:x}")
    found = re.search(r"granted with TTL\((\d+)s\), remaining\((-?\d+)s\)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def put_many(lab: Lab, pairs: Mapping[str, str]) -> None:
    """Many keys in few transactions."""
    waiting = list(pairs.items())
    while waiting:
        now, waiting = waiting[:100], waiting[100:]
        puts = "\n".join(f"put {json.dumps(key)} {json.dumps(value)}" for key, value in now)
        lab.etcd.ctl("txn", stdin=f"\n{puts}\n\n\n")


# ------------------------------------------------------------------------------------------ subnets chosen by the test


def remember_subnet(host: Host, subnet: str, network: str) -> None:
    """Leave a subnet.env as of an earlier run, so that the agent asks for this subnet again."""
    gateway = f"{IPNetwork(subnet).ip + 1}/{IPNetwork(subnet).prefixlen}"
    host.subnet_file.write_text(f"FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")


@asynccontextmanager
async def losing_nothing(lab: Lab, source: str, target: str) -> AsyncIterator[None]:
    """A stream of pings for the time of the block; at least ten were sent, every one was answered."""
    async with lab.pinging(source, target, per_second=100) as pings:
        yield
        before = pings.answers()
        await until(
            lambda: pings.answers() > before + 10, 5, "pings answered after the event", lambda: pings.log.read_text()[-500:]
        )
    logs = "\n".join(Log.of(host).text[-1500:] for host in lab.hosts)
    assert pings.lost == 0, f"lost {pings.lost} of {pings.sent} pings, gaps {pings.gaps}, longest {pings.longest_ms:.0f} ms; {logs}"
    assert pings.sent >= 10, pings.log.read_text()[-500:]
