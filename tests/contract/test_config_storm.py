"""A thousand hosts hear of a new config at once: what do they write, and when? Real keepers of leases, one real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.request
from pathlib import Path
from random import Random

from netaddr import IPAddress, IPNetwork

from flannelpy.agent.context import Context
from flannelpy.agent.lease import Keeper
from flannelpy.agent.report import Reporter
from flannelpy.agent.systemd import Notifier
from flannelpy.core.backend import NoFdStore
from flannelpy.core.config import NetworkConfig
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import LeaseAttrs
from flannelpy.core.uplink import Wish
from flannelpy.kernel.fake import FakeKernel
from flannelpy.registry import Registry, Snapshot
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.settings import Settings
from netns_lab.etcd import Etcd

HOSTS = 1000
APART_S, TICK_S = 5.0, 0.01
WITHIN_S = 120.0


def attrs_of(number: int, vni: int) -> LeaseAttrs:
    return LeaseAttrs(IPAddress("172.16.0.0") + number, backend_type="vxlan", backend_data={"VNI": vni})


def keeper_of(number: int, config: NetworkConfig, context: Context, listed: Snapshot) -> Keeper:
    """Of the host that had the subnet of this number before, so that nobody chooses what another wants."""

    async def refresh() -> Snapshot:
        return listed

    subnet = IPNetwork((int(IPAddress("10.4.0.0")) + (number << 8), 24), version=4)
    machine = Leasing(config, attrs_of(number, 1), context.random, previous=[subnet])
    return Keeper(context, refresh, machine, lambda: None)


def transactions(etcd: Etcd) -> int:
    """How many this etcd has answered, by its own count."""
    with urllib.request.urlopen(f"{etcd.urls[0]}/metrics", timeout=WITHIN_S) as page:
        text = page.read().decode()
    counts = re.findall(r'^grpc_server_handled_total\{[^}]*grpc_method="Txn"[^}]*\} (\S+)', text, re.M)
    return sum(int(float(count)) for count in counts)


async def test_a_config_change_is_one_write_a_host_and_spread(shared_etcd: Etcd, prefix: str, tmp_path: Path) -> None:
    text = '{"Network": "10.4.0.0/14", "SubnetMin": "10.4.0.0", "Backend": {"Type": "vxlan", "VNI": %d}}'
    before, after = (NetworkConfig.parse(text % vni) for vni in (1, 2))
    registry: Registry = EtcdRegistry(shared_etcd.endpoint(prefix, timeout_s=30.0))
    clock = asyncio.get_running_loop().time
    settings = Settings(shared_etcd.endpoint(prefix), subnet_file=tmp_path / "subnet.env", state_dir=tmp_path / "state")
    parts = (settings, Wish(), registry, FakeKernel(), Reporter(clock), Notifier(""), NoFdStore(), clock)
    context = Context(*parts, random=Random(7))
    listed = await registry.snapshot()
    keepers = [keeper_of(number, before, context, listed) for number in range(HOSTS)]
    written: list[tuple[float, str]] = []

    async def follow(revision: int) -> None:
        async with contextlib.aclosing(registry.watch(revision)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                written.extend((clock(), event.lease.key) for event in batch.events if hasattr(event, "lease"))

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(keeper.run()) for keeper in keepers]
        while any(keeper.held is None for keeper in keepers):  # noqa: ASYNC110 - keepers of other hosts share no event
            await asyncio.sleep(0.05)
        first = await registry.snapshot()
        assert len({lease.key for lease in first.leases}) == HOSTS
        running.append(tasks.create_task(follow(first.revision + 1)))
        began, asked = clock(), await asyncio.to_thread(transactions, shared_etcd)
        due: dict[str, float] = {}
        for number, keeper in enumerate(keepers):
            assert keeper.held is not None
            keeper.move(after)
            wait_s = context.spread(HOSTS - 1)
            due[keeper.held.key] = clock() + wait_s
            keeper.publish(attrs_of(number, 2), wait_s)
        while len(written) < HOSTS:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
        last = await registry.snapshot()
        asked = await asyncio.to_thread(transactions, shared_etcd) - asked
        for task in running:
            task.cancel()
    await registry.close()
    assert sorted(key for _, key in written) == sorted(lease.key for lease in first.leases)
    assert all(lease.attrs.backend_data["VNI"] == 2 for lease in last.leases)
    # Each key was put once more and no other write was made: revisions count them (a granted etcd lease makes none).
    assert last.revision - first.revision == HOSTS
    assert [(lease.key, lease.create_revision) for lease in last.leases] == [
        (lease.key, lease.create_revision) for lease in first.leases
    ]
    assert asked == HOSTS
    assert max(when for when, _ in written) - began >= APART_S
    # A machine that does something else writes later, never sooner: what spreads the writes is what each host waits for.
    assert all(when >= due[key] - TICK_S for when, key in written)
    busiest = max(sum(second <= when - began < second + 1.0 for when in due.values()) for second in range(60))
    print(f"{HOSTS} hosts: {asked} transactions, {busiest} in the busiest second")
    assert busiest <= HOSTS / 2
