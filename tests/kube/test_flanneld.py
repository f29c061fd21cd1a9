"""Does a node with real flanneld go over to flannelpy as people do it: by a label, node after node?

p1 - cni0 - h1 flannelpy ==== vxlan or host-gw ==== h2 flanneld --kube-subnet-mgr - cni0 - p2        the control plane apart

The flanneld is the one of $FLANNELD, or the one that ``make flanneld`` has built. It runs as a process; of it there is no image.
"""

from __future__ import annotations

import json
import os
import sys

import pytest

from netns_lab.namespaces import Process
from tests.kube.cluster import CLUSTER_CIDR, PATIENCE_S, Cluster
from tests.kube.node import Node, add, end, meet, missing
from tests.lab.agent_support import FLANNELD, until

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not os.access(FLANNELD, os.X_OK), reason=f"no flanneld at {FLANNELD}: make flanneld builds it (with Go)"),
]

PREFIX = "flannel.alpha.coreos.com/"
LABEL = "network=flannelpy"


async def start_flanneld(cluster: Cluster, node: Node, backend: str) -> Process:
    """With the rights that our agents have, and the CNI plugin beside it."""
    kubeconfig = await cluster.rights(node.host.directory)
    config = node.host.directory / "net-conf.json"
    config.write_text(json.dumps({"Network": CLUSTER_CIDR, "Backend": {"Type": backend}}))
    install = node.spawn("cni install", [sys.executable, "-m", "flannelpy", "cni", "install", "--force"])
    assert await install.wait(60) == 0, install.tail()
    options = ["--kube-subnet-mgr", f"--kubeconfig-file={kubeconfig}", f"--net-config-path={config}", "--ip-masq"]
    return node.spawn("flanneld", [str(FLANNELD), *options], env={"NODE_NAME": node.name})


async def of_flannel(cluster: Cluster, name: str) -> dict[str, str]:
    """flannel's, of a node; not ours beside them."""
    found = (await cluster.node(name))["metadata"]["annotations"]
    return {key: value for key, value in found.items() if key.startswith(PREFIX) and not key.endswith("/flannelpy-offer")}


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
async def test_a_node_goes_over_under_a_ping(cluster: Cluster, backend: str) -> None:
    one, two = await add(cluster, 1, 2)
    await cluster.install({"Type": backend}, only=LABEL)
    await until(lambda: cluster.registered("h1", "h2"), PATIENCE_S, "nodes with podCIDRs", one.tail)
    await cluster.api.label("h1", LABEL)
    flanneld = await start_flanneld(cluster, two, backend)
    await cluster.until_agents("h1")
    await cluster.until_ready("h1", "h2")
    addresses = await meet(cluster, one, two)
    before = await of_flannel(cluster, "h2")
    assert before[f"{PREFIX}backend-type"] == backend
    assert before.keys() == (await of_flannel(cluster, "h1")).keys()
    async with cluster.lab.pinging("p1", addresses["p2"], per_second=50) as pings:
        await end(flanneld)
        await cluster.api.label("h2", LABEL)
        await cluster.until_agents("h1", "h2")
        sent = pings.answers()
        await until(lambda: pings.answers() > sent + 50, PATIENCE_S, "pings answered afterwards")
    assert pings.lost == 0, (pings.gaps, pings.longest_ms)
    assert await of_flannel(cluster, "h2") == before, "to the byte"
