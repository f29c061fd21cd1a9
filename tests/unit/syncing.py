"""A reconciler on a kernel in memory, for tests of the loop: the clock is the test's, and the kernel fails when it is told to."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TypeVar

from netaddr import IPAddress, IPNetwork

from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.fragments import Target
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.agent.sync.scope import _SYSCTLS
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.errors import KernelError
from flannelpy.core.model import Family, Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Key, NftTable, Route, Scope
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.core.uplink import EVERYTHING, FactsQuery, HostFacts, Interface, InterfaceAddress, RouteAnswer
from flannelpy.kernel import Echo, Notices, Result
from flannelpy.kernel.fake import FakeKernel
from flannelpy.plugins import parse

T = TypeVar("T")

NETWORK = IPNetwork("10.5.0.0/16")
PREFIX = "/coreos.com/network"
OURS = "02:00:00:00:00:01"
TURNS = 8
"""Turns of the loop that whoever listens needs to take in what the kernel has said."""


def eth1(up: bool = True) -> Interface:
    return Interface("eth1", 2, 1500, up, (InterfaceAddress(IPAddress("192.0.2.1"), 24),))


def mac_of(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def peer(number: int, *, at: str | None = None, mac: str | None = None, age: int | None = None) -> Lease:
    """The lease of 10.5.NUMBER.0/24; ``age`` is its create revision."""
    data = {"VtepMAC": mac or mac_of(number)}  # of an older flannel, that is of any VNI
    attrs = LeaseAttrs(IPAddress(at or f"192.0.2.{number}"), None, "vxlan", data)
    return Lease(IPNetwork(f"10.5.{number}.0/24"), attrs, etcd_lease=7, create_revision=number if age is None else age)


def target(backend: Mapping[str, object] | None = None, scope: Scope | None = None, table: str = "a\n") -> Target:
    """What the host is to be with this Backend (vxlan); ``scope``: what was in it before."""
    config, made = parse(json.dumps({"Network": str(NETWORK), "Backend": backend or {"Type": "vxlan"}}))
    address = IPAddress("192.0.2.1")
    uplink = Uplink("eth1", 2, 1500, address, public_ip=address)
    own = Lease(IPNetwork("10.5.1.0/24"), LeaseAttrs(address), etcd_lease=1, create_revision=1)
    local = Local(config, uplink, own, dict.fromkeys(made.devices(config), OURS))
    devices = made.devices(config)
    before = scope or Scope()
    whole = Scope(
        links=frozenset(devices) | before.links,
        networks=config.networks,
        uplink="eth1",
        table="flannelpy",
        sysctls=frozenset(f"net/{name.format(d)}" for d in devices for name in _SYSCTLS) | before.sysctls,
    )
    return Target(made, local, whole, lambda: HostState.of(NftTable("flannelpy", table)))


class SteppedClock:
    """Time moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class PeersBook:
    """The cluster's view, as the reconciler reads it."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self.current: Mapping[str, Lease] = self._leases
        self._changed: dict[str, Lease | None] = {}

    def put(self, lease: Lease) -> None:
        self._leases[lease.key] = self._changed[lease.key] = lease

    def drop(self, key: str) -> None:
        if self._leases.pop(key, None) is not None:
            self._changed[key] = None

    def take(self) -> Mapping[str, Lease | None]:
        changed, self._changed = self._changed, {}
        return changed


class FailingKernel:
    """The fake, whose every method fails when ``fails`` says so: not at all, in the middle, or with an answer that is not true."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.fails: Callable[[], bool] = lambda: False
        self.failed = 0

    def _maybe(self) -> None:
        if self.fails():
            self.failed += 1
            if self.failed % 7 == 0:
                raise RuntimeError("nobody expected this")
            raise KernelError("netlink: Too many open files", errno.EMFILE)

    async def _ask(self, answer: Awaitable[T]) -> T:
        found = await answer
        await asyncio.sleep(0)
        self._maybe()
        return found

    async def facts(self, query: FactsQuery = EVERYTHING) -> HostFacts:
        return await self._ask(self.kernel.facts(query))

    async def reintroduce(self, index: int) -> None:
        await self._ask(self.kernel.reintroduce(index))

    async def nexthops(self) -> bool:
        return await self._ask(self.kernel.nexthops())

    async def route_to(self, address: IPAddress) -> RouteAnswer | None:
        return await self._ask(self.kernel.route_to(address))

    async def routes_at(self, routes: Iterable[Route]) -> Sequence[Route]:
        return await self._ask(self.kernel.routes_at(routes))

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        return await self._ask(self.kernel.observe(scope, keys))

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        self._maybe()
        results = []
        for step in steps:
            if self.fails():
                results.append(Result(step, KernelError("Cannot allocate memory", errno.ENOMEM)))
                continue
            (result,) = await self.kernel.apply([step])
            if self.fails():
                result = Result(step, KernelError("netlink: No buffer space available", errno.ENOBUFS))  # and yet it was done
            results.append(result)
        self._maybe()
        return results

    async def rehearse(self, steps: Sequence[Step]) -> Sequence[Result]:
        return await self.kernel.rehearse(steps)

    async def public_key(self, private: Secret[bytes]) -> str:
        return await self.kernel.public_key(private)

    def echo(self, version: Family) -> Echo:
        self._maybe()
        return self.kernel.echo(version)

    def notices(self, scope: Scope) -> Notices:
        return self.kernel.notices(scope)

    async def close(self) -> None:
        await self.kernel.close()


