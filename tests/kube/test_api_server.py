"""Does the agent do with a real API server what it does with the small one of the lab? Nodes are posted; there are no kubelets.

c1 - h1 ==== vxlan or host-gw ==== h2 - c2, h3 - c3        kube-apiserver and etcd apart, with the ClusterRole of the manifests
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial

import pytest

from flannelpy import __version__
from tests.kube.cluster import PATIENCE_S, ROLE, Cluster, conditions, missing
from tests.kube.posted import PREFIX, Nodes, answered, holds, routed
from tests.kube.traffic import carried
from tests.lab.agent_support import FLANNELD, losing_nothing, until
from tests.lab.wireguard_support import have_wireguard_go

MISSING = missing("kube-apiserver")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

AWAY_S = 60.0
AT_ONCE_S = 5.0
"""What a watch tells is done in a tenth of a second, on a busy machine in some; what is only looked at now and then, in minutes."""
BACKENDS = pytest.mark.parametrize("backend", ["vxlan", "host-gw"])


@BACKENDS
async def test_nodes_come_and_go_with_the_rights_of_the_manifests(api_server: Cluster, backend: str) -> None:
    nodes, (one, two, three) = await Nodes.of(api_server, backend), api_server.lab.hosts
    for host in (one, two):
        await nodes.add(host)
        await api_server.make_unavailable(host.name)
    nodes.launch(one, two)
    await nodes.connect(one, two)
    await nodes.meet(one, two)

    async def available() -> bool:
        return [conditions(await api_server.node(host.name))["NetworkUnavailable"] for host in (one, two)] == ["False"] * 2

    await until(available, PATIENCE_S, "nodes that say their network is there")
    assert (await nodes.of_flannel(one))[f"{PREFIX}backend-type"] == backend

    async with losing_nothing(api_server.lab, "c1", "c2"):
        await nodes.add(three, assigned=False)
        nodes.launch(three)
        await until(lambda: holds(three, "node-unassigned"), PATIENCE_S, "an agent that waits for a podCIDR")
        assert not await routed(one, three)
        await nodes.assign(three)
        await nodes.connect(three)
        await nodes.meet(one, two, three)
        await three.agent.stop()
        await api_server.api.delete("Node", three.name)

        async def gone() -> bool:
            return not await routed(one, three) and not await routed(two, three)

        await until(gone, PATIENCE_S, "no route to a node that was deleted")
    assert api_server.asked() == ROLE, "the role has what is asked for, and nothing more"
    assert api_server.agents_called() == {f"flannelpy/{__version__}"}
    assert (await writers(api_server, one.name)) == {"flannelpy"}


async def writers(cluster: Cluster, node: str) -> set[str]:
    """In whose name flannel's annotations were written."""
    fields = (await cluster.node(node))["metadata"]["managedFields"]
    return {each["manager"] for each in fields if PREFIX in str(each)}


async def test_a_node_that_is_made_anew_is_served_at_once(api_server: Cluster) -> None:
    """A Node made anew has neither annotations nor the condition; its host carries pods all the time."""
    nodes, (one, two, _) = await Nodes.of(api_server, "vxlan"), api_server.lab.hosts
    for host in (one, two):
        await nodes.add(host)
        await api_server.make_unavailable(host.name)
    nodes.launch(one, two)
    await nodes.connect(one, two)
    await nodes.meet(one, two)
    before = await nodes.of_flannel(two)

    async def served() -> bool:
        node = await api_server.node(two.name)
        said = conditions(node).get("NetworkUnavailable") == "False"
        return said and node["metadata"]["annotations"].get(f"{PREFIX}public-ip") == str(two.address)

    await until(served, PATIENCE_S, "a node that says its network is there")
    taken = []
    async with losing_nothing(api_server.lab, "c1", "c2"):
        for make in (partial(nodes.make_anew, two), partial(api_server.make_unavailable, two.name)):
            await make()
            began = time.monotonic()
            await until(served, AT_ONCE_S, "a node that is served again")
            taken.append(time.monotonic() - began)
    print(f"served again {taken[0]:.2f} s after it was made anew, {taken[1]:.2f} s after a cloud said that it has no network")
    assert await nodes.of_flannel(two) == before
    await nodes.meet(one, two)


async def test_nodes_carry_by_wireguard(api_server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, (one, two, _) = await Nodes.of(api_server, "wireguard"), api_server.lab.hosts
    await have_wireguard_go(api_server.lab, monkeypatch)
    for host in (one, two):
        await nodes.add(host)
    nodes.launch(one, two)
    await nodes.connect(one, two)
    await nodes.meet(one, two)
    (c1,), (c2,) = one.containers, two.containers
    await carried(c1, c2, str(c2.address), str(c1.address), "wireguard")


async def test_an_api_server_that_is_away_for_a_minute_costs_no_packet(api_server: Cluster) -> None:
    nodes, (one, two, three) = await Nodes.of(api_server, "vxlan"), api_server.lab.hosts
    for host in (one, two):
        await nodes.add(host)
    nodes.launch(one, two)
    await nodes.connect(one, two)
    await nodes.meet(one, two)
    async with losing_nothing(api_server.lab, "c1", "c2"):
        began = time.monotonic()
        await api_server.stop("kube-apiserver")
        for host in (one, two):
            await until(partial(holds, host, "registry-unreachable"), PATIENCE_S, "agents that say it is away")
        await one.agent.restart(PATIENCE_S)
        await asyncio.sleep(max(0.0, AWAY_S - (time.monotonic() - began)))  # it is away as long as it is to be
        await api_server.serve()
        for host in (one, two):
            await until(partial(answered, host), PATIENCE_S, "agents that say it is back")
        await nodes.add(three)
        nodes.launch(three)
        await nodes.connect(three)
        await nodes.meet(one, two, three)


@pytest.mark.skipif(not os.access(FLANNELD, os.X_OK), reason=f"no flanneld at {FLANNELD}: make flanneld builds it (with Go)")
@BACKENDS
async def test_a_node_goes_over_from_flanneld_and_back_under_a_ping(api_server: Cluster, backend: str) -> None:
    nodes, (one, two, _) = await Nodes.of(api_server, backend), api_server.lab.hosts
    for host in (one, two):
        await nodes.add(host)
    nodes.launch(one)
    nodes.launch_flanneld(two)
    await nodes.connect(one, two)
    await nodes.meet(one, two)
    before = await nodes.of_flannel(two)
    assert before[f"{PREFIX}backend-type"] == backend
    assert before.keys() == (await nodes.of_flannel(one)).keys()
    async with losing_nothing(api_server.lab, "c1", "c2"):
        await two.agent.stop()
        nodes.launch(two)
        await two.agent.ready(PATIENCE_S)
    assert await nodes.of_flannel(two) == before, "to the byte"
    async with losing_nothing(api_server.lab, "c2", "c1"):
        await two.agent.stop()
        nodes.launch_flanneld(two)
        await two.agent.ready(PATIENCE_S)
    assert await nodes.of_flannel(two) == before
    await nodes.meet(one, two)
