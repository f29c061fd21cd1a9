"""How does a host of the lab run Docker? A real dockerd in its namespace, whose containers are containers of the lab.

Its programs are Debian's, unpacked and not installed: installing them starts a Docker, and that changes the machine's firewall.
dockerd and all below it have process ids, mounts and a /run of their own (unshare(1)). When the first process of them ends, in
whatever way, the kernel ends the others, and their mounts go (pid_namespaces(7)). A Docker of the machine is neither seen nor
touched.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tarfile
from pathlib import Path

from netaddr import IPAddress, IPNetwork

from netns_lab.agent import NotifySocket
from netns_lab.errors import LabError, TimedOutError
from netns_lab.host import Container, Host
from netns_lab.ledger import Ledger
from netns_lab.namespaces import Namespace, Process, run
from netns_lab.topology import ContainerPlan

UNPACKED = Path(sys.prefix) / "docker"
"""Where ``make setup`` unpacks the packages."""
_BUSYBOX = UNPACKED / "bin/busybox"
_CLIENT = UNPACKED / "usr/bin/docker"
_COMMANDS = ("sh", "cat", "head", "nc", "ping", "sha256sum", "sleep")

IMAGE = "lab"
READY_WITHIN_S = 20.0
STOPPED_WITHIN_S = 20.0

_START = """set -e
own=$1; shift
mount -t tmpfs tmpfs "$own/run"
mkdir -p "$own/run${own#/run}"
mount --bind "$own" "$own/run${own#/run}"
mount --rbind "$own/run" /run
exec dockerd "$@"
"""
"""A /run of its own hides a containerd of the machine, which dockerd would use, and holds what they leave there."""


def missing() -> str:
    """Why there can be no Docker here; empty where there can."""
    needed = (UNPACKED / "usr/sbin/dockerd", _CLIENT, _BUSYBOX, Path("/usr/sbin/iptables-nft"), Path("/usr/sbin/iptables-legacy"))
    absent = ", ".join(str(path) for path in needed if not path.exists())
    return f"no Docker: {absent} not there; make setup puts it there where there is apt-get" if absent else ""


class Docker:
    """A dockerd on one host; ``start`` may be called again after ``stop``. ``iptables``: its variant, nft or legacy."""

    def __init__(self, host: Host, ledger: Ledger, iptables: str) -> None:
        self.host = host
        self.directory = host.directory / "docker"
        self._ledger = ledger
        self._cgroup = f"netns-lab-{host.namespace.name}"
        self._socket = f"-H=unix://{self.directory}/docker.sock"
        self._process: Process | None = None
        for name in ("bin", "run"):
            (self.directory / name).mkdir(parents=True)
        # dockerd asks for br_netfilter, with which bridges of the machine would do other than before.
        stands_for = {
            "modprobe": "/bin/true",
            "iptables": f"/usr/sbin/iptables-{iptables}",
            "ip6tables": f"/usr/sbin/ip6tables-{iptables}",
        }
        for name, target in stands_for.items():
            (self.directory / "bin" / name).symlink_to(target)
        # Else it leaves a key in /etc/docker.
        (self.directory / "daemon.json").write_text(json.dumps({"deprecated-key-path": str(self.directory / "key.json")}))
        for hierarchy in hierarchies():
            ledger.note_folder(hierarchy / self._cgroup)

    @property
    def path(self) -> str:
        """PATH as dockerd has it."""
        return ":".join(map(str, (self.directory / "bin", UNPACKED / "usr/sbin", UNPACKED / "usr/bin", os.environ["PATH"])))

    async def start(self, *options: str) -> None:
        """Start dockerd with these options and wait for READY=1. Raises TimedOutError with the end of its log."""
        words = [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", _START, "dockerd", str(self.directory)),
            *(self._socket, f"--data-root={self.directory}/data", f"--config-file={self.directory}/daemon.json"),
            *("--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self._cgroup}"),
            *options,
        ]
        notify = NotifySocket(self.directory / "notify")
        env = {"PATH": self.path, "NOTIFY_SOCKET": str(notify.path)}
        log = self.host.directory / "docker.log"
        try:
            self._process = self.host.namespace.spawn(f"docker {self.host.name}", words, log=log, env=env, lasting=False)
            async with asyncio.timeout(READY_WITHIN_S):
                await notify.ready()
        except TimeoutError:
            raise TimedOutError(
                f"{self.host.name}: dockerd was not ready after {READY_WITHIN_S:g} s: {self._running.tail()}"
            ) from None
        finally:
            notify.close()

    async def stop(self) -> None:
        """SIGTERM, as systemd does it; the containers stop with it."""
        os.kill(self._pid, signal.SIGTERM)
        await self._running.wait(STOPPED_WITHIN_S)

    async def do(self, *words: str) -> str:
        """A ``docker`` command; what it printed. Raises LabError with what it said where it fails."""
        outcome = await run(self.client(*words), who=self.host.name)
        if outcome.code:
            raise LabError(f"{self.host.name}: docker {' '.join(words)}: exit {outcome.code}: {outcome.stderr.strip()}")
        return outcome.stdout.strip()

    def client(self, *words: str) -> list[str]:
        """A ``docker`` command, for whoever wants to run it in another way."""
        return [str(_CLIENT), self._socket, *words]

    async def load_image(self) -> None:
        """Make the image of all containers: a busybox."""
        tar = self.directory / "image.tar"
        write_image(tar)
        await self.do("import", str(tar), IMAGE)

    async def run(self, name: str) -> Container:
        """Start a container that waits. From now on it is one of the host's, and ``lab.ping(name, ...)`` knows it."""
        # The kernel spares the first process of a container a SIGTERM that it does not handle: a stop would take ten seconds.
        await self.do("run", "-d", "--name", name, "--stop-signal=KILL", IMAGE, "sleep", "1000")
        return await adopt(self.host, self._ledger, Path(f"/proc/{self._pid}/root"), name, await self.do("inspect", name))

    @property
    def _running(self) -> Process:
        if self._process is None:
            raise LabError(f"{self.host.name}: dockerd was never started")
        return self._process

    @property
    def _pid(self) -> int:
        """dockerd's own: it is the one child of unshare."""
        pid = self._running.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def write_image(tar: Path) -> None:
    """What ``docker import`` takes: a busybox."""
    with tarfile.open(tar, "w") as archive:
        archive.add(_BUSYBOX, "bin/busybox")
        for command in _COMMANDS:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)


async def adopt(host: Host, ledger: Ledger, root: Path, name: str, inspected: str) -> Container:
    """Make a container of a Docker on ``host`` one of the lab's. ``root`` is what dockerd sees as /; ``inspected``: JSON."""
    network = json.loads(inspected)[0]["NetworkSettings"]
    namespace = Namespace(f"{ledger.name}-{name}", ledger)
    await namespace.bind(root / "run/docker/netns" / Path(network["SandboxKey"]).name)
    number = int(IPAddress(network["IPAddress"])) - int(IPNetwork(host.subnet_env()["FLANNEL_SUBNET"]).ip)
    container = Container(ContainerPlan(name, host.name, number), namespace, host)
    host.containers += (container,)
    return container


def hierarchies() -> list[Path]:
    """Where cgroups are made: one file system for all of version 2, one for each controller of version 1 (cgroups(7))."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(where) for _, where, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]
