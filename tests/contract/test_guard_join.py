"""What does one peer that comes among ten thousand cost a host that guards its port? Messages to the kernel, nft's runs, time.

10.64.0.0/24 ... at 198.18.0.1 ...      [ host 192.0.2.1, flannel.1, 10.5.72.0/24 ]      the loop on a kernel of its own
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.firewall import Firewall
from flannelpy.agent.sync.fragments import Target
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Scope
from flannelpy.kernel.channel import Channel, Failure
from flannelpy.kernel.messages import NLMSG, RTM_NEWNEXTHOP
from flannelpy.kernel.nft import Nft
from flannelpy.plugins import parse
from flannelpy.registry import Endpoint
from flannelpy.settings import Settings
from tests.contract.kernel_support import RealHost, fresh_namespace, real_only
from tests.unit.syncing import PeersBook

pytestmark = real_only

PEERS = 10_000
JOINS = 25
JOIN_S = 0.005
"""Of the processor's time, the kernel's work in it; the median of JOINS."""
CONFIG = '{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}'


class FarAway:
    """No peer is on the link."""

    async def on_link(self, addresses: Iterable[IPAddress]) -> Mapping[IPAddress, str]:
        return {}


class Counted:
    """What goes to the kernel: messages by kind, runs of nft."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.messages = Counter[str]()
        transact, run = Channel.transact, Nft._run

        def count(channel: Channel, requests: Sequence[bytes], first: int, *, batch: bool = False) -> dict[int, Failure]:
            for request in requests:
                self.messages["set element" if batch else f"route netlink {NLMSG.unpack_from(request)[1]}"] += 1
            self.messages["set element"] -= batch  # the transaction's beginning
            return transact(channel, requests, first, batch=batch)

        async def count_run(nft: Nft, commands: str, more: int = 0, less: int = 0) -> str:
            self.messages["nft"] += 1
            return await run(nft, commands, more, less)

        patch.setattr(Channel, "transact", count)
        patch.setattr(Nft, "_run", count_run)

    def take(self) -> dict[str, int]:
        found, self.messages = +self.messages, Counter()
        return dict(found)


class Guarding:
    """A host's loop with its guard, in a namespace of its own."""

    def __init__(self, host: RealHost) -> None:
        config, backend = parse(CONFIG)
        address = IPAddress("192.0.2.1")
        uplink = Uplink("eth1", 2, 1500, address, public_ip=address)
        own = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(address), etcd_lease=1, create_revision=1)
        devices = backend.devices(config)
        scope = Scope(frozenset(devices), config.networks, "eth1", "flannelpy")

        def no_rules(networks: Iterable[IPNetwork], owner: str) -> HostState:
            return HostState()

        settings = Settings(Endpoint(("http://etcd:2379",)))
        firewall = Firewall(settings, config, [backend], devices, scope.table, own, no_rules, "eth1", self._renew)
        local = Local(config, uplink, own, dict.fromkeys(devices, "02:00:00:00:00:01"))
        self.peers = PeersBook()
        self.reporter = Reporter(time.monotonic)

        async def nothing() -> None: ...

        self._loop = Reconciler(
            host.kernel, self.reporter, self.peers, FarAway(), time.monotonic, before_round=nothing, nexthops=True
        )
        self._loop.set_target(Target(backend, local, scope, firewall.host, firewall.peer))
        self._loop.resync()

    def _renew(self) -> None:
        self._loop.fragments.change_firewall()

    async def settle(self) -> None:
        while self._loop.dirty.pending or self._loop.fragments.waiting:
            await self._loop.round()

    async def join(self, number: int) -> float:
        """Seconds of the processor until the kernel holds what this peer needs."""
        began = time.process_time()
        self.peers.put(peer(number))
        self._loop.dirty.poke()
        await self._loop.round()
        return time.process_time() - began


def peer(number: int, length: int = 24) -> Lease:
    mac = (6 << 40 | number).to_bytes(6, "big").hex(":")
    attrs = LeaseAttrs(IPAddress((198 << 24) + (18 << 16) + number, 4), None, "vxlan", {"VNI": 1, "VtepMAC": mac})
    return Lease(
        IPNetwork(((10 << 24) + (64 << 16) + 256 * number, length), version=4), attrs, etcd_lease=7, create_revision=number
    )


@pytest.fixture
async def guarding() -> AsyncIterator[Guarding]:
    with fresh_namespace():
        host = RealHost()
        try:
            yield Guarding(host)
        finally:
            await host.close()


@pytest.mark.timeout(300)
async def test_a_join_is_the_same_few_messages_among_ten_and_among_ten_thousand(
    guarding: Guarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, found = Counted(monkeypatch), dict[int, tuple[dict[str, int], float]]()
    await guarding.settle()
    there = 0
    for peers in (10, PEERS):
        for number in range(there + 1, peers + 1):
            guarding.peers.put(peer(number))
        guarding._loop.dirty.poke()
        await guarding.settle()
        counted.take()
        times, joins = [], list[dict[str, int]]()
        for number in range(peers + 1, peers + 1 + JOINS):
            times.append(await guarding.join(number))
            joins.append(counted.take())
        there = peers + JOINS
        assert joins == [joins[0]] * JOINS
        found[peers] = joins[0], statistics.median(times)
        print(f"{peers:,} peers: a join is {joins[0]}, {1e3 * found[peers][1]:.2f} ms of processor time")
    assert [active.text for active in guarding.reporter.health] == []
    assert found[10][0]["set element"] == 2  # of who is a peer, and of what it may send
    assert sum(found[10][0].values()) == 5  # with the neighbour, the forwarding entry, the route: no run of nft
    assert found[PEERS][0] == {**found[10][0], f"route netlink {RTM_NEWNEXTHOP}": 1}  # and by what its route goes, among so many
    assert found[PEERS][1] < JOIN_S


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lengths", [(24,), (26,), (25, 26, 28, 31)])
@pytest.mark.parametrize("order", ["as they came", "the last first", "at random"])
async def test_whoever_goes_costs_the_kernel_no_more_in_one_order_than_in_another(
    guarding: Guarding, lengths: tuple[int, ...], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of ranges (nft_set_pipapo) took it milliseconds for each of these that was not the first."""
    spent, elements, transact = [0.0], [0], Channel.transact

    def timed(channel: Channel, requests: Sequence[bytes], first: int, *, batch: bool = False) -> dict[int, Failure]:
        began = time.thread_time()
        failed = transact(channel, requests, first, batch=batch)
        spent[0] += (time.thread_time() - began) * batch  # of nft's elements only
        elements[0] += (len(requests) - 1) * batch
        return failed

    monkeypatch.setattr(Channel, "transact", timed)
    guarding._loop.allow_sweep(True)
    await guarding.settle()
    there = [peer(number, lengths[number % len(lengths)]) for number in range(1, 2001)]
    for each in there:
        guarding.peers.put(each)
    guarding._loop.dirty.poke()
    await guarding.settle()
    came_s, spent[0] = spent[0], 0.0
    assert elements == [2 * len(there)]
    if order != "as they came":
        there.reverse() if order == "the last first" else Random(7).shuffle(there)
    for at in range(0, len(there), 100):
        for each in there[at : at + 100]:
            guarding.peers.drop(each.key)
        guarding._loop.dirty.poke()
        await guarding.settle()
    print(f"{lengths}, {order}: {came_s:.3f} s to come, {spent[0]:.3f} s to go")
    assert elements == [4 * len(there)]
    assert spent[0] < 5 * came_s + 0.05
