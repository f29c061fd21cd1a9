"""Do nodes with real flanneld and nodes with flannelpy share a cluster of Kubernetes, both ways, and does one become the other?

c1 - h1 flannelpy ==== vxlan or host-gw ==== h2 flanneld --kube-subnet-mgr - c2        the API server apart

The flanneld is the one of $FLANNELD, or the one that ``make flanneld`` has built.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import FLANNELD, losing_nothing, until
from tests.lab.kube_support import PATIENCE_S, PREFIX, Cluster, no_tracebacks, until_all_reach

BACKENDS = [pytest.param(each, marks=pytest.mark.topology(hosts=2, backend=each)) for each in ("vxlan", "host-gw")]

pytestmark = pytest.mark.skipif(not os.access(FLANNELD, os.X_OK), reason=f"no flanneld at {FLANNELD}: make flanneld builds it")


@pytest.fixture
async def cluster(lab: Lab) -> AsyncIterator[Cluster]:
    """The second host runs flanneld."""
    made = Cluster(lab)
    await made.serve()
    one, two = lab.hosts
    for host in lab.hosts:
        await made.add(host)
    made.launch(one)
    made.flanneld(two, Path(FLANNELD))
    for host in lab.hosts:
        await host.agent.ready(PATIENCE_S)
    await lab.connect_containers()
    await until_all_reach(lab)
    yield made
    no_tracebacks(lab)


async def of_flannel(cluster: Cluster, host: Host) -> dict[str, str]:
    """flannel's annotations of its node; not ours beside them."""
    found = await cluster.annotations(host)
    return {name: value for name, value in found.items() if name.startswith(PREFIX) and not name.endswith("/flannelpy-offer")}


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_node_goes_over_from_flanneld_and_back_under_a_ping(cluster: Cluster, backend: str) -> None:
    lab, (one, two) = cluster.lab, cluster.lab.hosts
    before = await of_flannel(cluster, two)
    assert before[f"{PREFIX}backend-type"] == backend
    assert before.keys() == (await of_flannel(cluster, one)).keys()
    async with losing_nothing(lab, "c1", "c2"):
        await two.agent.stop()
        cluster.launch(two)
        await two.agent.ready(PATIENCE_S)
        await until(lambda: in_charge(two), PATIENCE_S, "flannelpy that is well in flanneld's place")
    assert await of_flannel(cluster, two) == before, "to the byte"
    await until_all_reach(lab)
    async with losing_nothing(lab, "c2", "c1"):
        await two.agent.stop()
        cluster.flanneld(two, Path(FLANNELD))
        await two.agent.ready(PATIENCE_S)
    assert await of_flannel(cluster, two) == before
    await until_all_reach(lab)


async def in_charge(host: Host) -> bool:
    """Whether its agent is one of ours, and nothing is wrong."""
    status = await host.status()
    return bool(status) and status["ready"] and not status["conditions"]
