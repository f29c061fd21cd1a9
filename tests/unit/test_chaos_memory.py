"""A day of random faults of registry, kernel and host, in virtual time: every hour the cluster comes to rest, and nothing stays.

    h1, h2, h3 --- a registry in memory        each with a kernel in memory; faults follow from the seed

CHAOS_MEMORY_SEED makes another day, CHAOS_MEMORY_HOURS a longer or shorter one.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.context import Timeouts
from flannelpy.core.errors import KernelError, RegistryAuthError, RegistryError, RegistryRefusedError, RegistryUnavailableError
from flannelpy.core.model import parse_subnet_key
from flannelpy.core.objects import Key, Link
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory import METHODS, MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory, vxlan_value
from tests.unit.virtual_time import VirtualLoop, run

HOURS = int(os.environ.get("CHAOS_MEMORY_HOURS", "24"))
SEEDS = [int(os.environ["CHAOS_MEMORY_SEED"])] if "CHAOS_MEMORY_SEED" in os.environ else [1]
HOSTS = 3
CALM_WITHIN_S = 900.0
"""The longest way back: a full listing comes every five minutes, a peer that expired is kept for ten."""
LASTS_S = 120.0
"""A fault that lasts does so for at most as long."""
KERNEL_CALLS = ("observe", "apply", "facts", "route_to", "routes_at", "notices", "next_notice")
CODES = (errno.ENOBUFS, errno.EBUSY, errno.ENETUNREACH, errno.EMFILE, errno.EINTR)
OF_REGISTRY = ("cut off", "stop", "drop", "compact", "full", "junk", "peer", "delete", "expire", "deface", "fail", "fail")
OF_KERNEL = ("call fails", "call fails", "step fails", "overflow", "take", "down", "flush routes", "flush nft", "mtu")
OF_HOST = ("link down", "mtu", "address", "away", "rename", "churn", "churn", "restart")


class Day:
    """Three hosts, and what befalls them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = Random(seed)
        self.store = MemoryStore()
        self.hosts = [HostInMemory(self.store, folder, number + 1) for number in range(HOSTS)]
        for host in self.hosts:
            host.timeouts = Timeouts()
        self.lives: list[AsyncExitStack] = []
        self.faults: list[str] = []
        self.strangers: set[int] = set()
        """etcd leases of peers that are nothing but keys."""
        self.loosened = 0
        """How often a key was taken off its etcd lease, or whoever took a lease did not hear of it: each lives on for a day."""
        self.going_on: set[asyncio.Task[None]] = set()
        self.store.put(f"{PREFIX}/config", json.dumps(VXLAN))

    # ---------------------------------------------------------------------------------------------------- the hosts

    async def begin(self, number: int) -> AsyncExitStack:
        life = AsyncExitStack()
        await life.enter_async_context(self.hosts[number].run(ready=False))
        return life

    async def restart(self, number: int) -> None:
        await self.lives[number].aclose()
        self.lives[number] = await self.begin(number)

    async def keep_time(self) -> None:
        """etcd leases end by the loop's clock."""
        while True:
            await asyncio.sleep(1)
            self.store.advance(asyncio.get_running_loop().time() - self.store.now)

    # --------------------------------------------------------------------------------------------------- the faults

    def befall(self) -> None:
        """One fault, now; what lasts ends by itself."""
        number = self.chance.randrange(HOSTS)
        fault = self.chance.choice((self.of_registry, self.of_registry, self.of_kernel, self.of_kernel, self.of_host))
        kind = fault(self.hosts[number], number)
        self.faults.append(f"{asyncio.get_running_loop().time():.0f} s: h{number + 1}: {kind}")

    def lasting(self, undo: Callable[[], object]) -> None:
        """Call ``undo`` after a while."""

        async def later() -> None:
            await asyncio.sleep(self.chance.uniform(0.1, LASTS_S))
            undo()

        self.meanwhile(later())

    def meanwhile(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this beside the rest; a calm waits for its end."""
        task = asyncio.create_task(work, name="fault")
        self.going_on.add(task)
        task.add_done_callback(self.going_on.discard)

    def of_registry(self, host: HostInMemory, number: int) -> str:
        store, registry, chance = self.store, host.registry, self.chance
        key = next((key for key, owner in leased(store) if owner == address_of(host)), "")
        kind = chance.choice(OF_REGISTRY)
        match kind:
            case "cut off":
                registry.down = True
                self.lasting(lambda: setattr(registry, "down", False))
            case "stop":
                store.stop()
                self.lasting(store.start)
            case "drop":
                store.drop_watches()
            case "compact":
                store.compact()
            case "full":
                store.full = True
                self.lasting(lambda: setattr(store, "full", False))
            case "junk":
                store.put(f"{PREFIX}/subnets/junk{chance.randrange(9)}", "{")
                self.lasting(lambda: [store.delete(junk) for junk in list(store.records) if b"/junk" in junk])
            case "peer":
                third = chance.randrange(100)
                at = f"{PREFIX}/subnets/10.5.{third}.0-24"
                grant = store.grant(3600)  # longer than its host is there, or it would only have expired
                store.put(at, vxlan_value(f"192.0.2.{100 + third}", f"02:00:00:00:01:{third:02x}"), grant)
                self.lasting(lambda: store.delete(at))
                self.strangers.add(grant)
            case "delete" if key:
                self.loosened += 1
                store.delete(key)
            case "expire" if key:
                store.expire(key)
            case "deface" if key:
                self.loosened += 1
                store.put(key, "not JSON")
            case "fail":
                kinds: tuple[type[RegistryError], ...] = (RegistryUnavailableError, RegistryRefusedError, RegistryAuthError)
                method, error = chance.choice(METHODS), chance.choice(kinds)
                times, carried_out = chance.randint(1, 5), chance.random() < 0.3
                self.loosened += times if carried_out and method in ("create", "renew") else 0
                registry.fail(method, error("by chance"), times, carried_out=carried_out)
                self.lasting(registry.mend)
                return f"{method} fails with {error.__name__}"
        return kind

    def of_kernel(self, host: HostInMemory, number: int) -> str:
        kernel, chance = host.kernel, self.chance
        kind = chance.choice(OF_KERNEL)
        ours = [key for key in kernel.planted() if key.kind != "sysctl"]
        device = kernel.get(Key("link", "flannel.1"))
        match kind:
            case "call fails":
                method, code = chance.choice(KERNEL_CALLS), chance.choice(CODES)
                kernel.fail_call(method, KernelError(f"{method}: by chance", code), chance.randint(1, 5))
                return f"{method} fails"
            case "step fails" if ours:
                key = chance.choice(ours)
                kernel.fail(key, chance.choice(CODES), chance.randint(1, 4))
                return f"{key} fails"
            case "overflow":
                kernel.overflow()
            case "take" if ours:
                key = chance.choice([*ours, Key("link", "flannel.1")])
                kernel.take(key)
                return f"{key} is taken"
            case "down" if device is not None:
                kernel.set_down("flannel.1")
            case "flush routes":
                kernel.flush_routes("flannel.1")
            case "flush nft":
                kernel.flush_ruleset()
            case "mtu" if isinstance(device, Link):
                kernel.plant(replace(device, mtu=1280))
        return kind

    def of_host(self, host: HostInMemory, number: int) -> str:
        kernel, chance = host.kernel, self.chance
        kind = chance.choice(OF_HOST)
        uplink = kernel.interfaces.get("eth1")
        if kind == "restart":
            self.meanwhile(self.restart(number))
            return kind
        if uplink is None:
            return f"{kind}, but there is no eth1 now"
        match kind:
            case "link down":
                kernel.set_down("eth1")
                self.lasting(lambda: put_up(host, uplink))
            case "mtu":
                kernel.set_interface(replace(uplink, mtu=chance.choice((1300, 1400, 1500, 9000))))
            case "address":
                last = 10 * (number + 1) + chance.randrange(8)
                kernel.set_interface(replace(uplink, addresses=(InterfaceAddress(IPAddress(f"192.0.2.{last}"), 24),)))
            case "away":
                kernel.take_interface("eth1")
                self.lasting(lambda: put_up(host, replace(uplink, index=uplink.index + 100)))
            case "rename":
                kernel.rename_interface("eth1", "ens3")
                self.lasting(lambda: kernel.rename_interface("ens3", "eth1"))
            case "churn":
                for index in range(chance.randint(1, 50)):
                    kernel.set_interface(Interface(f"veth{index}", 1000 + index, 1500, True))
                    kernel.take_interface(f"veth{index}")
        return kind

    # ----------------------------------------------------------------------------------------------------- the calm

    async def calm(self) -> None:
        """No more faults: everybody is ready, nothing is wrong, and everybody has a route to everybody."""
        while self.going_on:
            await asyncio.wait(self.going_on)
        deadline = asyncio.get_running_loop().time() + CALM_WITHIN_S
        while wrong := self.wrong():
            recent = "\n  ".join(self.faults[-12:])
            assert asyncio.get_running_loop().time() < deadline, f"not at rest: {wrong}; the last faults:\n  {recent}"
            await asyncio.sleep(1)

    def leaked(self) -> list[str]:
        """etcd leases that nobody's key hangs on, although whoever took them could have given them back."""
        used = {record.etcd_lease for record in self.store.records.values()}
        left = [grant for grant in self.store.grants if grant not in used and grant not in self.strangers]
        return [f"{grant:x} until {self.store.grants[grant].until:.0f}" for grant in left]

    def wrong(self) -> str:
        """What is not as it should be; empty where all is."""
        for number, host in enumerate(self.hosts, 1):
            if host.over:
                host.raise_failure()
                return f"h{number} has ended"
        leases = leased(self.store)
        owners = {owner: key for key, owner in leases}
        wanted = {address_of(host) for host in self.hosts}
        if set(owners) != wanted or len(leases) != HOSTS:
            said = {f"h{number}": host.conditions() for number, host in enumerate(self.hosts, 1)}
            return f"leases {leases}, expected one each of {wanted}; {said}"
        for number, host in enumerate(self.hosts, 1):
            if conditions := host.conditions():
                return f"h{number}: {conditions}"
            if not host.ready or not host.settled:
                return f"h{number} is not ready, or not settled"
            for other in self.hosts:
                subnet = parse_subnet_key(owners[address_of(other)].rpartition("/")[2])[0]
                if other is not host and not host.holds(f"route {subnet} via {IPNetwork(subnet).ip} dev flannel.1 onlink"):
                    return f"h{number} has no route to {subnet}"
        return ""


def leased(store: MemoryStore) -> list[tuple[str, str]]:
    """Each lease key and the PublicIP in it; empty where it cannot be read."""
    found = []
    for key, record in store.records.items():
        if key.startswith(f"{PREFIX}/subnets/".encode()):
            try:
                found.append((key.decode(), json.loads(record.value or b"")["PublicIP"]))
            except (ValueError, KeyError, TypeError):
                found.append((key.decode(), ""))
    return found


def address_of(host: HostInMemory) -> str:
    """Where the host is by now; empty while it has no uplink."""
    uplink = host.kernel.interfaces.get("eth1")
    return str(uplink.addresses[0].address) if uplink else ""


def put_up(host: HostInMemory, uplink: Interface) -> None:
    now = host.kernel.interfaces.get("eth1", uplink)
    host.kernel.set_interface(replace(now, up=True))


async def live(day: Day, lines: Callable[[], int]) -> None:
    """The whole day."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    keeper = asyncio.create_task(day.keep_time(), name="etcd's clock")
    try:
        for number in range(HOSTS):
            day.lives.append(await day.begin(number))
        await day.calm()
        said, most = lines(), 0
        for hour in range(HOURS):
            until = loop.time() + 3600
            while loop.time() < until - 2 * LASTS_S:
                await asyncio.sleep(day.chance.expovariate(1 / 60))
                day.befall()
            await day.calm()
            await asyncio.sleep(max(60.0, until - loop.time()))
            await day.calm()
            names = sorted(task.get_name() for task in asyncio.all_tasks())
            most = most if hour else len(names)
            assert len(names) <= most, names
            assert len(loop.timers) <= 2 * len(names), loop.timers  # a task waits for a time, and for something within a time
            assert len(day.leaked()) <= day.loosened, day.leaked()
        print(f"{len(day.faults)} faults in {loop.time() / 3600:.1f} hours, {lines() - said} lines in the log")
        assert lines() - said <= HOSTS * len(day.faults)
    finally:
        keeper.cancel()
        for task in list(day.going_on):
            task.cancel()
        for life in day.lives:
            await life.aclose()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_day_of_faults_ends_with_nothing_wrong(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    caplog.set_level(logging.INFO, "flannelpy")
    run(live(Day(tmp_path, seed), lambda: len(caplog.records)))
