"""Does an agent keep its lease in Kubernetes? A whole agent on a kernel in memory, and a small API server over HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flannelpy.agent import node
from flannelpy.agent.agent import Agent
from flannelpy.registry import Endpoint
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.registry import KubeRegistry
from flannelpy.registry.memory import MemoryStore
from netns_lab.api_server import ApiServer
from tests.unit.agents import TIMEOUTS, HostInMemory, Notes

P = "flannel.alpha.coreos.com/"
CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
PEER = {
    f"{P}kube-subnet-manager": "true",
    f"{P}backend-type": "vxlan",
    f"{P}backend-data": '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:02"}',
    f"{P}public-ip": "192.0.2.2",
}


async def until(fact: Callable[[], object], bound_s: float = 60.0) -> None:
    deadline = time.monotonic() + bound_s
    while not fact():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


class Scene:
    """One host in memory with its agent, and the API server."""

    def __init__(self, folder: Path, server: ApiServer, number: int = 1, **more: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.server = server
        self.host = HostInMemory(MemoryStore(), folder, number)
        self.config = folder / "net-conf.json"
        self.config.write_text(CONFIG)
        access = Access(api_url=server.url, net_config=self.config, node="n1")
        settings = replace(self.host.settings, kube=access, endpoint=Endpoint((server.url,), access.prefix), hostname="h1", **more)
        self.registry = KubeRegistry(access)
        parts = (settings, self.registry, self.host.kernel, Notes(), self.host.fd_store, TIMEOUTS, self.host.claims)
        self.agent = self.host.agent = Agent(*parts, self.registry)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.agent.live())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.registry.close()
            self.host.claims.close()

    @property
    def routes(self) -> list[str]:
        return [text for text in self.host.state() if text.startswith("route")]

    @property
    def lease(self) -> str:
        return self.host.lease if self.host.settings.subnet_file.exists() else ""

    def holds(self, code: str) -> bool:
        return self.agent.health.holds(code)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    made = ApiServer()
    await made.start()
    made.add("n2", "10.244.2.0/24", annotations=PEER)
    yield made
    await made.stop()


@pytest.fixture
def scene(tmp_path: Path, server: ApiServer) -> Scene:
    return Scene(tmp_path, server)


async def test_a_node_is_published_and_its_peers_are_programmed(scene: Scene) -> None:
    scene.server.add("n1", "10.244.0.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready)
        assert scene.lease == "10.244.0.0-24"
        assert scene.server.annotations("n1")[f"{P}public-ip"] == "192.0.2.1"
        await until(lambda: scene.server.conditions("n1").get("NetworkUnavailable") == "False")
        await until(lambda: "10.244.2.0/24" in str(scene.routes))
        scene.server.add("n3", "10.244.3.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.3", f"{P}backend-data": MAC3})
        await until(lambda: "10.244.3.0/24" in str(scene.routes))
        scene.server.remove("n3")
        await until(lambda: "10.244.3.0/24" not in str(scene.routes))
        assert "10.244.2.0/24" in str(scene.routes)


MAC3 = '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:03"}'


async def test_a_pod_cidr_that_comes_late_is_waited_for(scene: Scene) -> None:
    async with scene.running():
        await until(lambda: scene.holds("node-unassigned"))
        assert "there is no node n1" in str([active.text for active in scene.agent.health])
        scene.server.add("n1")
        await until(lambda: "no podCIDR" in str([active.text for active in scene.agent.health]))
        scene.server.change("n1", spec={"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]})
        await until(lambda: scene.agent.ready)
        assert not scene.holds("node-unassigned")


async def test_a_pod_cidr_outside_of_the_network_is_told(scene: Scene) -> None:
    scene.server.add("n1", "10.9.1.0/24")
    async with scene.running():
        await until(lambda: scene.holds("node-unassigned"))
        assert "10.9.1.0/24: it does not fit the network config" in str([active.text for active in scene.agent.health])
        assert scene.server.annotations("n1") == {}


async def test_a_node_that_is_deleted_and_comes_back_is_followed(scene: Scene) -> None:
    scene.server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready)
        scene.server.remove("n1")
        await until(lambda: scene.holds("node-unassigned"))
        assert "10.244.2.0/24" in str(scene.routes)
        scene.server.add("n1", "10.244.7.0/24")
        await until(lambda: scene.server.annotations("n1").get(f"{P}public-ip") == "192.0.2.1")
        await until(lambda: scene.lease == "10.244.7.0-24")


async def test_a_node_that_is_made_anew_is_published_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the watch tells, not by looking now and then: that is so rare here that it would be too late."""
    for pause in ("FIRST_RETRY_S", "LAST_RETRY_S", "LOOK_S", "ANNOUNCE_S"):
        monkeypatch.setattr(node, pause, 1000.0)
    scene.server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready)
        await until(lambda: scene.server.conditions("n1").get("NetworkUnavailable") == "False")
        routes = scene.routes
        for cidr in ("10.244.1.0/24", "10.244.8.0/24"):
            scene.server.remove("n1")
            await until(lambda: scene.holds("node-unassigned"))
            scene.server.add("n1")
            assert scene.server.conditions("n1") == {}
            await until(lambda: "no podCIDR" in str([active.text for active in scene.agent.health]))
            assert scene.server.conditions("n1") == {}, "nothing is said of it while it has no subnet"
            scene.server.change("n1", spec={"podCIDR": cidr, "podCIDRs": [cidr]})
            await until(lambda: scene.server.annotations("n1").get(f"{P}public-ip") == "192.0.2.1")
            await until(lambda: scene.server.conditions("n1").get("NetworkUnavailable") == "False")
            assert scene.lease == cidr.replace("/", "-"), "the subnet file came first"
        assert set(routes) <= set(scene.routes)


