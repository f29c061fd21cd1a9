"""How does a lab become a Kubernetes? Its own programs beside the lab's etcd, and a node on each host that is asked for one.

h1, h2 ... containerd, kubelet  ====  etcd: kube-apiserver 192.168.50.5:443 and 10.96.0.1, controller-manager, scheduler

Hosts have one uplink, and its gateway is the machine of the API server: there the address of the service ``kubernetes`` is, so that
no kube-proxy is needed.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from netns_lab.lab import Lab
from netns_lab.namespaces import Process, batch
from tests.kube.api import STRATEGIC, Api, Json, RefusedError, path_of
from tests.lab.agent_support import until

WHERE = "KUBERNETES_PROGRAMS"
"""The folder that has Kubernetes' programs."""
IMAGE = "FLANNELPY_IMAGE"
"""The archive that ``make image`` has made."""
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
MANIFESTS = Path(__file__).parents[2] / "packaging/kubernetes/flannelpy.yaml"
CLUSTER_CIDR = "10.244.0.0/16"
"""As the ConfigMap in the manifests has it."""
SERVICES = "10.96.0.0/16"
SERVICE = "10.96.0.1"
"""Of the API server itself: the first of the services' addresses."""
AGENT = "system:serviceaccount:kube-flannel:flannelpy"
ROLE = {
    (verb, resource)
    for document in yaml.safe_load_all(MANIFESTS.read_text())
    if document["kind"] == "ClusterRole"
    for rule in document["rules"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
}
"""What the ClusterRole in the manifests has: verb, resource."""
PATIENCE_S = 120.0
"""For whatever a cluster does by itself, on a machine that is busy."""

_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [AGENT]}, {"level": "None"}],
}


def missing(*programs: str) -> str:
    """Why there can be no cluster with these programs; empty where there can."""
    if WHERE not in os.environ:
        return "make test-kube builds Kubernetes and runs these"
    absent = [name for name in programs if not os.access(program(name), os.X_OK)]
    return f"no {', '.join(absent)} in {os.environ[WHERE]}: Go 1.26 or later builds them" if absent else ""


def program(name: str) -> str:
    """The path of one of Kubernetes' programs."""
    return str(Path(os.environ[WHERE]) / name)


