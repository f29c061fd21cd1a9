"""Does the agent do with a real API server what it does with the small one of the lab? Nodes are posted; there are no kubelets.

c1 - h1 ==== vxlan or host-gw ==== h2 - c2, h3 - c3        kube-apiserver and etcd apart, with the ClusterRole of the manifests
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from functools import partial
from pathlib import Path

import pytest

from netns_lab.host import Host
from tests.kube.api import MERGE, path_of
from tests.kube.cluster import CLUSTER_CIDR, PATIENCE_S, ROLE, Cluster, conditions, missing
from tests.lab.agent_support import FLANNELD, losing_nothing, until

MISSING = missing("kube-apiserver")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PREFIX = "flannel.alpha.coreos.com/"
AWAY_S = 60.0
BACKENDS = pytest.mark.parametrize("backend", ["vxlan", "host-gw"])


class Nodes:
    """Hosts of the lab as nodes that are posted, with agents that have the rights of the manifests."""

    def __init__(self, cluster: Cluster, kubeconfig: Path) -> None:
        self.cluster = cluster
        self.config = cluster.lab.directory / "net-conf.json"
        self._kubeconfig = kubeconfig

    @classmethod
    async def of(cls, cluster: Cluster, backend: str) -> Nodes:
        """None yet; the manifests are there."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-flannel"}}
        await cluster.api.apply(namespace)
        await cluster.install()
        made = cls(cluster, await cluster.rights())
        made.config.write_text(json.dumps({"Network": CLUSTER_CIDR, "Backend": {"Type": backend}}))
        return made

    async def add(self, host: Host, *, assigned: bool = True) -> None:
        """What kubelet and controller-manager make of a host."""
        meta = {"name": host.name, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}}
        spec = _assigned(host) if assigned else {}
        await self.cluster.api.call("POST", path_of("Node"), {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": spec})

    async def assign(self, host: Host) -> None:
        """The controller-manager gives it its podCIDR."""
        await self.cluster.api.call("PATCH", path_of("Node", host.name), {"spec": _assigned(host)}, kind=MERGE)

    @property
    def options(self) -> tuple[str, ...]:
        """flannel's, and ours."""
        return ("--kube-subnet-mgr", f"--kubeconfig-file={self._kubeconfig}", f"--net-config-path={self.config}")

    def launch(self, *hosts: Host) -> None:
        """Start agents."""
        for host in hosts:
            host.launch_agent(*self.options, env={"NODE_NAME": host.name})

    def launch_flanneld(self, host: Host) -> None:
        """Start real flanneld, with the same rights."""
        words = [str(FLANNELD), *self.options, "--iface=eth1", f"--subnet-file={host.subnet_file}"]
        host.launch_agent(program=words, env={"NODE_NAME": host.name})

    async def connect(self, *hosts: Host) -> None:
        """Wait until these are ready, and give their containers addresses, which cuts them off for a moment."""
        for host in hosts:
            await host.agent.ready(PATIENCE_S)
            await host.connect_containers()

    async def meet(self, *hosts: Host) -> None:
        """Wait until their containers reach each other."""
        names = [container.name for host in hosts for container in host.containers]
        lab = self.cluster.lab

        async def all_reach() -> bool:
            return all([(await lab.ping(one, other)).ok for one in names for other in names if one != other])

        await until(all_reach, PATIENCE_S, f"{', '.join(names)} reach each other")

    async def of_flannel(self, host: Host) -> dict[str, str]:
        """flannel's annotations of its node; not ours beside them."""
        found = (await self.cluster.node(host.name))["metadata"]["annotations"]
        return {key: value for key, value in found.items() if key.startswith(PREFIX) and not key.endswith("/flannelpy-offer")}


def _assigned(host: Host) -> dict[str, object]:
    subnet = f"10.244.{host.plan.number}.0/24"
    return {"podCIDR": subnet, "podCIDRs": [subnet]}


async def routed(host: Host, other: Host) -> bool:
    """Whether there is a route to the other's podCIDR by another host."""
    return f"10.244.{other.plan.number}.0/24 via" in await host.exec("ip", "route", "show")


async def holds(host: Host, code: str) -> bool:
    """Whether its agent has this condition."""
    return code in [each["code"] for each in (await host.status()).get("conditions", ())]


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


async def answered(host: Host) -> bool:
    """Whether its agent says that the API server answers."""
    return bool((await host.status()).get("etcd", {}).get("reachable"))


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
