"""How does a lab have Kubernetes' nodes for leases? A small API server where etcd is else, and what is done to its nodes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

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
        meta = {"name": host.name, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}}  # without any, flanneld panics
        await self.call("POST", body={"metadata": meta, "spec": spec, "status": {}})

    def launch(self, host: Host) -> None:
        """Start the host's agent."""
        host.launch_agent(
            "--kube-subnet-mgr", f"--kube-api-url={self.url}", f"--net-config-path={self.config}", env={"NODE_NAME": host.name}
        )

    def flanneld(self, host: Host, program: Path) -> None:
        """Start real flanneld in its place."""
        options = ["--kube-subnet-mgr", f"--kube-api-url={self.url}", f"--net-config-path={self.config}", "--iface=eth1"]
        words = [str(program), *options, f"--subnet-file={host.subnet_file}"]
        host.launch_agent(program=words, env={"NODE_NAME": host.name})

    async def annotations(self, host: Host) -> dict[str, str]:
        """What stands in its node."""
        return dict((await self.call("GET", f"/{host.name}"))["metadata"].get("annotations") or {})

    async def routed(self, host: Host, other: Host) -> bool:
        """Whether ``host`` has a route to the other's subnet by another host."""
        return f"10.1.{other.plan.number}.0/24 via" in await host.exec("ip", "route", "show")


async def until_all_reach(lab: Lab) -> None:
    """Wait until every container has an answer from every other."""

    async def all_answer() -> bool:
        return all(ping.ok for ping in (await lab.matrix()).values())

    await until(all_answer, PATIENCE_S, "an answer from everybody to everybody")


def no_tracebacks(lab: Lab) -> None:
    """No agent's log may hold one."""
    for host in lab.hosts:
        text = (host.directory / "agent.log").read_text(errors="replace")
        assert "Traceback" not in text, text[-3000:]
