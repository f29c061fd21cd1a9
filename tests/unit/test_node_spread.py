"""A thousand nodes hear of one event: do they write at once?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.node import NodeKeeper
from flannelpy.core import lease_events as ev
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import RegistryUnavailableError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.registry import LAST_RETRY_S, KubeRegistry
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import HostInMemory
from tests.unit.virtual_time import run

CONFIG = NetworkConfig.parse('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
OTHER = NetworkConfig.parse('{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}')


def attrs(kind: str) -> LeaseAttrs:
    return LeaseAttrs(IPAddress("192.0.2.1"), None, kind)


class Node:
    """Our node, as Kubernetes has it."""

    changes = 0

    def __init__(self) -> None:
        self.lease = Lease(IPNetwork("10.244.1.0/24"), attrs(""), create_revision=1)
        self.written: list[tuple[float, str]] = []

    async def own(self, families: tuple[int, ...] = ()) -> Lease:
        return self.lease

    async def advertise(self, what: LeaseAttrs) -> LeaseAttrs:
        return what

    async def changed(self, since: int) -> None:
        await asyncio.Event().wait()

    async def renew(self, lease: Lease, what: LeaseAttrs, **_: object) -> Lease:
        self.written.append((asyncio.get_running_loop().time(), what.backend_type))
        self.lease = Lease(lease.subnet, what, create_revision=1, mod_revision=lease.mod_revision + 1)
        return self.lease


def test_what_all_hosts_publish_at_one_event_is_spread_in_kubernetes_too(tmp_path: Path) -> None:
    async def scene() -> None:
        node = Node()
        host = HostInMemory(MemoryStore(), tmp_path)
        context = host.context(node)  # type: ignore[arg-type]

        async def promise(_lease: Lease) -> None: ...

        keeper = NodeKeeper(context, node, CONFIG, attrs("vxlan"), lambda: None, promise)  # type: ignore[arg-type]
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(1.0)
        asked = asyncio.get_running_loop().time()
        keeper.move(OTHER)  # as Steering._follow does
        keeper.publish(attrs("host-gw"), 4.0)
        await asyncio.sleep(10.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (_first, (when, kind)) = node.written
        assert kind == "host-gw"
        assert when - asked == pytest.approx(4.0, abs=0.5)

    run(scene())


def test_after_a_cut_of_the_watch_our_node_is_looked_at_when_all_are_listed(tmp_path: Path) -> None:
    """Which each host does a little later than others: of thousands that hear of it at one moment none asks at once."""

    async def scene() -> None:
        node = Node()
        looks: list[float] = []
        clock, own = asyncio.get_running_loop().time, node.own

        async def look(families: tuple[int, ...] = ()) -> Lease:
            looks.append(clock())
            return await own(families)

        node.own = look  # type: ignore[method-assign]
        context = HostInMemory(MemoryStore(), tmp_path).context(node)  # type: ignore[arg-type]

        async def promise(_lease: Lease) -> None: ...

        keeper = NodeKeeper(context, node, CONFIG, attrs("vxlan"), lambda: None, promise)  # type: ignore[arg-type]
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(1.0)
        before = len(looks)
        keeper.tell(ev.Reconnected())
        await asyncio.sleep(4.0)
        assert len(looks) == before
        keeper.tell(ev.Overheard((node.lease,), 7))
        await asyncio.sleep(1.0)
        assert len(looks) == before + 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(scene())


class Away:
    """An API server that is being started: each watch of each node is refused."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def nodes(self) -> tuple[list[Node], int]:
        return [], 1

    async def watch(self, *_: object) -> AsyncIterator[tuple[str, Node]]:
        self.asked.append(asyncio.get_running_loop().time())
        raise RegistryUnavailableError("https://api:6443: Connection refused")
        yield

    async def close(self) -> None: ...


def test_nodes_that_lost_the_api_server_together_come_back_one_by_one(tmp_path: Path) -> None:
    async def scene() -> None:
        servers = [Away() for _ in range(20)]
        registries = [KubeRegistry(Access(net_config=tmp_path / "none", node="n"), each) for each in servers]  # type: ignore[arg-type]

        async def follow(registry: KubeRegistry) -> None:
            await registry.snapshot()
            async for _ in registry.watch(2):
                pass

        tasks = [asyncio.create_task(follow(each)) for each in registries]
        await asyncio.sleep(60.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tenth = {round(each.asked[10], 2) for each in servers}
        assert len(tenth) > 15
        for each in servers:
            assert max(later - sooner for sooner, later in pairwise(each.asked)) <= LAST_RETRY_S

    run(scene())
