"""How does a host of the lab run pods as Kubernetes does? A real containerd in its namespace, asked by CRI, kubelet's protocol.

Programs and confinement are those of the lab's Docker: Debian's, unpacked; processes, mounts and /run of their own, that go
when the first of them ends. Requests are written field by field (protobuf's wire format), so that no generated code is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netaddr import IPAddress

from netns_lab.docker import UNPACKED, hierarchies
from netns_lab.host import Container, Host
from netns_lab.ledger import Ledger
from netns_lab.namespaces import Namespace, Process, run
from netns_lab.topology import ContainerPlan

SERVICE = "/runtime.v1.RuntimeService/"
IMAGE = "localhost/lab:1"
READY_WITHIN_S = 30.0
READY = 0
"""SANDBOX_READY; protobuf does not write what is 0."""

_START = """set -e
own=$1
mount -t tmpfs tmpfs "$own/run"
mkdir -p "$own/run${2#/run}"
mount --bind "$2" "$own/run${2#/run}"
mount --rbind "$own/run" /run
. "$own/prepare"
exec containerd -c "$own/config.toml"
"""
_CONFIG = """version = 2
root = "{own}/root"
state = "{own}/state"
[grpc]
  address = "{own}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{conf}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
"""


class Containerd:
    """A containerd on one host, which finds plugins and networks in these folders. ``prepare``: what a shell does before, with its
    mounts; ``$own`` is the folder of its files."""

    def __init__(
        self, host: Host, ledger: Ledger, bin_dir: Path, conf_dir: Path, *, prepare: str = "", snapshotter: str = "native"
    ) -> None:
        self.host = host
        self.own = host.directory / "containerd"
        self.socket = self.own / "containerd.sock"
        self._ledger = ledger
        self.cgroup = f"netns-lab-{host.namespace.name}"
        """Where those of its pods are, in every hierarchy."""
        self._process: Process | None = None
        (self.own / "run").mkdir(parents=True)
        config = {"own": self.own, "image": IMAGE, "bin": bin_dir, "conf": conf_dir, "snapshotter": snapshotter}
        (self.own / "config.toml").write_text(_CONFIG.format(**config))
        (self.own / "prepare").write_text(prepare)
        for hierarchy in hierarchies():
            ledger.note_folder(hierarchy / self.cgroup)

    async def start(self) -> None:
        """Start it, and give it the image of all pods."""
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _START, "sh"]
        words += [str(self.own), str(self.host.directory)]  # the plugins see the host's files
        env = {"PATH": f"{UNPACKED}/usr/sbin:{UNPACKED}/usr/bin:{os.environ['PATH']}"}
        log = self.host.directory / "containerd.log"
        self._process = self.host.namespace.spawn(f"containerd {self.host.name}", words, log=log, env=env, lasting=False)
        async with asyncio.timeout(READY_WITHIN_S):
            while not await self._answers():
                assert self._process.exit_code is None, self._process.tail()
                await asyncio.sleep(0.05)
        (self.own / "image.tar").write_bytes(image())
        await self.load(self.own / "image.tar")

    async def kill(self) -> None:
        """End it, and its pods with it."""
        assert self._process is not None
        await self._process.kill()

    async def load(self, archive: Path) -> None:
        """Give it an image."""
        words = [f"{UNPACKED}/usr/bin/ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", str(archive)]
        outcome = await run(words, timeout_s=120)
        assert outcome.code == 0, outcome

    async def network_ready(self) -> tuple[bool, str]:
        """What `crictl info` shows of the network: whether it is ready, and why not."""
        status = first(await self._ask("Status", b""), 1)
        conditions = [dict(fields(each)) for number, each in fields(status) if number == 1 and isinstance(each, bytes)]
        found = next(each for each in conditions if each[1] == b"NetworkReady")
        message = found.get(4, b"")
        assert isinstance(message, bytes)
        return bool(found.get(2, 0)), message.decode()

    async def until_network_ready(self) -> None:
        """It looks at its folder of networks when that changes."""
        async with asyncio.timeout(READY_WITHIN_S):
            while not (await self.network_ready())[0]:  # noqa: ASYNC110 - another process decides
                await asyncio.sleep(0.05)

    async def run_pod(self, name: str) -> tuple[str, Container]:
        """A pod's sandbox, which holds its network; its id, and the container that the lab knows from now on."""
        config = field(1, field(1, name) + field(2, f"{name}-uid") + field(3, "default"))
        config += field(2, name) + field(8, field(1, f"/{self.cgroup}"))
        identity = first(await self._ask("RunPodSandbox", field(1, config), timeout_s=60), 1).decode()
        return identity, await self.entered(identity, name)

    async def pods(self) -> dict[str, str]:
        """The ids of the sandboxes that are ready, by the names of their pods."""
        listed = await self._ask("ListPodSandbox", b"")
        found = {}
        for number, sandbox in fields(listed):
            assert number == 1
            assert isinstance(sandbox, bytes)
            if dict(fields(sandbox)).get(3, READY) == READY:
                found[first(first(sandbox, 2), 1).decode()] = first(sandbox, 1).decode()
        return found

    async def entered(self, identity: str, name: str) -> Container:
        """The pod that is already there, as a container of the lab by this name."""
        answer = await self._ask("PodSandboxStatus", field(1, identity) + b"\x10\x01")
        address = IPAddress(first(first(first(answer, 1), 5), 1).decode())
        info = json.loads(next(_entries(answer, 2))[1])
        netns = next(each["path"] for each in info["runtimeSpec"]["linux"]["namespaces"] if each["type"] == "network")
        namespace = Namespace(f"{self._ledger.name}-{name}", self._ledger)
        await namespace.bind(Path(f"/proc/{self.pid}/root{netns}"))
        return Container(ContainerPlan(name, self.host.name, address.value & 0xFF), namespace, self.host)

    async def address_of(self, identity: str) -> str:
        """The pod's address, as CRI says it."""
        return first(first(first(await self._ask("PodSandboxStatus", field(1, identity)), 1), 5), 1).decode()

    async def remove_pod(self, identity: str) -> None:
        """Stop it, which disconnects it, and remove it."""
        await self._ask("StopPodSandbox", field(1, identity), timeout_s=60)
        await self._ask("RemovePodSandbox", field(1, identity), timeout_s=60)

    async def _ask(self, method: str, request: bytes, timeout_s: float = 20) -> bytes:
        import grpc.aio

        async with grpc.aio.insecure_channel(f"unix://{self.socket}") as channel:
            answer: bytes = await channel.unary_unary(SERVICE + method)(request, timeout=timeout_s)
            return answer

    async def _answers(self) -> bool:
        import grpc

        try:
            await self._ask("Version", b"", timeout_s=2)
        except grpc.RpcError:
            return False
        return True

    @property
    def pid(self) -> int:
        """containerd's own: it is the one child of unshare."""
        assert self._process is not None
        return int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text())


def image() -> bytes:
    """A busybox that sleeps, as `docker save` writes it."""
    layer = _tar({"bin/busybox": (UNPACKED / "bin/busybox").read_bytes()})
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "100000"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    return _tar({"config.json": json.dumps(config).encode(), "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def field(number: int, value: str | bytes) -> bytes:
    """A length-delimited field."""
    data = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message; of numbers and of what is length-delimited, and CRI's answers have no others."""
    at = 0
    while at < len(message):
        key, at = _read(message, at)
        value, at = _read(message, at)
        if key & 7 == 0:
            yield key >> 3, value
        else:
            assert key & 7 == 2, key
            yield key >> 3, message[at : at + value]
            at += value


def first(message: bytes, number: int) -> bytes:
    """The first field of this number; empty where there is none."""
    return next((value for found, value in fields(message) if found == number and isinstance(value, bytes)), b"")


def _entries(message: bytes, number: int) -> Iterator[tuple[str, str]]:
    """The entries of a map of strings."""
    for found, value in fields(message):
        if found == number and isinstance(value, bytes):
            yield first(value, 1).decode(), first(value, 2).decode()


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _read(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte: Any = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
