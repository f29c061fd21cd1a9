"""Do hosts carry an overlay whose leases are Kubernetes' nodes? A small API server stands where etcd does else.

c1 10.1.1.2 - h1 ==== vxlan 1 ==== h2 - c2 10.1.2.2, h3 - c3 10.1.3.2        the API server apart
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import netns_lab
from netns_lab.host import Host
from netns_lab.lab import Lab
from netns_lab.namespaces import Process
from tests.lab.agent_support import until

PORT = 6443
PATIENCE_S = 60.0
PREFIX = "flannel.alpha.coreos.com/"
CALL = (
    "import sys, urllib.request as u; m, url, body = sys.argv[1:];"
    "r = u.Request(url, body.encode() or None, {'Content-Type': 'application/strategic-merge-patch+json'}, method=m);"
    "print(u.urlopen(r, timeout=20).read().decode())"
)


class Cluster:
    """The lab's hosts as nodes, and their API server."""

    def __init__(self, lab: Lab) -> None:
        assert lab.topology.etcd_plan is not None
        self.lab = lab
        self.address = str(lab.topology.etcd_plan.address.ip)
        self.url = f"http://{self.address}:{PORT}"
        self.config = lab.directory / "net-conf.json"
        self.config.write_text(json.dumps(lab.topology.network_config))
        self._place = lab._namespace(lab.topology.etcd_plan.name)
        self._server: Process | None = None

    async def serve(self) -> None:
        """Start the API server, with what it held before."""
        words = [sys.executable, "-m", "netns_lab.api_server", "--address", self.address, "--port", str(PORT)]
        words += ["--state", str(self.lab.directory / "nodes.json")]
        env = {"PYTHONPATH": os.fspath(Path(netns_lab.__file__).parents[1])}
        self._server = self._place.spawn("api server", words, log=self.lab.directory / "api.out", env=env, lasting=False)

        async def answers() -> bool:
            return (await self._attempt("GET", "")).code == 0

        await until(answers, PATIENCE_S, "an API server that answers")

    async def stop(self) -> None:
        """Kill it."""
        assert self._server is not None
        await self._server.kill()

    async def call(self, method: str, path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What an administrator does with kubectl."""
        outcome = await self._attempt(method, path, body)
        assert outcome.code == 0, outcome.stderr
        answer: dict[str, Any] = json.loads(outcome.stdout)
        return answer

    async def _attempt(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        text = "" if body is None else json.dumps(body)
        return await self._place.attempt(sys.executable, "-c", CALL, method, f"{self.url}/api/v1/nodes{path}", text, timeout_s=60)

    async def add(self, host: Host, *, assigned: bool = True) -> None:
        """What kubelet and controller-manager make of a host."""
        subnet = f"10.1.{host.plan.number}.0/24"
        spec = {"podCIDR": subnet, "podCIDRs": [subnet]} if assigned else {}
        await self.call("POST", body={"metadata": {"name": host.name}, "spec": spec, "status": {}})

    def launch(self, host: Host) -> None:
        """Start the host's agent."""
        host.launch_agent(
            "--kube-subnet-mgr", f"--kube-api-url={self.url}", f"--net-config-path={self.config}", env={"NODE_NAME": host.name}
        )

    async def routed(self, host: Host, other: Host) -> bool:
        """Whether ``host`` has a route to the other's subnet."""
        return f"10.1.{other.plan.number}.0/24" in await host.exec("ip", "route", "show", "dev", "flannel.1")


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
    for host in lab.hosts:
        text = (host.directory / "agent.log").read_text(errors="replace")
        assert "Traceback" not in text, text[-3000:]


async def until_all_reach(lab: Lab) -> None:
    async def all_answer() -> bool:
        return all(ping.ok for ping in (await lab.matrix()).values())

    await until(all_answer, PATIENCE_S, "an answer from everybody to everybody")


@pytest.mark.topology(hosts=3)
async def test_nodes_reach_each_other_and_follow_each_other(cluster: Cluster) -> None:
    lab, (one, two, three) = cluster.lab, cluster.lab.hosts
    await until_all_reach(lab)
    node = await cluster.call("GET", "/h1")
    assert node["metadata"]["annotations"][f"{PREFIX}public-ip"] == str(one.address)
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