@dataclass(slots=True)
class Cluster:
    """What a cluster is beside its nodes. ``tokens`` by user."""

    lab: Lab
    tokens: dict[str, str] = field(default_factory=dict)
    _running: dict[str, Process] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Its files."""
        return self.lab.directory / "kubernetes"

    @property
    def address(self) -> str:
        """Where the API server is."""
        plan = self.lab.topology.etcd_plan
        assert plan is not None
        return str(plan.address.ip)

    @property
    def url(self) -> str:
        """The same, as a kubeconfig has it."""
        return f"https://{self.address}"

    # -------------------------------------------------------------------------------------------------------- its life

    async def start(self) -> None:
        """All that is beside nodes."""
        await self.begin()
        self.run(
            "kube-scheduler",
            *(f"--{each}kubeconfig={self.directory}/admin" for each in ("", "authentication-", "authorization-")),
            *("--leader-elect=false", "--secure-port=0"),
        )
        self.control()

    async def begin(self) -> None:
        """The API server alone."""
        self.directory.mkdir()
        await self._lay_wires()
        key = self.directory / "service-account.key"
        words = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)]
        await self.lab.box("etcd").exec(*words)
        (self.directory / "audit.yaml").write_text(json.dumps(_AUDIT))
        groups = {"admin": "system:masters"} | {f"system:node:{host.name}": "system:nodes" for host in self.lab.hosts}
        self.tokens = {user: secrets.token_hex(16) for user in groups}
        lines = [f"{self.tokens[user]},{user},{user},{group}\n" for user, group in groups.items()]
        (self.directory / "tokens").write_text("".join(lines))
        await self.serve()
        self.kubeconfig("admin", self.tokens["admin"])

    async def serve(self) -> None:
        """Start the API server, with what it held before."""
        own, etcd = self.directory, self.lab.etcd
        self.run(
            "kube-apiserver",
            f"--etcd-servers={','.join(etcd.urls)}",
            f"--service-cluster-ip-range={SERVICES}",
            *(
                "--secure-port=443",
                "--bind-address=0.0.0.0",
                f"--advertise-address={self.address}",
                f"--cert-dir={own}/certificates",
            ),
            *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", f"--token-auth-file={own}/tokens"),
            "--service-account-issuer=https://kubernetes.default.svc",
            *(f"--service-account-{each}-file={own}/service-account.key" for each in ("key", "signing-key")),
            *(f"--audit-policy-file={own}/audit.yaml", f"--audit-log-path={own}/audit.log"),
            *("--allow-privileged=true", "--endpoint-reconciler-type=none", "--kubelet-preferred-address-types=InternalIP"),
        )

        async def answers() -> bool:
            assert self._running["kube-apiserver"].exit_code is None, self._running["kube-apiserver"].tail()
            return self._know_authority() and await self.api.ready()

        await until(answers, PATIENCE_S, "an API server that is ready", self._running["kube-apiserver"].tail)

    def control(self, *, allocate: bool = True) -> None:
        """Start the controller-manager; with ``allocate`` it gives podCIDRs to nodes."""
        own = self.directory
        self.run(
            "kube-controller-manager",
            *(f"--{each}kubeconfig={own}/admin" for each in ("", "authentication-", "authorization-")),
            *(
                f"--allocate-node-cidrs={str(allocate).lower()}",
                f"--cluster-cidr={CLUSTER_CIDR}",
                f"--service-cluster-ip-range={SERVICES}",
            ),
            *(f"--service-account-private-key-file={own}/service-account.key", f"--root-ca-file={self.authority}"),
            *("--leader-elect=false", "--secure-port=0"),
        )

    async def stop(self, name: str) -> None:
        """Kill one of its programs."""
        await self._running.pop(name).kill()

    def run(self, name: str, *options: str) -> None:
        """Start one of its programs beside the API server."""
        log = self.directory / f"{name}.log"
        self._running[name] = self.lab.box("etcd").namespace.spawn(name, [program(name), *options], log=log, lasting=False)

    async def _lay_wires(self) -> None:
        await batch([f"address add {SERVICE}/32 dev lo"], self.lab.box("etcd").namespace.path)
        for host in self.lab.hosts:
            await batch(["link del eth0", f"route add default via {self.address} dev eth1"], host.namespace.path)

    # ---------------------------------------------------------------------------------------------------------- asking

    @property
    def authority(self) -> Path:
        """The certificate that the API server's is checked against."""
        return self.directory / "authority.crt"

    def _know_authority(self) -> bool:
        """The server has made both at its first start, in one file: its own certificate, and then its authority's."""
        made = self.directory / "certificates/apiserver.crt"
        text = made.read_text() if made.exists() else ""
        if not self.authority.exists() and text.count("-----END CERTIFICATE-----\n") == 2:  # it may be half written yet
            begin = "-----BEGIN CERTIFICATE-----"
            self.authority.write_text(begin + text.rpartition(begin)[2])
        return self.authority.exists()

    def kubeconfig(self, user: str, token: str, folder: Path | None = None) -> Path:
        """A kubeconfig with this token, which needs no other file; in a folder that a node sees, where one is given."""
        path = (folder or self.directory) / user.rpartition(":")[2]
        authority = base64.b64encode(self.authority.read_bytes()).decode()
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "lab",
                    "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
                    "clusters": [{"name": "lab", "cluster": {"server": self.url, "certificate-authority-data": authority}}],
                    "users": [{"name": user, "user": {"token": token}}],
                }
            )
        )
        return path

    @property
    def api(self) -> Api:
        """The API server, asked by an administrator."""
        return Api(self.lab.box("etcd").namespace.path, self.address, self.authority, self.tokens["admin"])

    async def node(self, name: str) -> Json:
        """A node."""
        return await self.api.get("Node", name)

    async def nodes(self) -> list[str]:
        """The names of those that are ready."""
        return sorted(each["metadata"]["name"] for each in await self.api.all("Node") if conditions(each).get("Ready") == "True")

    async def make_unavailable(self, node: str) -> None:
        """Say of a node that it has no network, as a cloud's controller does."""
        said = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "as in a cloud"}
        await self.api.call("PATCH", path_of("Node", node) + "/status", {"status": {"conditions": [said]}}, kind=STRATEGIC)

    async def rights(self, folder: Path | None = None) -> Path:
        """A kubeconfig with the rights that our agents have, by the manifests."""
        return self.kubeconfig(AGENT, await self.api.token("flannelpy", "kube-flannel"), folder)

    async def until_ready(self, *names: str) -> None:
        """Wait for these nodes."""

        async def all_are() -> bool:
            return set(names) <= set(await self.nodes())

        await until(all_are, PATIENCE_S, f"nodes {', '.join(names)} that are ready")

    async def agents(self) -> dict[str, str]:
        """The names of the agents' pods that are ready, by node."""
        pods = await self.api.all("Pod", "kube-flannel")
        return {each["spec"]["nodeName"]: each["metadata"]["name"] for each in pods if conditions(each).get("Ready") == "True"}

    async def agents_said(self) -> dict[str, str]:
        """The logs of the agents whose pods run, by the pods' names."""
        pods = await self.api.all("Pod", "kube-flannel")
        names = [each["metadata"]["name"] for each in pods if each["status"]["phase"] == "Running"]
        paths = {name: path_of("Pod", name, "kube-flannel") for name in names}
        return {name: await self.api.call("GET", f"{path}/log", container="flannelpy") for name, path in paths.items()}

    async def heartbeat(self, node: str) -> str:
        """When its kubelet was heard last; empty before the first time, some seconds after it has made its node."""
        try:
            lease = await self.api.get("Lease", node, "kube-node-lease")
        except RefusedError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return ""
            raise
        return str(lease["spec"]["renewTime"])

    async def beats_after(self, node: str, moment: str) -> bool:
        """Whether its kubelet was heard after that."""
        return await self.heartbeat(node) > moment

    async def until_agents(self, *nodes: str, other_than: Sequence[str] = ()) -> None:
        """Wait until there is an agent on exactly these nodes, by pods that are none of those."""

        async def all_are() -> bool:
            there = await self.agents()
            return sorted(there) == sorted(nodes) and not set(there.values()) & set(other_than)

        await until(all_are, PATIENCE_S, f"agents on {', '.join(nodes)}")

    async def registered(self, *names: str) -> bool:
        """Whether these are nodes, with podCIDRs."""
        listed = {each["metadata"]["name"]: each["spec"] for each in await self.api.all("Node")}
        return all("podCIDR" in listed.get(name, {}) for name in names)

    async def grant(self, rights: Collection[tuple[str, str]]) -> None:
        """Let the ClusterRole of the manifests have these rights and no others: verb, resource."""
        rules = [{"apiGroups": [""], "resources": [resource], "verbs": [verb]} for verb, resource in sorted(rights)]
        role = next(each for each in yaml.safe_load_all(MANIFESTS.read_text()) if each["kind"] == "ClusterRole")
        await self.api.apply({**role, "rules": rules})

    async def install(self, backend: Mapping[str, Any] | None = None, only: str = "", programs: Sequence[Path] = ()) -> None:
        """The manifests as they are shipped; with another backend, for nodes with this label alone, or with these programs of the
        node in the agent's PATH, where that is given."""
        documents = list(yaml.safe_load_all(MANIFESTS.read_text()))
        by_kind = {each["kind"]: each for each in documents}
        if backend is not None:
            data = by_kind["ConfigMap"]["data"]
            data["net-conf.json"] = json.dumps({**json.loads(data["net-conf.json"]), "Backend": dict(backend)})
        if only:
            name, _, value = only.partition("=")
            by_kind["DaemonSet"]["spec"]["template"]["spec"]["nodeSelector"][name] = value
        for path in programs:
            pod = by_kind["DaemonSet"]["spec"]["template"]["spec"]
            pod["volumes"].append({"name": path.name, "hostPath": {"path": str(path), "type": "File"}})
            mount = {"name": path.name, "mountPath": f"/usr/bin/{path.name}", "readOnly": True}
            pod["containers"][0]["volumeMounts"].append(mount)
        await self.api.apply(*documents)

    async def pod(self, name: str, node: str, image: str) -> None:
        """A pod that waits, on this node."""
        await self.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": node},
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "wait", "image": image, "imagePullPolicy": "Never"}],
                },
            }
        )

    async def until_pods(self, *names: str) -> dict[str, str]:
        """Wait until these run; their addresses."""
        addresses: dict[str, str] = {}

        async def all_run() -> bool:
            pods = {each["metadata"]["name"]: each["status"] for each in await self.api.all("Pod")}
            for name in names:
                if pods.get(name, {}).get("phase") == "Running" and "podIP" in pods[name]:
                    addresses[name] = pods[name]["podIP"]
            return len(addresses) == len(names)

        await until(all_run, PATIENCE_S, f"pods {', '.join(names)} that run", lambda: addresses)
        return addresses

    def asked(self) -> set[tuple[str, str]]:
        """What the agents have asked for, by the server's audit log: (verb, resource)."""
        found = set()
        for event in self._audited():
            reference = event.get("objectRef", {})
            parts = [part for part in (reference.get("resource"), reference.get("subresource")) if part]
            found.add((event["verb"], "/".join(parts) or event["requestURI"].partition("?")[0]))
        return found

    def agents_called(self) -> set[str]:
        """What the agents have called themselves (User-Agent)."""
        return {event["userAgent"] for event in self._audited()}

    def _audited(self) -> list[Json]:
        log = self.directory / "audit.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def conditions(document: Json) -> dict[str, str]:
    """The status of each condition of a node or a pod."""
    return {each["type"]: each["status"] for each in document["status"].get("conditions", ())}
