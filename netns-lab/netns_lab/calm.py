"""Does a healthy lab stay silent? Hosts join, agents and etcd are restarted, packets flow, and nobody is told of a fault.

    python -m netns_lab calm --minutes 60        exit 1 where an agent said a warning or an error that is none

That etcd does not answer is true while it is being restarted, and may be said then; everything else is a false alarm.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random

from netns_lab.errors import LabError
from netns_lab.host import Host
from netns_lab.lab import Lab
from netns_lab.topology import Topology

HOSTS = 4
"""The last one comes and goes: its agent is stopped, and joins again."""
LOAD_PER_SECOND = 50.0
QUIET_S = (2.0, 15.0)
"""Between one event and the next, when all is well again."""
WELL_WITHIN_S = 90.0
_LEVEL = re.compile(r" (warning|error): ")
_TRUE_OF_ETCD = ("etcd does not answer", "etcd is not", "no sign of life on the watch")


class Calm:
    """A lab in which nothing is wrong, and what its agents say all the same."""

    def __init__(self, lab: Lab, random: Random) -> None:
        self._lab = lab
        self._random = random
        self._read = {host.name: 0 for host in lab.hosts}
        self.events: list[str] = []
        self.alarms: list[str] = []
        """Of what was said, what should not have been: after which event, on which host, in which words."""

    async def go_on(self, until_s: float) -> None:
        """Event after event until then. Raises LabError where it does not become well again."""
        events: tuple[Callable[[], Awaitable[str]], ...] = (
            self._restart_agent,
            self._kill_agent,
            self._restart_etcd,
            self._leave_and_join,
            self._nothing,
        )
        await self._until_well("at first")
        while time.monotonic() < until_s:
            what = await self._random.choice(events)()
            self.events.append(what)
            await self._until_well(what)
            await asyncio.sleep(self._random.uniform(*QUIET_S))
            self._listen(what)

    async def _restart_agent(self) -> str:
        host = self._any()
        await host.agent.stop()
        await host.start_agent()
        return f"the agent of {host.name} was restarted"

    async def _kill_agent(self) -> str:
        host = self._any()
        await host.agent.kill()
        await host.start_agent()
        return f"the agent of {host.name} was killed and started"

    async def _restart_etcd(self) -> str:
        self._lab.etcd.terminate()
        await asyncio.sleep(self._random.uniform(0.0, 3.0))
        self._lab.etcd.restart()
        return "etcd was restarted"

    async def _leave_and_join(self) -> str:
        last = self._lab.hosts[-1]
        await last.agent.stop()
        await asyncio.sleep(self._random.uniform(0.0, 20.0))
        await last.start_agent()
        return f"{last.name} left and joined"

    async def _nothing(self) -> str:
        await asyncio.sleep(20.0)
        return "nothing happened"

    def _any(self) -> Host:
        return self._random.choice(self._lab.hosts)

    async def _until_well(self, what: str) -> None:
        seen: list[str] = []

        async def well() -> bool:
            seen[:] = [f"{host.name}: {why}" for host in self._lab.hosts for why in _not_well(await host.status())]
            return not seen

        try:
            await self._lab.until(well, timeout_s=WELL_WITHIN_S, every_s=0.5)
        except LabError:
            raise LabError(f"not well within {WELL_WITHIN_S:g} s, {what}: {'; '.join(seen)}") from None

    def _listen(self, what: str) -> None:
        for host in self._lab.hosts:
            text = (host.directory / "agent.log").read_text(errors="replace")
            fresh, self._read[host.name] = text[self._read[host.name] :], len(text)
            for line in fresh.splitlines():
                true = "etcd" in what and any(words in line for words in _TRUE_OF_ETCD)
                if _LEVEL.search(line) and " resolved: " not in line and not true:
                    self.alarms.append(f"{what}; {host.name}: {line}")


def _not_well(status: dict[str, object]) -> list[str]:
    if not status:
        return ["no agent answers"]
    conditions = status["conditions"]
    assert isinstance(conditions, list)
    return [str(each["text"]) for each in conditions if each["severity"] != "info"] + ([] if status["ready"] else ["not ready"])


async def run(minutes: float, seed: int, backend: str) -> bool:
    """True where nobody was told of a fault."""
    async with Lab.up(Topology(hosts=HOSTS, backend=backend), name=f"calm{os.getpid()}") as lab:
        await lab.start_agents()
        await lab.connect_containers()
        calm = Calm(lab, Random(seed))
        async with AsyncExitStack() as load:
            for source, target in (("c1", "c2"), ("c2", "c3"), ("c3", "c4")):
                await load.enter_async_context(lab.pinging_steadily(source, target, per_second=LOAD_PER_SECOND))
            await calm.go_on(time.monotonic() + minutes * 60)
    print(f"{backend}: {minutes:g} minutes, {len(calm.events)} events, {len(calm.alarms)} false alarms; seed {seed}")
    for alarm in calm.alarms:
        print(f"    {alarm}")
    return not calm.alarms


def main() -> int:
    """0 where all was silent."""
    parser = argparse.ArgumentParser(prog="calm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="vxlan", choices=("vxlan", "udp", "host-gw"))
    given = parser.parse_args()
    try:
        return 0 if asyncio.run(run(given.minutes, given.seed, given.backend)) else 1
    except LabError as error:
        print(f"calm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
