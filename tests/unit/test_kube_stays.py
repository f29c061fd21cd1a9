"""Kubernetes' config or the API server's name is no use for a while: does the node stay as it is?"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from flannelpy.agent import node
from flannelpy.agent.context import Context
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.registry import KubeRegistry
from netns_lab.api_server import ApiServer
from tests.unit.test_kube_agent import MAC3, PEER, P, Scene, scene, server, until  # noqa: F401 - fixtures


async def test_of_a_name_that_nobody_resolves_now_the_addresses_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = KubeRegistry(Access(api_url="https://api.example:6443", net_config=tmp_path / "n", node="n1"))
    answers: list[Any] = [[(0, 0, 0, "", ("10.244.9.9", 0))]]

    async def getaddrinfo(host: str, port: object, **_: object) -> Any:
        if not answers:
            raise socket.gaierror("Temporary failure in name resolution")
        return answers.pop()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    first = await registry.addresses()
    assert first == {IPAddress("10.244.9.9")}
    assert await registry.addresses() == first
    await registry.close()


async def test_a_network_that_no_podcidr_is_in_cuts_nobody_off(scene: Scene) -> None:  # noqa: F811
    """An operator writes another Network into the ConfigMap: podCIDRs stay what they are."""
    scene.server.add("n1", "10.244.0.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes), 10.0)
        scene.config.write_text('{"Network": "10.24.0.0/16", "Backend": {"Type": "vxlan"}}')
        await until(lambda: scene.holds("node-unassigned"), 10.0)
        await asyncio.sleep(0.5)
        assert "10.244.2.0/24" in str(scene.routes)


DUAL = '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}'
V6 = {f"{P}public-ipv6": "2001:db8::2", f"{P}backend-v6-data": '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:62"}'}


class Route:
    """Whether a route was ever missing, looked at all the time."""

    def __init__(self, scene: Scene, subnet: str) -> None:  # noqa: F811
        self.missing = False
        self._scene, self._subnet = scene, subnet
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            self.missing |= self._subnet not in str(self._scene.routes)
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.mark.parametrize("cidrs", [("10.244.2.0/24",), ("10.244.2.0/24", "fd00:244:0:2::/64")])
async def test_a_second_family_takes_nobody_the_first(scene: Scene, server: ApiServer, cidrs: tuple[str, ...]) -> None:  # noqa: F811
    """Hosts hear of it one by one, and a node that was made before may never have a podCIDR of it."""
    addresses = InterfaceAddress(IPAddress("192.0.2.1"), 24), InterfaceAddress(IPAddress("2001:db8::1"), 64)
    scene.host.kernel.set_interface(Interface("eth1", 2, 1500, True, addresses))
    server.add("n1", "10.244.1.0/24", "fd00:244:0:1::/64")
    server.change("n2", spec={"podCIDRs": list(cidrs)})
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes))
        route = Route(scene, "10.244.2.0/24")
        scene.config.write_text(DUAL)
        await until(lambda: server.annotations("n1").get(f"{P}public-ipv6") == "2001:db8::1")
        await asyncio.sleep(0.5)
        server.change("n2", metadata={"annotations": V6})
        if len(cidrs) > 1:
            await until(lambda: "fd00:244:0:2::/64" in str(scene.routes))
        await asyncio.sleep(0.5)
        await route.stop()
        assert not route.missing


@pytest.mark.parametrize("families", ["IPv4", "IPv6"])
async def test_what_is_not_published_yet_was_edited_by_nobody(
    scene: Scene,  # noqa: F811
    server: ApiServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    families: str,
) -> None:
    """All hosts of a large cluster hear of the second family at once, and write their nodes one by one. Until then a node says what
    it should.
    """
    monkeypatch.setattr(Context, "spread", lambda _self, peers: 2.0 if peers else 0.0)
    addresses = InterfaceAddress(IPAddress("192.0.2.1"), 24), InterfaceAddress(IPAddress("2001:db8::1"), 64)
    scene.host.kernel.set_interface(Interface("eth1", 2, 1500, True, addresses))
    server.add("n1", "10.244.1.0/24", "fd00:244:0:1::/64")
    if families == "IPv6":
        scene.config.write_text(DUAL.replace('"Network": "10.244.0.0/16"', '"EnableIPv4": false'))
    async with scene.running():
        await until(lambda: server.conditions("n1").get("NetworkUnavailable") == "False")
        said, patched = server.annotations("n1"), server.requests.count("PATCH /api/v1/nodes/n1/status")
        scene.config.write_text(DUAL)
        await until(lambda: server.annotations("n1") != said)
        keeper = scene.agent._network.steering.keeper
        assert {f"{P}public-ip", f"{P}public-ipv6"} <= server.annotations("n1").keys()
        assert server.requests.count("PATCH /api/v1/nodes/n1/status") == patched + 1
        assert isinstance(keeper, node.NodeKeeper)
        assert keeper._edits.count == 0


async def test_a_second_family_that_this_host_cannot_have_takes_it_nobody(scene: Scene, server: ApiServer) -> None:  # noqa: F811
    server.add("n1", "10.244.1.0/24", "fd00:244:0:1::/64")
    server.change("n2", spec={"podCIDRs": ["10.244.2.0/24", "fd00:244:0:2::/64"]})
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes))
        route = Route(scene, "10.244.2.0/24")
        scene.config.write_text(DUAL)
        await until(lambda: scene.holds("config-changed"))
        server.change("n2", metadata={"annotations": V6})
        server.change("n1", metadata={"annotations": {f"{P}public-ip": "198.51.100.1"}})
        await until(lambda: server.annotations("n1")[f"{P}public-ip"] == "192.0.2.1")
        await asyncio.sleep(0.5)
        await route.stop()
        assert not route.missing
        assert not scene.holds("node-unassigned")


async def test_nothing_is_said_of_a_node_that_is_made_anew_at_once(scene: Scene, server: ApiServer) -> None:  # noqa: F811
    """It has no podCIDR yet: with the condition it would be given pods."""
    server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: server.conditions("n1").get("NetworkUnavailable") == "False")
        for _ in range(3):
            server.remove("n1")
            server.add("n1")
            await until(lambda: scene.holds("node-unassigned"))
            await asyncio.sleep(0.3)
            assert server.conditions("n1") == {}
            server.change("n1", spec={"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]})
            await until(lambda: server.conditions("n1").get("NetworkUnavailable") == "False")


@pytest.mark.parametrize("heartbeats", [0, 100])
async def test_a_server_that_was_restored_has_lost_data_whatever_the_heartbeats(
    scene: Scene,  # noqa: F811
    server: ApiServer,  # noqa: F811
    heartbeats: int,
) -> None:
    """By them its version is far ahead of the last change of a lease. A node that is missing then is not one that was deleted."""
    server.add("n1", "10.244.1.0/24")
    server.add("n3", "10.244.3.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.3", f"{P}backend-data": MAC3})
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.3.0/24" in str(scene.routes))
        await until(lambda: server.conditions("n1").get("NetworkUnavailable") == "False")
        for _ in range(heartbeats):
            server.beat("n2")
        await until(lambda: scene.registry._book.version == server.version)
        await server.stop()
        del server.nodes["n3"], server._texts["n3"]
        server.version -= max(1, heartbeats // 2)
        server.compact()
        await server.start()
        await until(lambda: scene.holds("registry-reset"))
        assert "10.244.3.0/24" in str(scene.routes)


async def test_two_hosts_that_take_one_node_for_theirs_are_told_and_do_not_race(
    tmp_path: Path,
    scene: Scene,  # noqa: F811
    server: ApiServer,  # noqa: F811
) -> None:
    """NODE_NAME was copied: each puts its address back where the other has written its own."""
    server.add("n1", "10.244.1.0/24")
    other = Scene(tmp_path / "other", server, number=7)
    async with scene.running(), other.running():
        await until(lambda: scene.agent.ready and other.agent.ready)
        await until(lambda: scene.holds("subnet-conflict") and other.holds("subnet-conflict"), 90.0)
        said = str([active.text for active in scene.agent.health])
        assert "node n1 is written over and over; it says 192.0.2.7, we say 192.0.2.1" in said
        patched = server.requests.count("PATCH /api/v1/nodes/n1/status")
        await asyncio.sleep(3.0)
        assert server.requests.count("PATCH /api/v1/nodes/n1/status") - patched < 10


@pytest.mark.parametrize("edit", [{f"{P}public-ip": "198.51.100.1"}, {f"{P}kube-subnet-manager": None}])
async def test_an_edit_is_put_right_at_once_and_the_next_ones_later_and_later(
    scene: Scene,  # noqa: F811
    server: ApiServer,  # noqa: F811
    edit: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node, "EDIT_S", 3.0)  # much longer than a machine that is busy takes for what is done at once
    server.add("n1", "10.244.1.0/24")
    loop = asyncio.get_running_loop()

    async def put_right() -> float:
        server.change("n1", metadata={"annotations": edit})
        began, name = loop.time(), next(iter(edit))
        ours = {f"{P}public-ip": "192.0.2.1", f"{P}kube-subnet-manager": "true"}[name]
        await until(lambda: server.annotations("n1").get(name) == ours)
        return loop.time() - began

    async with scene.running():
        await until(lambda: server.conditions("n1").get("NetworkUnavailable") == "False")
        assert await put_right() < node.EDIT_S
        assert not scene.holds("subnet-conflict")
        assert await put_right() >= node.EDIT_S
        assert await put_right() >= 2 * node.EDIT_S
        assert scene.holds("subnet-conflict")
        server.change("n1", metadata={"annotations": edit})
        await until(lambda: scene.registry._book.version == server.version)
        server.change("n1", metadata={"annotations": {f"{P}public-ip-overwrite": "198.51.100.9"}})
        began = loop.time()
        await until(lambda: server.annotations("n1").get(f"{P}public-ip") == "198.51.100.9")
        assert loop.time() - began < 4 * node.EDIT_S, "what we want to say anew waits for nobody"
        monkeypatch.setattr(node, "QUIET_S", 0.5)
        scene.agent._network.steering.keeper._changed.set()  # type: ignore[union-attr]
        await until(lambda: not scene.holds("subnet-conflict"))


@pytest.mark.parametrize("prefer", ["none", "config"])
async def test_what_a_life_before_has_offered_is_taken_away(scene: Scene, server: ApiServer, prefer: str) -> None:  # noqa: F811
    """The agent was started anew with --prefer none, or the network prefers nothing by now: peers would go on sending by it."""
    offer = f"{P}flannelpy-offer"
    server.add("n1", "10.244.1.0/24", annotations={offer: '{"PublicIP":"192.0.2.1","Carriers":{"host-gw":{}}}'})
    if prefer == "none":
        scene = Scene(scene.config.parent, server, prefer="none")
        scene.config.write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Prefer": ["host-gw"]}}')
    async with scene.running():
        await until(lambda: scene.agent.ready)
        await until(lambda: offer not in server.annotations("n1"), 10.0)


async def test_a_node_with_our_address_is_told_as_long_as_it_has_it(scene: Scene, server: ApiServer) -> None:  # noqa: F811
    """An overwrite was copied with the rest of a node. One that has had our address before we began may be a leftover of ours."""
    server.add("n1", "10.244.1.0/24")
    server.add("old", "10.244.9.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.1", f"{P}backend-data": MAC3})
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes))
        server.change("n2", metadata={"annotations": {f"{P}public-ip": "192.0.2.1"}})
        await until(lambda: scene.holds("duplicate-public-ip"))
        (said,) = [active.text for active in scene.agent.health if active.condition.code == "duplicate-public-ip"]
        assert "node n2, 10.244.2.0/24 at 192.0.2.1" in said
        server.cut()  # and all is listed anew
        listed = server.requests.count("GET /api/v1/nodes")
        await until(lambda: server.requests.count("GET /api/v1/nodes") > listed)
        await asyncio.sleep(0.3)
        assert len([active for active in scene.agent.health if active.condition.code == "duplicate-public-ip"]) == 1
        server.change("n2", metadata={"annotations": {f"{P}public-ip": "192.0.2.2"}})
        await until(lambda: not scene.holds("duplicate-public-ip"))
        server.change("n2", metadata={"annotations": {f"{P}public-ip": "192.0.2.1"}})
        await until(lambda: scene.holds("duplicate-public-ip"))
        server.remove("n2")
        await until(lambda: not scene.holds("duplicate-public-ip"))
        server.add("n2", "10.244.2.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.1"})
        await until(lambda: scene.holds("duplicate-public-ip"))
        server.change("n1", metadata={"annotations": {f"{P}public-ip-overwrite": "198.51.100.1"}})
        await until(lambda: not scene.holds("duplicate-public-ip"))


async def test_an_older_node_with_our_podcidr_is_told_as_long_as_it_has_it(scene: Scene, server: ApiServer) -> None:  # noqa: F811
    server.add("n1", "10.244.1.0/24")
    older, younger = "2025-01-01T00:00:00Z", "2026-06-01T00:00:00Z"
    async with scene.running():
        await until(lambda: server.conditions("n1").get("NetworkUnavailable") == "False")
        server.add("n4", "10.244.1.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.4"}, created=younger)
        server.add("n5", "10.244.5.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.5", f"{P}backend-data": MAC3})
        await until(lambda: "10.244.5.0/24" in str(scene.routes))
        assert not scene.holds("subnet-conflict")
        server.add("n3", "10.244.1.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.3"}, created=older)
        await until(lambda: scene.holds("subnet-conflict"))
        assert "node n3 at 192.0.2.3 has our podCIDR, too, and is older" in str([active.text for active in scene.agent.health])
        server.remove("n3")
        await until(lambda: not scene.holds("subnet-conflict"))


@pytest.mark.parametrize(("created", "told"), [("2025-01-01T00:00:00Z", True), ("2026-06-01T00:00:00Z", False)])
async def test_an_older_node_with_our_podcidr_is_told_at_the_start_too(
    scene: Scene,  # noqa: F811
    server: ApiServer,  # noqa: F811
    created: str,
    told: bool,
) -> None:
    """It was there before we began: no change of it is heard."""
    server.add("n3", "10.244.1.0/24", annotations={**PEER, f"{P}public-ip": "192.0.2.3"}, created=created)
    server.add("n1", "10.244.1.0/24")
    async with scene.running():
        await until(lambda: server.conditions("n1").get("NetworkUnavailable") == "False")
        await until(lambda: scene.agent.ready)
        assert scene.holds("subnet-conflict") == told
        server.remove("n3")
        await until(lambda: not scene.holds("subnet-conflict"))
