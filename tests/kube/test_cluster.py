"""Is flannelpy a network for Kubernetes? Its manifests, its image, and nodes that come, go and wait for what they need.

p1 - cni0 - h1 ==== vxlan or host-gw ==== h2 - cni0 - p2, and h3 - p3 later        the control plane apart
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kube.cluster import PATIENCE_S, ROLE, Cluster, conditions
from tests.kube.node import Node, add, meet, missing
from tests.kube.traffic import carried
from tests.lab.agent_support import until
from tests.lab.cri_support import IMAGE as POD_IMAGE
from tests.lab.wireguard_support import BUILT

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

AWAY_S = 60.0


async def carriers(node: Node) -> list[Path]:
    """What the agent needs for wireguard beside its image: nothing, where the kernel has it."""
    if (await node.host.attempt("ip", "link", "add", "wgtrial", "type", "wireguard")).code == 0:
        await node.host.exec("ip", "link", "del", "wgtrial")
        return []
    if not (BUILT / "wireguard-go").exists():
        pytest.skip("no wireguard in this kernel, and no wireguard-go: make test builds it (with Go)")
    return [BUILT / "wireguard-go"]


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
    await carried(p1, p2, addresses["p2"], addresses["p1"], backend)
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

        await until(lambda: cluster.beats_after("h1", ""), PATIENCE_S, "a kubelet that is heard", one.tail)
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
