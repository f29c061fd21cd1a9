"""udp in user space over a wire that loses, moves and doubles frames: nothing arrives bent, nothing is made up, no connection ends.

c1 10.5.72.2 - h1 flannel0 - datapath - 192.168.50.11 ~~ rough ~~ 192.168.50.12 - datapath - flannel0 h2 - c2 10.5.9.2

Each datapath with its offloads; one of the two moving packets one by one, as on a kernel without them; and with two workers each.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from netns_lab.lab import Lab
from netns_lab.rough import Rates, Rough
from netns_lab.traffic import Pair, call, datagrams, transfer
from tests.lab import udp_support as support

RATES = Rates(loss=0.0005, reordering=0.01, duplication=0.005, seed=20)
MB = 10**6

pytestmark = pytest.mark.topology(hosts=2, etcd=0, backend="udp", network="10.5.0.0/16")


@dataclass(frozen=True, slots=True)
class Carried:
    """Two hosts that carry over a rough wire; ``share`` of the whole volume is sent but where both are as they are by default."""

    lab: Lab
    datapaths: tuple[support.Host, support.Host]
    offloads: tuple[bool, bool]
    share: float
    wire: Rough

    def pair(self, source: str = "c1", target: str = "c2") -> Pair:
        one, other = self.lab.container(source), self.lab.container(target)
        return Pair(one.namespace.path, other.namespace.path, str(other.address))

    def check(self, frames: int) -> None:
        """The wire was rough, and each datapath was of its kind."""
        for way in (self.wire.outbound, self.wire.inbound):
            print(way)
            assert way.seen > frames
            assert way.lost > way.seen * RATES.loss / 3
            assert way.moved > way.seen * RATES.reordering / 3
            assert way.doubled > way.seen * RATES.duplication / 3
            assert way.refused == 0
        for host, offload in zip(self.datapaths, self.offloads, strict=True):
            counters = host.counters
            print(counters)
            assert {"outbound_segmented", "inbound_coalesced"} & counters.keys() == (
                {"outbound_segmented", "inbound_coalesced"} if offload else set()
            )
            bad = {name for name in counters if "dropped" in name} - {"outbound_dropped_not_ipv4"}
            assert not bad


KINDS = {
    "offloads": ((True, True), 1),
    "offloads-plain": ((True, False), 1),
    "plain-offloads": ((False, True), 1),
    "two-workers": ((True, True), 2),
}


@pytest.fixture(params=KINDS)
async def carried(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[Carried]:
    subnets = ("10.5.72", "10.5.9")
    offloads, workers = KINDS[request.param]
    with ExitStack() as undo:
        datapaths = [
            support.Host(host.namespace.name, f"{subnet}.0/24", str(host.address))
            for host, subnet in zip(lab.hosts, subnets, strict=True)
        ]
        for one, other, offload in zip(datapaths, reversed(datapaths), offloads, strict=True):
            one.begin(json.dumps({"offload": offload, "Workers": workers}))
            undo.callback(one.end)
            assert one.tell("open") is None
            one.tell("update", {other.subnet: other.address})
            one.configure()
            one.tell("run")
        for host, subnet in zip(lab.hosts, subnets, strict=True):
            host.subnet_file.write_text(f"FLANNEL_SUBNET={subnet}.1/24\nFLANNEL_MTU={support.MTU}\n")
        await lab.connect_containers()
        async with lab.rough("h1", RATES) as wire:
            for one, other in (
                ("c1", "c2"),
                ("c2", "c1"),
            ):  # neighbours are found; while they are not, the kernel drops what is sent

                async def reached(source: str = one, target: str = other) -> bool:
                    return (await lab.ping(source, target)).ok

                await lab.until(reached)
            yield Carried(lab, (datapaths[0], datapaths[1]), offloads, 1 if request.param == "offloads" else 0.2, wire)


@pytest.mark.timeout(300)
async def test_a_gigabyte_arrives_as_it_was_sent(carried: Carried) -> None:
    for source, target, octets in (("c1", "c2", 1000 * MB), ("c2", "c1", 100 * MB)):
        done = await transfer(carried.pair(source, target), int(octets * carried.share))
        print(f"{source} to {target}: {done.octets / MB:g} MB in {done.seconds:.1f} s")
        assert done.got == done.sent
    carried.check(int(100_000 * carried.share))


async def test_ten_thousand_short_connections(carried: Carried) -> None:
    count = int(10_000 * carried.share)
    calls = await call(carried.pair(), count, at_once=100)
    print(f"{calls.good} connections in {calls.seconds:.1f} s")
    assert calls.wrong == []
    assert calls.good == count
    carried.check(count * 4)


async def test_datagrams_of_odd_sizes_arrive_intact_or_not_at_all(carried: Carried) -> None:
    """Also those above the MTU, which cross in fragments."""
    count = int(40_000 * carried.share)
    for source, target, longest in (("c1", "c2", 4000), ("c2", "c1", 1400)):
        got = await datagrams(carried.pair(source, target), count, longest=longest)
        way = carried.wire.outbound if source == "c1" else carried.wire.inbound
        print(f"{got.sent} sent, {len(got.came)} came, {got.received - len(got.came)} of them twice; {way}")
        assert got.bent == 0
        assert got.sent - way.lost <= len(got.came) < got.sent
        assert max(got.came.values()) == 2
        assert got.received <= got.sent + way.doubled
