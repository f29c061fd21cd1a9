"""How many bytes does one more peer hold, and how many calls does a join make? Counted: no load of the machine disturbs that.

The way of a lease is the agent's: read from its key and value, judged, turned into a fragment, applied, kept in the mirror, and
looked at once more in full. Only the kernel is not there: one that kept what it holds would be counted, too. What is held by which
line is printed by ``python -m tests.unit.test_memory``.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from netaddr import IPAddress, IPNetwork

from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.mirror import Mirror
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.agent.view import Cursor
from flannelpy.core.backend import Guarded
from flannelpy.core.guard import Side, guard_elements
from flannelpy.core.membership import Membership
from flannelpy.core.model import Lease
from flannelpy.core.objects import FdbEntry, HostState, Key, Neighbour, Nexthop, NftElement, Object, Route, Scope
from flannelpy.core.plan import Step
from flannelpy.kernel import Result
from flannelpy.plugins import Spoken, parse
from flannelpy.registry import Put
from flannelpy.registry.etcd.records import decode_put
from tests.unit.syncing import target

PEERS = 2_000
MOST = 4_400
"""Bytes a peer, one of so many that it has a nexthop object; 4,180 are needed, 260 of them for two rounds."""

JOIN_CALLS = 930
"""Functions called from a lease that was read to the kernel's acknowledgement; 860 are needed."""

WITHIN_S = 300


def copied(item: Object) -> Object:
    """The same, as a kernel that was asked would have it made anew: nothing is shared."""
    match item:
        case Neighbour(dst, mac, dev):
            return Neighbour(IPAddress(int(dst), dst.version), bytes.fromhex(mac.replace(":", "")).hex(":"), dev)
        case FdbEntry(mac, dst, dev):
            return FdbEntry(bytes.fromhex(mac.replace(":", "")).hex(":"), IPAddress(int(dst), dst.version), dev)
        case Route(dst, via, dev, onlink, nhid=nhid):
            fresh = None if via is None else IPAddress(int(via), via.version)
            return Route(IPNetwork((dst.first, dst.prefixlen), version=dst.version), fresh, dev, onlink, nhid=nhid)
        case Nexthop(number, via, dev, onlink):
            return Nexthop(number, IPAddress(int(via), via.version), dev, onlink)
        case NftElement(table, name, first, last):
            return NftElement(table, name, bytes(bytearray(first)), last)
    return replace(item)


class Agreeable:
    """A kernel that takes everything and keeps nothing; asked what there is, it makes anew what it is told to hold."""

    def __init__(self) -> None:
        self.reconciler: Reconciler | None = None
        self.asked = self.steps = 0

    async def nexthops(self) -> bool:
        return True

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        self.asked += 1
        desired = () if self.reconciler is None else self.reconciler.desired.state
        return HostState.from_iterable(copied(item) for item in desired)

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        self.asked += 1
        self.steps += len(steps)
        return [Result(step) for step in steps]


def leases(first: int, last: int) -> Iterator[Lease]:
    """As etcd would list them."""
    for number in range(first, last + 1):
        name = f"10.{64 + (number >> 8)}.{number & 255}.0-24"
        mac = (0x02_00_01_00_00_00 | number).to_bytes(6, "big").hex(":")
        value = (
            f'{{"PublicIP":"172.16.{number >> 8}.{number & 255}","PublicIPv6":null,"BackendType":"vxlan",'
            f'"BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}'
        )
        read = decode_put(
            name, value.encode(), etcd_lease=7 << 50 | number, create_revision=10**6 + number, mod_revision=10**7 + number
        )
        assert isinstance(read, Put)
        yield read.lease