class AskedGateways:
    """Asks the kernel, every time."""

    def __init__(self, kernel: FailingKernel) -> None:
        self._kernel = kernel
        self.asked: list[IPAddress] = []

    async def on_link(self, addresses: Iterable[IPAddress]) -> Mapping[IPAddress, str]:
        found = {}
        for address in sorted(addresses):
            self.asked.append(address)
            answer = await self._kernel.route_to(address)
            if answer is not None and answer.via is None:
                found[address] = answer.dev
        return found


EVERYWHERE = Scope(frozenset({"flannel.1", "flannel.2"}), (NETWORK,), "eth1", "flannelpy")
"""Whatever a target of these tests may have in its scope; notices are heard of all of it."""


class World:
    """One host's reconciler and what it reads. ``quiet`` lets it do all that is due."""

    def __init__(self, kernel: FakeKernel | None = None) -> None:
        self.clock = SteppedClock()
        self.kernel = kernel or FakeKernel([eth1()])
        self.failing = FailingKernel(self.kernel)
        self.reporter = Reporter(self.clock)
        self.peers = PeersBook()
        self.gateways = AskedGateways(self.failing)

        async def nothing() -> None: ...

        self.reconciler = Reconciler(
            self.failing, self.reporter, self.peers, self.gateways, self.clock, before_round=nothing, nexthops=True
        )
        self.target = target()
        self.rounds = 0

    @asynccontextmanager
    async def alive(self, made: Target | None = None) -> AsyncIterator[World]:
        """Notices are heard for the time of the block. The target is given, everything may be swept, and all is quiet."""
        listening = asyncio.create_task(self._listen())
        await asyncio.sleep(0)
        try:
            self.retarget(made or self.target)
            self.reconciler.allow_sweep(True)
            self.reconciler.resync()
            await self.quiet()
            yield self
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self) -> None:
        async for notice in self.kernel.notices(EVERYWHERE):
            self.reconciler.hear(notice)
            if notice.links or notice.routed:
                self.reconciler.reroute((4, 6))

    def retarget(self, made: Target) -> None:
        self.target = made
        self.reconciler.set_target(made)

    def join(self, *leases: Lease) -> None:
        for lease in leases:
            self.peers.put(lease)
        self.reconciler.dirty.poke()

    def leave(self, *leases: Lease) -> None:
        for lease in leases:
            self.peers.drop(lease.key)
        self.reconciler.dirty.poke()

    async def round(self) -> None:
        """One round, if one is due."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        loop = self.reconciler
        loop.dirty.add(loop._due())
        if loop.dirty.pending:
            self.rounds += 1
            with suppress(RuntimeError):  # whoever guards the task begins it anew
                await loop.round()

    async def quiet(self, most: int = 50) -> int:
        """Rounds until none is due; how many there were. A loop that keeps itself busy is no quiet."""
        before = self.rounds
        while True:
            was = self.rounds
            await self.round()
            if self.rounds == was:
                return was - before
            assert was - before < most, f"still busy after {most} rounds"

    async def later(self, seconds: float) -> int:
        """So many seconds on, and quiet."""
        self.clock.now += seconds
        return await self.quiet()

    async def recover(self) -> None:
        """Nothing fails any more; until everything was tried again, and what is past is forgotten."""
        self.failing.fails = lambda: False
        self.reconciler.allow_sweep(True)
        for _ in range(5):
            self.reconciler.look_at_silent()
            await self.later(31.0)
        self.reconciler.look_at_silent()
        await self.quiet()

    def conditions(self) -> dict[str, str]:
        """What is wrong now, by code and subject."""
        return {f"{active.condition.code} {active.subject}".strip(): active.text for active in self.reporter.health}

    async def held(self) -> set[str]:
        """What the kernel holds in scope, as an operator reads it; of settings only those that are desired."""
        state = await self.kernel.observe(self.target.scope)
        wanted = self.reconciler.desired
        return {f"{item.noun} {item}" for item in state if item.noun != "sysctl" or wanted.get(item.key) is not None}

    def text(self, start: int = 0) -> list[str]:
        """The steps that were carried out, from the ``start``-th on."""
        return [str(step) for step in self.kernel.applied[start:]]

    @property
    def steps(self) -> int:
        """How many steps were carried out."""
        return len(self.kernel.applied)


def sometimes(seed: int, probability: float) -> Callable[[], bool]:
    """Fails now and then, in an order that the seed says."""
    random = Random(seed)
    return lambda: random.random() < probability
