"""Do hosts carry an overlay whose leases are Kubernetes' nodes? A small API server stands where etcd does else.

c1 10.1.1.2 - h1 ==== vxlan 1 or host-gw ==== h2 - c2 10.1.2.2, h3 - c3 10.1.3.2        the API server apart
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import until
from tests.lab.kube_support import PATIENCE_S, PREFIX, Cluster, no_tracebacks, until_all_reach


@pytest.fixture
async def cluster(lab: Lab) -> AsyncIterator[Cluster]:
    made = Cluster(lab)
    await made.serve()
    for host in lab.hosts:
        await made.add(host)
        made.launch(host)
    for host in lab.hosts:
        await host.agent.ready(PATIENCE_S)
    await lab.connect_containers()
    yield made
    no_tracebacks(lab)


@pytest.mark.parametrize(
    "backend", [pytest.param(each, marks=pytest.mark.topology(hosts=3, backend=each)) for each in ("vxlan", "host-gw")]
)
async def test_nodes_reach_each_other_and_follow_each_other(cluster: Cluster, backend: str) -> None:
    lab, (one, two, three) = cluster.lab, cluster.lab.hosts
    await until_all_reach(lab)
    published = await cluster.annotations(one)
    assert (published[f"{PREFIX}public-ip"], published[f"{PREFIX}backend-type"]) == (str(one.address), backend)
    assert one.subnet_env()["FLANNEL_SUBNET"] == "10.1.1.1/24"

    async def available() -> bool:
        conditions = (await cluster.call("GET", "/h1"))["status"].get("conditions", [])
        return [(each["type"], each["status"]) for each in conditions] == [("NetworkUnavailable", "False")]

    await until(available, PATIENCE_S, "a node that says its network is there")

    await three.agent.stop()
    await cluster.call("DELETE", "/h3")

    async def gone() -> bool:
        return not await cluster.routed(one, three) and not await cluster.routed(two, three)

    await until(gone, PATIENCE_S, "no route to a node that was deleted")
    assert await cluster.routed(one, two)

    await cluster.add(three, assigned=False)
    cluster.launch(three)
    await cluster.call("PATCH", "/h3", {"spec": {"podCIDR": "10.1.3.0/24", "podCIDRs": ["10.1.3.0/24"]}})
    await three.agent.ready(PATIENCE_S)
    await until_all_reach(lab)


@pytest.mark.topology(hosts=2)
async def test_an_api_server_that_is_away_costs_no_packet(cluster: Cluster) -> None:
    lab, (one, two) = cluster.lab, cluster.lab.hosts
    await until_all_reach(lab)

    async def told(away: bool) -> bool:
        said = [(await host.status())["etcd"]["reachable"] for host in (one, two)]
        return said == [not away] * 2

    async with lab.pinging("c1", "c2", per_second=50, first_answer_within_s=30) as pings:
        await cluster.stop()
        await until(lambda: told(True), PATIENCE_S, "agents that say it is away")
        await one.agent.restart(PATIENCE_S)
        await cluster.serve()
        await until(lambda: told(False), PATIENCE_S, "agents that say it is back")
    assert pings.lost == 0
    assert pings.sent > 50
