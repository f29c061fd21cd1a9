"""Is flannelpy a network for Kubernetes? Its manifests, its image, and nodes that come, go and wait for what they need.

p1 - cni0 - h1 ==== vxlan or host-gw ==== h2 - cni0 - p2, and h3 - p3 later        the control plane apart
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from netns_lab.host import Container
from tests.kube.cluster import PATIENCE_S, ROLE, Cluster, conditions
from tests.kube.node import Node, add, meet, missing
from tests.lab.agent_support import until
from tests.lab.cri_support import IMAGE as POD_IMAGE
from tests.lab.wireguard_support import BUILT, encrypted, frames

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MEGABYTES = 20
AWAY_S = 60.0
RECEIVE = """
import hashlib, socket
taken, digest, count = socket.create_server(("", 7777)).accept()[0], hashlib.sha256(), 0
while block := taken.recv(65536):
    digest.update(block)
    count += len(block)
print(count, digest.hexdigest())
"""
SEND = """
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[2]))
with socket.create_connection((sys.argv[1], 7777), timeout=50) as connection:
    connection.sendall(data)
print(len(data), hashlib.sha256(data).hexdigest())
"""


def in_udp(frame: bytes, port: int) -> bool:
    """True for UDP over IPv4 to this port."""
    return frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == port.to_bytes(2, "big")


def between_pods(frame: bytes) -> bool:
    """True for IPv4 from one pod to another."""
    return frame[12:14] == b"\x08\x00" and frame[26:28] == frame[30:32] == bytes([10, 244])


BY: dict[str, Callable[[bytes], bool]] = {"vxlan": partial(in_udp, port=8472), "host-gw": between_pods, "wireguard": encrypted}
"""What of a backend is seen between the nodes."""


async def carriers(node: Node) -> list[Path]:
    """What the agent needs for wireguard beside its image: nothing, where the kernel has it."""
    if (await node.host.attempt("ip", "link", "add", "wgtrial", "type", "wireguard")).code == 0:
        await node.host.exec("ip", "link", "del", "wgtrial")
        return []
    if not (BUILT / "wireguard-go").exists():
        pytest.skip("no wireguard in this kernel, and no wireguard-go: make test builds it (with Go)")
    return [BUILT / "wireguard-go"]


async def transferred(source: Container, target: Container, address: str) -> None:
    """Send some megabytes from the one to the other, by TCP; what comes is what was sent."""
    log = target.host.directory / f"received-{target.name}.log"
    receiver = target.namespace.spawn("receiver", [sys.executable, "-Ic", RECEIVE], log=log, lasting=False)

    async def listens() -> bool:
        return ":7777" in await target.exec("ss", "-Hltn")

    await until(listens, PATIENCE_S, "a receiver that listens")
    sent = await source.exec(sys.executable, "-Ic", SEND, address, str(MEGABYTES << 20), timeout_s=60)
    assert await receiver.wait(60) == 0, receiver.tail()
    assert receiver.printed() == sent


async def routed(node: Node, subnet: str) -> bool:
    """Whether there is a route to it by another node."""
    return f"{subnet} via" in await node.routes()


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "wireguard"])
async def test_pods_wait_for_the_network_and_then_meet(cluster: Cluster, backend: str) -> None:
    one, two = await add(cluster, 1, 2)
    await until(lambda: cluster.registered("h1", "h2"), PATIENCE_S, "nodes with podCIDRs", one.tail)
    assert await cluster.nodes() == []
    await cluster.make_unavailable("h1")
    await cluster.pod("p1", "h1", POD_IMAGE)

    async def tainted() -> bool:
        taints = (await cluster.node("h1"))["spec"].get("taints", [])
        return "node.kubernetes.io/network-unavailable" in [taint["key"] for taint in taints]

    await until(tainted, PATIENCE_S, "a node that pods are kept off")
    assert (await cluster.api.get("Pod", "p1"))["status"]["phase"] == "Pending"

    await cluster.install({"Type": backend}, programs=await carriers(one) if backend == "wireguard" else ())
    await cluster.until_agents("h1", "h2")
    await cluster.until_ready("h1", "h2")
    addresses = await meet(cluster, one, two)
    assert not await tainted()
    for name in ("h1", "h2"):
        node = await cluster.node(name)
        assert conditions(node)["NetworkUnavailable"] == "False"
        assert node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"] == backend
    p1, p2 = one.host.containers[0], two.host.containers[0]
    async with frames(one.host) as seen:
        for source, target in ((p1, p2), (p2, p1)):
            await transferred(source, target, addresses[target.name])
    assert any(map(BY[backend], seen)), f"nothing went by {backend}"
    if backend == "wireguard":
        assert not any(map(BY["host-gw"], seen)), "what pods send is encrypted"
    assert cluster.asked() == ROLE, "the role has what is asked for, and nothing more"


async def test_a_node_is_added_and_another_deleted(cluster: Cluster) -> None:
    one, two = await add(cluster, 1, 2)
    await cluster.install()
    await cluster.until_ready("h1", "h2")
    addresses = await meet(cluster, one, two)
    async with cluster.lab.pinging("p1", addresses["p2"], per_second=20) as pings:
        (three,) = await add(cluster, 3)
        await cluster.until_ready("h3")
        await cluster.until_agents("h1", "h2", "h3")
        await meet(cluster, one, two, three)
        subnet = (await cluster.node("h3"))["spec"]["podCIDR"]
        assert await routed(one, subnet)
        await three.kill()
        await cluster.api.delete("Node", "h3")

        async def gone() -> bool:
            return not await routed(one, subnet) and not await routed(two, subnet)

        await until(gone, PATIENCE_S, "no route to a node that was deleted", one.tail)
    assert pings.lost == 0, pings.gaps
    assert pings.sent > 50
    assert await cluster.nodes() == ["h1", "h2"]


async def test_a_pod_cidr_may_come_late(cluster: Cluster) -> None:
    await cluster.stop("kube-controller-manager")
    cluster.control(allocate=False)
    one, two = await add(cluster, 1, 2)
    await cluster.install()

    async def waits() -> bool:
        said = await cluster.agents_said()
        return len(said) == 2 and all("has no podCIDR" in text for text in said.values())

    await until(waits, PATIENCE_S, "agents that wait for a podCIDR", one.tail)
    assert await cluster.agents() == {}, "they are not ready"
    assert not (one.root / "run/flannel/subnet.env").exists()
    await cluster.stop("kube-controller-manager")
    cluster.control()
    await cluster.until_agents("h1", "h2")
    await meet(cluster, one, two)


async def test_what_is_stopped_and_started_again_costs_no_packet(cluster: Cluster) -> None:
    one, two = await add(cluster, 1, 2)
    await cluster.install()
    await cluster.until_agents("h1", "h2")
    addresses = await meet(cluster, one, two)
    async with cluster.lab.pinging("p1", addresses["p2"], per_second=20) as pings:
        before = await cluster.agents()
        await cluster.api.delete("Pod", before["h1"], "kube-flannel")
        await cluster.until_agents("h1", "h2", other_than=[before["h1"]])

        await one.stop_kubelet()
        stopped = await cluster.heartbeat("h1")
        one.start_kubelet()
        await until(lambda: cluster.beats_after("h1", stopped), PATIENCE_S, "a kubelet that is back", one.tail)

        await cluster.stop("kube-apiserver")
        await asyncio.sleep(AWAY_S)  # as long as it is to be away
        await cluster.serve()
        await cluster.until_ready("h1", "h2")
        await cluster.until_agents("h1", "h2")
    assert pings.lost == 0, (pings.gaps, pings.longest_ms)
    assert pings.sent > 20 * AWAY_S / 2
    (three,) = await add(cluster, 3)
    await cluster.until_ready("h3")
    await meet(cluster, one, two, three)
