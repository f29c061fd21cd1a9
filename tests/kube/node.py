"""How is a host of the lab a node? A real kubelet beside a real containerd, in namespaces of its own, on files of its own.

Of the machine's root it sees everything; what it and its pods write below /etc, /opt, /run, /usr and /var is theirs (overlayfs) and
goes with them. The kernel's settings that a kubelet wants on its machine it finds there (files over those in /proc/sys): the
machine's own stay.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from netns_lab.docker import UNPACKED, hierarchies
from netns_lab.host import Container, Host
from netns_lab.namespaces import Process
from tests.kube import cluster as clusters
from tests.kube.cluster import IMAGE, PATIENCE_S, PROGRAMS, Cluster, program
from tests.lab.agent_support import until
from tests.lab.cri_support import IMAGE as POD_IMAGE
from tests.lab.cri_support import Containerd

PLUGINS = Path(sys.prefix) / "cni/usr/lib/cni"
NEEDED = (PLUGINS / "bridge", UNPACKED / "usr/bin/containerd", UNPACKED / "bin/busybox")
"""What ``make setup`` unpacks."""

_TUNABLES = {"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1}
_TUNABLES |= {"kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000}
"""What kubelet sets (pkg/kubelet/cm, setupKernelTunables), on the whole machine."""

_PREPARE = """
for each in etc opt usr var; do
    mkdir -p "$own/$each.upper" "$own/$each.work"
    mount -t overlay -o "lowerdir=/$each,upperdir=$own/$each.upper,workdir=$own/$each.work" "$each" "/$each"
done
mkdir -p /opt/cni /etc/cni/net.d
cp -r PLUGINS /opt/cni/bin
for each in TUNABLES; do
    mount --bind "$own/tunables/$each" "/proc/sys/$each"
done
"""


class Node:
    """A host's containerd and kubelet."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        self.host = host
        self._cluster = cluster
        prepare = _PREPARE.replace("PLUGINS", str(PLUGINS)).replace("TUNABLES", " ".join(_TUNABLES))
        self.containerd = Containerd(
            host, cluster.lab._ledger, Path("/opt/cni/bin"), Path("/etc/cni/net.d"), prepare=prepare, snapshotter="overlayfs"
        )
        self._kubelet: Process | None = None
        for name, value in _TUNABLES.items():
            path = self.containerd.own / "tunables" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")

    @property
    def name(self) -> str:
        """The node's."""
        return self.host.name

    @property
    def root(self) -> Path:
        """Its files, as it sees them."""
        return Path(f"/proc/{self.containerd.pid}/root")

    async def start(self) -> None:
        """containerd with the image of the agent, where there is one, and kubelet."""
        for hierarchy in hierarchies():
            (hierarchy / self.containerd.cgroup).mkdir(exist_ok=True)
        await self.containerd.start()
        if IMAGE in os.environ:
            await self.containerd.load(Path(os.environ[IMAGE]))
        (self.containerd.own / "kubelet.json").write_text(json.dumps(self._configuration()))
        self.start_kubelet()

    def start_kubelet(self) -> None:
        """Start it; the node is ready some seconds later."""
        own = self.containerd.own
        user = f"system:node:{self.name}"
        kubeconfig = self._cluster.kubeconfig(user, self._cluster.tokens[user], own)
        options = [f"--kubeconfig={kubeconfig}", f"--config={own}/kubelet.json"]
        options += [f"--hostname-override={self.name}", f"--node-ip={self.host.address}", f"--root-dir={own}/kubelet"]
        self._kubelet = self.spawn("kubelet", [program("kubelet"), *options, f"--cert-dir={own}/kubelet-pki"])

    async def kill(self) -> None:
        """The host is gone, with all that runs on it; its cable hangs loose."""
        await self.host.unplug()
        await self.containerd.kill()

    def tail(self) -> str:
        """The end of what its kubelet has said."""
        return self._kubelet.tail(10) if self._kubelet is not None else "no kubelet"

    async def stop_kubelet(self) -> None:
        """As systemd does it; pods run on."""
        assert self._kubelet is not None
        await end(self._kubelet)

    def spawn(self, role: str, words: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
        """Start something on the node, beside its containerd."""
        path = f"{UNPACKED}/usr/sbin:{UNPACKED}/usr/bin:{os.environ['PATH']}"
        inside = ["nsenter", f"--target={self.containerd.pid}", "--mount", "--pid", "--", *words]
        log = self.host.directory / f"{role}.log"
        env = {"PATH": path, **(env or {})}
        return self.host.namespace.spawn(f"{role} {self.name}", inside, log=log, env=env, lasting=False)

    async def pod(self, name: str) -> Container:
        """One of its pods that run, as a container of the lab."""
        for known in self.host.containers:
            if known.name == name:
                return known
        identity = (await self.containerd.pods())[name]
        container = await self.containerd.entered(identity, name)
        self.host.containers += (container,)
        return container

    async def routes(self) -> str:
        """Its main table."""
        return await self.host.exec("ip", "route", "show")

    def _configuration(self) -> dict[str, object]:
        own = self.containerd.own
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self.containerd.socket}",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.containerd.cgroup}",
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "resolvConf": "",
            "nodeStatusUpdateFrequency": "2s",
            "volumePluginDir": f"{own}/kubelet-plugins",
        }


async def end(process: Process) -> None:
    """SIGTERM to what nsenter has started: nsenter itself passes none on."""
    for child in children(process.pid):
        os.kill(child, signal.SIGTERM)
    await process.wait(30)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def add(cluster: Cluster, *numbers: int) -> list[Node]:
    """Make nodes of these hosts, all at once."""
    made = [Node(cluster, cluster.lab.host(number)) for number in numbers]
    await asyncio.gather(*(node.start() for node in made))
    return made


async def meet(cluster: Cluster, *nodes: Node) -> dict[str, str]:
    """A pod on each of these, named ``p1`` by its node ``h1``, each of which reaches the others; their addresses by name."""
    names = {node.host.name.replace("h", "p"): node for node in nodes}
    for name, node in names.items():
        await cluster.pod(name, node.name, POD_IMAGE)
    addresses = await cluster.until_pods(*names)
    for name, node in names.items():
        await node.pod(name)

    async def all_reach() -> bool:
        pings = [
            await cluster.lab.ping(source, addresses[target]) for source in addresses for target in addresses if source != target
        ]
        return all(ping.ok for ping in pings)

    await until(all_reach, PATIENCE_S, "pods that reach each other")
    return addresses


def logs(host: Host) -> list[Path]:
    """What the agents in its pods have said."""
    return list((host.directory / "containerd/var.upper/log/pods").glob("kube-flannel_*/*/*.log"))


def missing() -> str:
    """Why there can be no nodes with the image; empty where there can."""
    if why := clusters.missing(*PROGRAMS):
        return why
    if IMAGE not in os.environ:
        return "make test-kube builds the image and runs these"
    absent = [str(path) for path in NEEDED if not path.exists()]
    absent += [tool for tool in ("openssl", "iptables") if shutil.which(tool) is None]
    return f"no node: {', '.join(absent)} not there; make setup puts it there" if absent else ""
