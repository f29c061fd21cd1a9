"""Does a cluster come to rest, whatever befalls it? Rounds of random faults of etcd, kernel and hosts, and after each a calm.

    python -m netns_lab.chaos [--seed N] [--minutes 10] [--backend vxlan]

c1 - h1 ==== vxlan or udp ==== h2 - c2, and h3 - c3         etcd apart; leases of 30 s

In each calm all containers have to ping each other, every host has to be ready with nothing wrong, in the same subnet as ever and
with one lease; no process may hold more descriptors or threads than in its first calm. At the end etcd may hold one lease a host
and no more, and the logs under one line a fault. A run that fails says its seed and leaves the logs in lab-out/chaos-SEED.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom

import uvloop

from netns_lab.chaos_faults import Faults
from netns_lab.chaos_plan import Fault, rounds
from netns_lab.errors import LabError
from netns_lab.etcd import EtcdFailedError
from netns_lab.footprint import Footprint, descriptors
from netns_lab.interrupt import heed_interrupts
from netns_lab.lab import PREFIX, Lab
from netns_lab.topology import Topology

OUT = Path(__file__).resolve().parents[2] / "lab-out"
LEASE_S = 30
"""So long an etcd lease lives that nobody extends: one that a killed agent was just about to use is gone soon."""
CALM_WITHIN_S = 60.0
"""How long the cluster may take to come to rest. A few seconds, where nobody else wants the processors."""
_OF_FAULTS = (" warning: ", " error: ", " resolved: ")
LEFT_TO_PEOPLE = ("bridge-mtu",)
"""What a fault leaves for a person to do: containers keep the MTU that they were started with."""
SPARE_DESCRIPTORS, SPARE_THREADS = 12, 6
"""Connections to etcd that attempts during an outage have left behind, and a pool of threads that grows when it is first needed, to
six at the most; what leaks has more after some rounds."""


def topology(backend: str, hosts: int = 3) -> Topology:
    """The cluster: its own leases lie above 10.1.128.0, where no peer of the faults is."""
    options = ("--ip-masq", f"--subnet-lease-ttl={LEASE_S}", "--subnet-lease-renew-margin=1")
    # Uplinks of different MTU lose what is too large, and probes would say so for ever, rightly.
    return Topology(hosts=hosts, backend=backend, agent_options=(*options, "--probe=false"), config={"SubnetMin": "10.1.128.0"})


@dataclass(slots=True)
class Tally:
    """What was done, and how long the cluster took to come to rest after each round."""

    seed: int
    kinds: Counter[str] = field(default_factory=Counter)
    calms_s: list[float] = field(default_factory=list)
    lines: int = 0
    """Of the log of all hosts."""
    hosts: int = 0

    @property
    def lines_a_fault(self) -> float:
        """Lines that a host writes for a fault, on average."""
        return self.lines / max(1, self.hosts) / max(1, self.kinds.total())

    def __str__(self) -> str:
        calms = sorted(self.calms_s) or [0.0]
        kinds = ", ".join(f"{count} x {kind}" for kind, count in self.kinds.most_common())
        return (
            f"seed {self.seed}: {len(self.calms_s)} rounds, {self.kinds.total()} faults: {kinds}; at rest after "
            f"{calms[len(calms) // 2]:.1f} s (median), {calms[-1]:.1f} s (most); {self.lines_a_fault:.2f} lines a fault and host"
        )


class RestlessError(Exception):
    """The cluster does not come to rest: what is wrong, a line each."""


class Chaos:
    """A lab that faults befall; ``run`` may be called once."""

    def __init__(self, lab: Lab, seed: int, tell: Callable[[str], None] = print) -> None:
        self.tally = Tally(seed, hosts=len(lab.hosts))
        self._lab = lab
        self._tell = tell
        self._faults = Faults(lab)
        self._subnets: dict[str, str] = {}
        self._first: dict[tuple[str, int], Footprint] = {}
        self._logged = 0

    async def run(self, seconds: float) -> Tally:
        """Rounds until the time is over, two at least. Raises RestlessError."""
        await self._faults.prepare()
        self._subnets = {host.name: str(host.subnet) for host in self._lab.hosts}
        await self._calm()
        self._logged = self._log_lines()
        self.tally.calms_s.clear()
        until = time.monotonic() + seconds
        for number, faults in enumerate(rounds(self.tally.seed, len(self._lab.hosts)), 1):
            await self._round(number, faults)
            if number > 1 and time.monotonic() > until:
                break
        await self._wait(self._leaks, LEASE_S + CALM_WITHIN_S)
        self.tally.lines = self._log_lines() - self._logged
        if self.tally.lines_a_fault > 1:
            raise RestlessError(f"{self.tally.lines_a_fault:.2f} log lines a fault and host, at most 1 is allowed")
        return self.tally

    async def _round(self, number: int, faults: Sequence[Fault]) -> None:
        try:
            await self._faults.befall(faults)
            took = await self._calm()
        except (RestlessError, LabError, EtcdFailedError) as error:
            listed = "\n  ".join(map(str, faults))
            raise RestlessError(f"round {number} of seed {self.tally.seed}: {error}\nits faults:\n  {listed}") from None
        self.tally.kinds.update(fault.kind for fault in faults)
        self._tell(f"round {number}: {len(faults)} faults, at rest after {took:.1f} s: {'; '.join(fault.kind for fault in faults)}")

    # ------------------------------------------------------------------------------------------------------ the calm

    async def _calm(self) -> float:
        """Wait until everything is as it should be; the seconds that took. Raises RestlessError."""
        took = await self._wait(self._wrong, CALM_WITHIN_S)
        self.tally.calms_s.append(took)
        return took

    async def _wait(self, wrong: Callable[[], object], within_s: float) -> float:
        began = time.monotonic()
        while True:
            found = await wrong()  # type: ignore[misc]
            if not found:
                return time.monotonic() - began
            if time.monotonic() - began > within_s:
                raise RestlessError(f"not at rest after {within_s:g} s: {'; '.join(found)}")
            await asyncio.sleep(0.1)

    async def _wrong(self) -> list[str]:
        """What is not as it should be; the cheap things first, and the rest only where these are well."""
        found: list[str] = []
        for host in self._lab.hosts:
            if not host.agent.running:
                return [f"{host.name}: the agent ended with {host.agent.exit_code}: {host.agent.process.tail()}"]
            document = await host.status()
            if not document.get("ready"):
                found.append(f"{host.name}: not ready: {document.get('whyNot', 'it does not answer')}")
            wrong = (each for each in document.get("conditions", ()) if each["code"] not in LEFT_TO_PEOPLE)
            found += [f"{host.name}: {each['code']}: {each['text']}" for each in wrong]
            kernel = document.get("kernel") or {}
            if kernel.get("desired") != kernel.get("inSync"):
                found.append(f"{host.name}: {kernel.get('inSync')} of {kernel.get('desired')} in sync")
            others = [peer["state"] for peer in document.get("peers", ())]
            if others != ["in-sync"] * (len(self._lab.hosts) - 1):
                found.append(f"{host.name}: peers {others}")
        return found or await self._wrong_leases() or await self._silent() or self._grown()

    async def _wrong_leases(self) -> list[str]:
        now = {host.name: str(host.subnet) for host in self._lab.hosts}
        if now != self._subnets:
            return [f"subnets are {now}, they were {self._subnets}"]
        wanted = {host.lease_key: self._faults.address(host) for host in self._lab.hosts}
        text = await asyncio.to_thread(self._lab.etcd.ctl, "get", "--prefix", f"{PREFIX}/subnets/", "-w", "simple")
        lines = text.splitlines()
        there = {key: json.loads(value).get("PublicIP") for key, value in zip(lines[::2], lines[1::2], strict=True)}
        return [] if there == wanted else [f"etcd holds {there}, expected {wanted}"]

    async def _silent(self) -> list[str]:
        pings = await self._lab.matrix(wait_s=1.0)
        return [f"{source} does not reach {target}" for (source, target), ping in pings.items() if not ping.ok]

    def _grown(self) -> list[str]:
        """Which processes hold more than in their first calm."""
        found = []
        for host in self._lab.hosts:
            now = Footprint(host.name, host.agent.pid)
            if not now.look(0.0):
                continue
            first = self._first.setdefault((host.name, host.agent.pid), now).samples[0]
            last = now.samples[0]
            if last.descriptors > first.descriptors + SPARE_DESCRIPTORS:
                held = descriptors(host.agent.pid)
                found.append(f"{host.name}: descriptors grew from {first.descriptors} to {last.descriptors}: {held}")
            if last.threads > first.threads + SPARE_THREADS:
                found.append(f"{host.name}: threads grew from {first.threads} to {last.threads}")
        return found

    async def _leaks(self) -> list[str]:
        """etcd leases beyond one a host."""
        text = await asyncio.to_thread(self._lab.etcd.ctl, "lease", "list")
        count = len(text.splitlines()) - 1  # a heading
        return [] if count <= len(self._lab.hosts) else [f"etcd holds {count} leases for {len(self._lab.hosts)} hosts"]

    def _log_lines(self) -> int:
        """What was said of faults so far, by all hosts; what a start says of itself is not counted."""
        logs = ((host.directory / "agent.log").read_text(errors="replace") for host in self._lab.hosts)
        return sum(any(word in line for word in _OF_FAULTS) for text in logs for line in text.splitlines())


async def storm(seed: int, seconds: float, backend: str, name: str) -> Tally:
    """Make the lab, let it be struck, take it away. Raises RestlessError; the logs are then in lab-out/chaos-SEED."""
    async with Lab.up(topology(backend), name=name) as lab:
        await lab.start_agents()
        await lab.connect_containers()
        chaos = Chaos(lab, seed, lambda line: print(line, flush=True))
        try:
            return await chaos.run(seconds)
        except RestlessError:
            for host in lab.hosts:
                target = OUT / f"chaos-{seed}"
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(host.directory / "agent.log", target / f"{host.name}.log")
            raise


def main() -> int:
    """0: it came to rest each time; 1: it did not, or something grew, and the seed is said; 130: it was interrupted."""
    heed_interrupts()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31), help="the same seed makes the same faults")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--backend", default="vxlan", help="vxlan, udp or host-gw")
    parser.add_argument("--name", default=f"chaos{os.getpid()}", help="of the lab that it makes")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.backend}, {given.minutes:g} minutes", flush=True)
    try:
        tally = uvloop.run(storm(given.seed, given.minutes * 60, given.backend, given.name))
    except (RestlessError, LabError, EtcdFailedError) as error:
        print(
            f"chaos: {error}\nagain: make chaos SEED={given.seed} MINUTES={given.minutes:g} BACKEND={given.backend}",
            file=sys.stderr,
        )
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"chaos: interrupted at seed {given.seed}; everything is removed", file=sys.stderr)
        return 130
    print(tally)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
