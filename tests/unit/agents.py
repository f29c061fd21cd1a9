"""A host in memory for tests of the agent: a kernel with eth1, a shared registry, files in a folder of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from netaddr import IPAddress

from flannelpy.agent.agent import Agent
from flannelpy.agent.context import Context, Timeouts
from flannelpy.agent.lock import Claimant, Claims
from flannelpy.agent.report import Reporter
from flannelpy.agent.systemd import Notifier
from flannelpy.core.backend import FdStore, NoFdStore
from flannelpy.core.uplink import Interface, InterfaceAddress, Wish
from flannelpy.kernel.fake import FakeKernel
from flannelpy.registry import Endpoint
from flannelpy.registry.memory import MemoryRegistry, MemoryStore, Record
from flannelpy.settings import Settings

PREFIX = "/coreos.com/network"
VXLAN: dict[str, object] = {"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0", "Backend": {"Type": "vxlan"}}
"""Our own lease comes from 10.5.200.0 up, so that the peers of the tests never meet it."""
WITHIN_S = 60.0
TIMEOUTS = Timeouts(departure_s=0.02, reset_s=0.2, offline_s=0.02)


def vxlan_value(at: str, mac: str, vni: int | None = 1) -> str:
    """What a real node writes; an older flannel names no VNI."""
    data = {"VtepMAC": mac} if vni is None else {"VNI": vni, "VtepMAC": mac}
    return json.dumps({"PublicIP": at, "PublicIPv6": None, "BackendType": "vxlan", "BackendData": data})


def descriptors() -> int:
    """How many this process has open, without the /dev/null that a uvloop keeps from its first use of a pipe on."""
    opened = 0
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what it is listed with
            opened += str(each.readlink()) != os.devnull
    return opened


async def until(fact: Callable[[], object]) -> None:
    """Let the loop turn until the fact is true; after some turns with pauses, for threads that write files need theirs."""
    turns = 0
    async with asyncio.timeout(WITHIN_S):
        while not fact():
            turns += 1
            await asyncio.sleep(0 if turns < 50 else 0.001)


class Notes(Notifier):
    """What systemd would have been told."""

    def __init__(self) -> None:
        super().__init__("")
        self.sent: list[str] = []

    def _send(self, message: str, fds: Sequence[int] = ()) -> None:
        self.sent += message.splitlines()


class HostInMemory:
    """One host. ``run`` is its agent's life; kernel and files stay between lives."""

    def __init__(self, store: MemoryStore, folder: Path, number: int = 1, **settings: object) -> None:
        self.store = store
        self.registry = MemoryRegistry(store)
        address = InterfaceAddress(IPAddress(f"192.0.2.{number}"), 24)
        self.kernel = FakeKernel([Interface("eth1", 2, 1500, True, (address,))])
        self.settings = Settings(
            Endpoint(("http://etcd:2379",)),
            iface=("eth1",),
            subnet_file=folder / f"{number}" / "subnet.env",
            state_dir=folder / f"{number}" / "state",
            resolver_file=folder / "resolv.conf",
            **settings,  # type: ignore[arg-type]
        )
        self.notes = Notes()
        self.fd_store: FdStore = NoFdStore()
        self.claims = Claims(Claimant(), folder / f"{number}" / "claims")
        self.timeouts = TIMEOUTS
        self.agent: Agent | None = None
        self._life: asyncio.Task[None] | None = None

    def context(self, registry: MemoryRegistry | None = None) -> Context:
        """What a part of the agent is handed, for a test of that part alone."""
        clock = asyncio.get_running_loop().time
        parts = (self.settings, Wish(iface=("eth1",)), registry or self.registry, self.kernel, Reporter(clock), self.notes)
        return Context(*parts, self.fd_store, clock, self.timeouts)

    def put_config(self, config: dict[str, object] | str) -> None:
        self.store.put(f"{PREFIX}/config", config if isinstance(config, str) else json.dumps(config))

    def put_peer(self, key: str, value: str) -> None:
        self.store.put(f"{PREFIX}/subnets/{key}", value)

    def delete(self, key: str) -> None:
        self.store.delete(f"{PREFIX}/subnets/{key}")

    @asynccontextmanager
    async def run(self, *, ready: bool = True) -> AsyncIterator[HostInMemory]:
        """The agent, for the time of the block."""

        self.notes = Notes()  # each life is a process of its own
        parts = (self.settings, self.registry, self.kernel, self.notes, self.fd_store, self.timeouts, self.claims)
        agent = self.agent = Agent(*parts)

        async def live() -> None:
            await agent.live()

        life = self._life = asyncio.create_task(live())
        try:
            if ready:
                await until(lambda: life.done() or self.ready)
                if life.done():
                    life.result()
            yield self
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            self.claims.close()

    def published(self) -> dict[str, str]:
        """Where each lease in the registry says that its host is, by key."""
        lead = f"{PREFIX}/subnets/".encode()
        found = {key.removeprefix(lead).decode(): record for key, record in self.store.records.items() if key.startswith(lead)}
        return {key: json.loads(record.value or b"{}")["PublicIP"] for key, record in found.items()}

    def record(self, key: str) -> Record:
        """What stands in the registry under a lease's key."""
        return self.store.records[f"{PREFIX}/subnets/{key}".encode()]

    def value(self, key: str) -> str:
        """The value under a lease's key."""
        return (self.record(key).value or b"").decode()

    async def put_back(self, config: dict[str, object], key: str, value: str) -> None:
        """Config and peer as they were."""
        self.put_config(config)
        self.put_peer(key, value)

    @property
    def retries(self) -> int:
        """How often the kernel has refused something."""
        assert self.agent is not None
        assert self.agent._network is not None
        return self.agent._network.reconciler.retries.attempts

    @property
    def settled(self) -> bool:
        """True where nothing is left to be done."""
        network = self.agent._network if self.agent is not None else None
        if network is None or not network.reconciler.settled or network.reconciler.dirty.pending or network.cluster.departures.kept:
            return False
        return len(self.programmed()) == len(network.reconciler.desired.state)

    def programmed(self) -> list[str]:
        """All of ours that the kernel holds, as an operator reads it; without what chance decides."""
        assert self.agent is not None
        assert self.agent._network is not None
        found = (self.kernel.get(item.key) for item in self.agent._network.reconciler.desired.state)
        return sorted(f"{item.noun} {item}" for item in found if item is not None)

    @property
    def over(self) -> bool:
        """True where the agent has ended by itself."""
        return self._life is not None and self._life.done()

    def raise_failure(self) -> None:
        """Raise what it ended with."""
        assert self._life is not None
        self._life.result()

    @property
    def ready(self) -> bool:
        """True where /readyz would say so."""
        return self.agent is not None and self.agent.ready

    @property
    def lease(self) -> str:
        """Our subnet, as the subnet file tells it."""
        env = dict(line.split("=") for line in self.settings.subnet_file.read_text().split())
        return env["FLANNEL_SUBNET"].replace(".1/", ".0-")

    def holds(self, text: str) -> bool:
        """True where the kernel has an object that reads like this."""
        return text in self.state()

    def state(self) -> list[str]:
        """Everything that was programmed and is there, as an operator reads it."""
        found = {step.key for step in self.kernel.applied}
        return [f"{item.noun} {item}" for key in found if (item := self.kernel.get(key)) is not None]

    def conditions(self) -> dict[str, str]:
        """What is wrong now, by code (and subject)."""
        return {f"{active.condition.code} {active.subject}".strip(): active.text for active in self.agent.health}
