"""What happens when many hosts want a subnet at the same moment? The lease rules of each, in one process, against a real etcd.

    async with Race.at(etcd.endpoint(), config) as race:
        race.start(200)
        await race.served(within_s=30)

Every machine is the agent's own keeper around the agent's own rules; what they share is the connection to etcd and its watch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random

from netaddr import IPAddress

from flannelpy.agent.context import Context
from flannelpy.agent.lease import NO_ROOM, Keeper
from flannelpy.agent.report import Reporter
from flannelpy.agent.systemd import Notifier
from flannelpy.core import lease_events as ev
from flannelpy.core.backend import NoFdStore
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import MalformedError
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key
from flannelpy.core.uplink import Wish
from flannelpy.kernel.netlink import NetlinkKernel
from flannelpy.registry import Deleted, Endpoint, Event, Put, Registry, Snapshot
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.settings import Settings

FIRST_ADDRESS = int(IPAddress("172.20.0.1"))


class Machine:
    """A host that wants a subnet. ``rounds`` counts the times that it listed what is there and chose anew."""

    def __init__(self, number: int, config: NetworkConfig, registry: Registry) -> None:
        self.address = IPAddress(FIRST_ADDRESS + number)
        self.rounds = 0
        self.served = asyncio.Event()
        self._registry = registry
        self._rules = Leasing(config, LeaseAttrs(self.address, backend_type="vxlan"), Random(number))
        self._reporter = Reporter(time.monotonic)
        settings, kernel = Settings(Endpoint(("http://127.0.0.1:2379",))), NetlinkKernel()  # neither is looked at
        context = Context(settings, Wish(), registry, kernel, self._reporter, Notifier(""), NoFdStore(), time.monotonic)
        self.keeper = Keeper(context, self._list, self._rules, self._on_change)
        self.task: asyncio.Task[None] | None = None

    @property
    def held(self) -> Lease | None:
        """The lease that it holds, as far as it knows."""
        return self._rules.held

    @property
    def no_room(self) -> str:
        """What it tells while no subnet is free; empty where that does not hold."""
        return next((active.text for active in self._reporter.health if active.condition.code == NO_ROOM), "")

    def _on_change(self) -> None:
        (self.served.clear if self.keeper.lost else self.served.set)()

    async def _list(self) -> Snapshot:
        self.rounds += 1
        return await self._registry.snapshot()

    def see(self, event: Event) -> None:
        """An event of the watch, as the agent hands it to its keeper."""
        match event:
            case Put(lease):
                self.keeper.tell(ev.OwnPut(lease))
            case Deleted(key, revision) if self.held is not None and key == self.held.key:
                self.keeper.tell(ev.OwnDeleted(revision))
            case Deleted(key, _):
                with suppress(MalformedError):
                    self.keeper.tell(ev.SubnetFreed(*parse_subnet_key(key)))

    async def leave(self) -> None:
        """Stop, and give the lease back."""
        held = self.held
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if held is not None:
            await self._registry.release(held)


class Race:
    """The machines, and the watch that they share."""

    def __init__(self, registry: Registry, config: NetworkConfig, tasks: asyncio.TaskGroup) -> None:
        self.registry = registry
        self.machines: list[Machine] = []
        self._config = config
        self._tasks = tasks

    @classmethod
    @asynccontextmanager
    async def at(cls, endpoint: Endpoint, config: NetworkConfig) -> AsyncIterator[Race]:
        """A race for the time of the block; at its end every machine stops where it is, and its lease stays."""
        registry = EtcdRegistry(endpoint)
        try:
            async with asyncio.TaskGroup() as tasks:
                race = cls(registry, config, tasks)
                watch = tasks.create_task(race._follow((await registry.snapshot()).revision), name="watch")
                yield race
                watch.cancel()
                for machine in race.machines:
                    if machine.task is not None:
                        machine.task.cancel()
        finally:
            await registry.close()

    def start(self, count: int = 1) -> list[Machine]:
        """That many more, all at once."""
        first = len(self.machines)
        new = [Machine(number, self._config, self.registry) for number in range(first, first + count)]
        self.machines += new
        for machine in new:
            machine.task = self._tasks.create_task(machine.keeper.run(), name=f"machine {machine.address}")
        return new

    async def served(self, within_s: float) -> float:
        """Wait until every machine holds a lease; the seconds that took. Raises TimeoutError that says how many do."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(within_s):
                for machine in self.machines:
                    await machine.served.wait()
        except TimeoutError:
            holding = sum(machine.held is not None for machine in self.machines)
            raise TimeoutError(f"{holding} of {len(self.machines)} machines have a lease after {within_s:g} s") from None
        return time.monotonic() - began

    async def until(self, fact: Callable[[], object], within_s: float) -> None:
        """Wait for a fact that nobody announces. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not fact():  # noqa: ASYNC110 - any fact, not one that has an event
                await asyncio.sleep(0.01)

    async def faults(self) -> list[str]:
        """What is not as it should be: each machine holds a lease of its own, and etcd agrees. Empty: nothing."""
        there = {lease.key: lease.public_ip for lease in (await self.registry.snapshot()).leases}
        wanted = {machine.held.key: machine.address for machine in self.machines if machine.held is not None}
        found = [
            f"{key} is {there.get(key)}'s in etcd, {address} holds it"
            for key, address in wanted.items()
            if there.get(key) != address
        ]
        if len(wanted) != len(self.machines):
            found.append(f"{len(wanted)} subnets for {len(self.machines)} machines")
        if len(there) != len(wanted):
            found.append(f"{len(there)} leases in etcd, {len(wanted)} are held")
        return found

    @property
    def rounds(self) -> tuple[int, int]:
        """Listings of all machines, and of the one that needed most."""
        counts = [machine.rounds for machine in self.machines]
        return sum(counts), max(counts, default=0)

    async def _follow(self, revision: int) -> None:
        async for batch in self.registry.watch(revision + 1):
            for event in batch.events:
                for machine in self.machines:
                    machine.see(event)