async def test_what_a_cloud_says_of_our_network_is_put_right_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "ANNOUNCE_S", 1000.0)
    scene.server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: scene.server.conditions("n1").get("NetworkUnavailable") == "False")
        scene.server.change("n1", status={"conditions": [{"type": "NetworkUnavailable", "status": "True"}]})
        await until(lambda: scene.server.conditions("n1").get("NetworkUnavailable") == "False")


@pytest.mark.parametrize("verb", ["list", "get", "watch", "patch"])
async def test_a_right_that_is_missing_is_told_and_may_come_later(scene: Scene, verb: str) -> None:
    scene.server.add("n1", "10.244.1.0/24")
    scene.server.forbidden.add(verb)
    async with scene.running():
        await until(lambda: scene.holds("registry-auth"))
        (said,) = [active.text for active in scene.agent.health if active.condition.code == "registry-auth"]
        assert said.endswith(f"nodes is forbidden: cannot {verb}; trying again")
        assert scene.agent.ready == (verb == "watch"), "it follows nobody without a watch, and is up all the same"
        scene.server.forbidden.clear()
        await until(lambda: not scene.holds("registry-auth"))
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes))
        await until(lambda: scene.server.conditions("n1").get("NetworkUnavailable") == "False")


async def test_an_overwrite_that_is_no_address_is_told(scene: Scene) -> None:
    scene.server.add("n1", "10.244.1.0/24", annotations={f"{P}public-ip-overwrite": "junk"})
    async with scene.running():
        await until(lambda: scene.holds("registry-refused"))
        assert "public-ip-overwrite 'junk': expected an IPv4 address" in str([active.text for active in scene.agent.health])
        scene.server.change("n1", metadata={"annotations": {f"{P}public-ip-overwrite": "198.51.100.2"}})
        await until(lambda: scene.agent.ready and not scene.holds("registry-refused"))
        assert scene.server.annotations("n1")[f"{P}public-ip"] == "198.51.100.2"


async def test_a_server_that_starts_is_waited_for_without_an_alarm(scene: Scene) -> None:
    scene.server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes))
        routes = scene.routes
        await scene.server.stop()
        await until(lambda: scene.holds("registry-unreachable"))
        scene.server.forbidden |= {"list", "get", "watch", "patch"}
        await scene.server.start()
        asked = len(scene.server.requests)
        await until(lambda: len(scene.server.requests) > asked + 3)
        assert scene.holds("registry-unreachable")
        assert not scene.holds("registry-auth")
        scene.server.forbidden.clear()
        await until(lambda: not scene.holds("registry-unreachable"))
        assert (scene.routes, scene.agent.ready) == (routes, True)