class Host:
    """A host among so many peers, with all that it holds of them. ``run`` is its life."""

    def __init__(self) -> None:
        config, backend = parse('{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}')
        guard = backend.guarded if isinstance(backend, Guarded) else None
        assert guard is not None
        self.membership, spoken = Membership(), Spoken((backend,))
        self.membership.configure(config, spoken.accepts, IPAddress("192.0.2.1"), None, spoken)
        self.kernel = Agreeable()
        self.cursors = [Cursor(self.membership.peers, lambda: None) for _ in range(2)]
        self._clock = asyncio.get_running_loop().time
        self.reconciler = Reconciler(
            self.kernel,  # type: ignore[arg-type]
            Reporter(self._clock),
            self.cursors[0],
            None,  # type: ignore[arg-type]
            self._clock,
            before_round=self._nothing,
            nexthops=True,
        )
        sides = [Side(IPNetwork("10.0.0.0/8"), IPNetwork("10.5.1.0/24"), 24)]
        made = target()
        self._target = replace(
            made,
            backend=backend,
            local=replace(made.local, config=config),
            admit=lambda lease: guard_elements(guard, "flannelpy", sides, lease),
        )

    async def _nothing(self) -> None: ...

    @asynccontextmanager
    async def run(self, count: int) -> AsyncIterator[None]:
        """All is done, and was looked at in full."""
        changes = self.membership.replace(leases(1, count))
        for cursor in self.cursors:
            cursor.note(changes.peers)
        del changes
        self.cursors[1].take()
        self.reconciler.set_target(self._target)
        task = asyncio.create_task(self.reconciler.run())
        try:
            async with asyncio.timeout(WITHIN_S):
                while not self.reconciler.settled:
                    await self.reconciler.after_round()
                self.kernel.reconciler = self.reconciler
                self.reconciler.resync()
                await self.reconciler.after_round()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def join(self, lease: Lease) -> None:
        """One more peer, from its lease to the acknowledgement."""
        self.cursors[0].note(self.membership.put(lease).peers)
        self.reconciler.dirty.poke()
        async with asyncio.timeout(WITHIN_S):
            await self.reconciler.after_round()


async def bytes_a_peer(count: int) -> tuple[float, tracemalloc.Snapshot]:
    """What is held for each of so many peers when all is done."""
    host = Host()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        async with host.run(count):
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            snapshot = tracemalloc.take_snapshot()
            assert len(host.reconciler.desired.state) > 5 * count
    finally:
        tracemalloc.stop()
    return (after - before) / count, snapshot


async def calls_of_a_join(among: int) -> tuple[int, int]:
    """How many functions of Python and C a join among so many peers calls, and in how many steps the kernel is asked."""
    host, counted = Host(), 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    async with host.run(among):
        rehearsed, *joining = leases(among + 1, among + 3)
        await host.join(rehearsed)
        asked, steps = host.kernel.asked, host.kernel.steps
        sys.setprofile(count)
        try:
            for lease in joining:
                await host.join(lease)
        finally:
            sys.setprofile(None)
        assert host.kernel.asked - asked == len(joining), "one call of the kernel each, and no look at it"
    return counted // len(joining), (host.kernel.steps - steps) // len(joining)


def test_a_peer_costs_so_many_bytes() -> None:
    held, _ = asyncio.run(bytes_a_peer(PEERS))
    assert held < MOST


def test_a_join_is_as_much_work_among_many_as_among_few() -> None:
    few, many = (asyncio.run(calls_of_a_join(among)) for among in (50, 1_000))
    assert few[1] == many[1] == 5, "neighbour, FDB entry, route, and two elements of the firewall's sets"
    assert many[0] <= JOIN_CALLS
    assert many[0] <= 1.1 * few[0]


def test_what_is_there_as_desired_is_held_once() -> None:
    wanted = FdbEntry("02:00:00:00:00:07", IPAddress("192.0.2.7"), "flannel.1")
    found, other = copied(wanted), replace(wanted, dst=IPAddress("192.0.2.8"))
    assert found is not wanted
    mirror = Mirror({wanted.key: wanted}.get)
    list(mirror.take_full(HostState.of(found)))  # as an agent that begins finds it
    assert mirror.get(wanted.key) is wanted
    mirror.hear({other.key: other})
    assert mirror.get(wanted.key) is other
    mirror.hear({found.key: found})
    assert mirror.get(wanted.key) is wanted
    list(mirror.take_full(HostState.of(copied(wanted))))
    assert [id(key) for key in mirror.objects] == [id(wanted.key)]


def main() -> None:
    """What is held, and by which lines."""
    held, snapshot = asyncio.run(bytes_a_peer(PEERS))
    print(f"{held:.0f} bytes a peer")
    for line in snapshot.statistics("lineno")[:40]:
        print(f"{line.size / PEERS:8.1f} {line.count / PEERS:6.2f}  {line.traceback}")


if __name__ == "__main__":
    main()
