"""How are hosts of the lab nodes without kubelets? Posted, with agents as processes that have the rights of the manifests."""

from __future__ import annotations

import json
from pathlib import Path

from netns_lab.host import Host
from tests.kube.api import MERGE, path_of
from tests.kube.cluster import CLUSTER_CIDR, PATIENCE_S, Cluster
from tests.lab.agent_support import FLANNELD, until

PREFIX = "flannel.alpha.coreos.com/"


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

    async def make_anew(self, host: Host) -> None:
        """Delete its node, and post it again."""
        await self.cluster.api.delete("Node", host.name)
        await self.add(host)

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


async def answered(host: Host) -> bool:
    """Whether its agent says that the API server answers."""
    return bool((await host.status()).get("etcd", {}).get("reachable"))