async def test_what_somebody_else_writes_into_our_node_is_put_right(scene: Scene) -> None:
    scene.server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready)
        scene.server.change("n1", metadata={"annotations": {f"{P}public-ip": "198.51.100.1"}})
        await until(lambda: scene.server.annotations("n1")[f"{P}public-ip"] == "192.0.2.1")
        scene.server.change("n1", metadata={"annotations": {f"{P}public-ip-overwrite": "198.51.100.2"}})
        await until(lambda: scene.server.annotations("n1")[f"{P}public-ip"] == "198.51.100.2")


async def test_a_server_that_is_away_changes_nothing(scene: Scene) -> None:
    scene.server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes))
        await scene.server.stop()
        await until(lambda: scene.holds("registry-unreachable"))
        assert "10.244.2.0/24" in str(scene.routes)
        scene.server.add("n3", "10.244.3.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.3", f"{P}backend-data": MAC3})
        await scene.server.start()
        await until(lambda: "10.244.3.0/24" in str(scene.routes))
        await until(lambda: not scene.holds("registry-unreachable"))
        assert "10.244.2.0/24" in str(scene.routes)


def peer(number: int) -> dict[str, str]:
    """What a node of this number publishes."""
    data = f'{{"VNI":1,"VtepMAC":"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"}}'
    return {**PEER, f"{P}public-ip": f"198.18.{number >> 8}.{number & 255}", f"{P}backend-data": data}


async def test_a_join_among_a_thousand_heartbeats_is_work_for_one_node(scene: Scene) -> None:
    """Counted, not timed: what is asked of the server and done in the kernel for it, among nodes that say they are well."""
    scene.config.write_text(CONFIG.replace("10.244.0.0/16", "10.240.0.0/12"))
    scene.server.add("n1", "10.244.0.0/24")
    for number in range(1000):
        scene.server.add(f"m{number}", f"10.{247 + number // 250}.{number % 250}.0/24", annotations=peer(number))
    async with scene.running():
        await until(lambda: scene.agent.ready and len(scene.routes) == 1001)
        await until(lambda: scene.server.conditions("n1").get("NetworkUnavailable") == "False")
        asked, done = len(scene.server.requests), len(scene.host.kernel.applied)
        for number in range(1000):
            scene.server.beat(f"m{number}")
        scene.server.add("late", "10.246.0.0/24", annotations=peer(1000))
        await until(lambda: "10.246.0.0/24" in str(scene.routes))
        assert scene.server.requests[asked:] == []
        steps = [str(step) for step in scene.host.kernel.applied[done:]]
        assert sorted(step.partition(" ")[0] for step in steps) == ["element", "element", "fdb", "neigh", "route"], steps


@pytest.mark.parametrize(
    ("settings", "present", "absent"),
    [
        ("Settings(Endpoint(('x',)), kube=Access(api_url='http://127.0.0.1:1', node='n'))", "lightkube", "grpc etcd3"),
        ("Settings(Endpoint(('http://127.0.0.1:1',)))", "grpc", "lightkube httpx2 msgspec"),
    ],
)
def test_only_the_libraries_of_one_registry_are_loaded(settings: str, present: str, absent: str) -> None:
    program = f"""
import asyncio, sys
from flannelpy.agent.agent import reach
from flannelpy.registry import Endpoint
from flannelpy.registry.kube.access import Access
from flannelpy.settings import Settings
async def main():
    registry, _ = reach({settings})
    assert {present!r} in sys.modules
    print([name for name in {absent.split()!r} if name in sys.modules])
    await registry.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


async def test_hosts_are_called_what_their_nodes_are_and_say_nothing_of_it(scene: Scene) -> None:
    scene.server.add("n1", "10.244.0.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready and scene.agent.status().peers)
        (peer,) = scene.agent.status().peers
        lease = scene.agent.status().lease
        assert lease is not None
        assert (peer.name, lease.name) == ("n2", "n1")
        scene.server.add("n3", "10.244.3.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.3", f"{P}backend-data": MAC3})
        await until(lambda: [event.name for event in scene.agent.events.read().events if event.kind == "peer-joined"] == ["n3"])
        assert not [name for name in scene.server.annotations("n1") if "offer" in name or "hosts" in name]
