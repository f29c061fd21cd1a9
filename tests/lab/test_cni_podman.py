"""Do podman's containers of two hosts reach each other? Debian's podman with its CNI backend, and what `cni install` writes.

p1 - cni0 - h1 ==== vxlan ==== h2 - cni0 - p2         etcd apart
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from netaddr import IPAddress

from netns_lab.docker import UNPACKED as DOCKER
from netns_lab.host import Host
from netns_lab.lab import PROGRAM, Lab
from netns_lab.namespaces import Process, run

UNPACKED = Path(sys.prefix) / "cni/usr"
LIBRARIES = next(UNPACKED.glob("lib/*-linux-gnu"), UNPACKED / "lib")
ENV = ["env", f"LD_LIBRARY_PATH={LIBRARIES}"]
BUSYBOX = DOCKER / "bin/busybox"

_START = """set -e
own=$1
mount -t tmpfs tmpfs "$own/run"
mkdir -p "$own/run${2#/run}"
mount --bind "$2" "$own/run${2#/run}"
mount --rbind "$own/run" /run
umount /sys/fs/cgroup/unified 2>/dev/null || true
echo ready
exec sleep infinity
"""
"""A /run, processes and mounts of their own, which end with the first process. crun refuses cgroups of both versions at once."""
_CONFIG = """[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
apparmor_profile = "unconfined"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{own}/bin"]
network_config_dir = "{own}/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
conmon_path = ["{unpacked}/bin/conmon"]
tmp_dir = "{own}/tmp"
[engine.runtimes]
crun = ["{own}/crun"]
"""
_STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "{own}/root"\nrunroot = "{own}/runroot"\n'


def missing() -> str:
    """Why podman cannot run here; empty where it can."""
    absent = [str(path) for path in (UNPACKED / "bin/podman", UNPACKED / "lib/cni/bridge", BUSYBOX) if not path.exists()]
    if absent:
        return f"no podman: {', '.join(absent)} not there; make setup puts it there where there is apt-get"
    for program in ("podman", "crun", "conmon"):
        told = subprocess.run([*ENV, UNPACKED / "bin" / program, "--version"], capture_output=True, text=True, check=False)
        if told.returncode:
            return f"no podman: {program} does not start: {told.stderr.strip()}"
    return ""


pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.topology(hosts=2, containers=0, bridge="unused")]


class Podman:
    """Podman on one host, with all its files below the host's directory."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.own = host.directory / "podman"
        self._process: Process | None = None

    async def start(self) -> None:
        """Files and mounts; podman itself has no daemon."""
        for name in ("run", "tmp", "rootfs/bin"):
            (self.own / name).mkdir(parents=True)
        shutil.copytree(UNPACKED / "lib/cni", self.own / "bin")
        shutil.copy(BUSYBOX, self.own / "rootfs/bin/busybox")
        for command in ("sleep", "ping", "cat"):
            (self.own / "rootfs/bin" / command).symlink_to("busybox")
        (self.own / "containers.conf").write_text(_CONFIG.format(own=self.own, unpacked=UNPACKED))
        (self.own / "storage.conf").write_text(_STORAGE.format(own=self.own))
        (self.own / "crun").write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={LIBRARIES} exec {UNPACKED}/bin/crun "$@"\n')
        (self.own / "crun").chmod(0o755)
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _START, "sh"]
        log = self.own / "log"
        words += [str(self.own), str(self.host.directory)]
        self._process = self.host.namespace.spawn(f"podman {self.host.name}", words, log=log, lasting=False)
        async with asyncio.timeout(20):
            while "ready" not in log.read_text():
                assert self._process.exit_code is None, log.read_text()
                await asyncio.sleep(0.02)

    async def install(self) -> None:
        """The files of ``flannelpy cni install``; paths are those of the lab."""
        await self.host.exec(*PROGRAM, "cni", "install", "--bin-dir", f"{self.own}/bin", "--conf-dir", f"{self.own}/net.d")
        path = self.own / "net.d/10-flannel.conflist"
        network = json.loads(path.read_text())
        ours = {"subnetFile": str(self.host.subnet_file), "dataDir": f"{self.own}/data", "ipam": {"dataDir": f"{self.own}/ipam"}}
        network["plugins"][0] |= ours
        path.write_text(json.dumps(network))

    async def do(self, *words: str) -> str:
        """A ``podman`` command; what it printed."""
        env = [
            *ENV,
            f"CONTAINERS_CONF={self.own}/containers.conf",
            f"CONTAINERS_STORAGE_CONF={self.own}/storage.conf",
            f"PATH={UNPACKED}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        outcome = await run(["nsenter", "-t", self._pid, "-m", "-n", "-p", "--", *env, "podman", *words], timeout_s=60)
        assert outcome.code == 0, (words, outcome)
        return outcome.stdout.strip()

    @property
    def _pid(self) -> str:
        """The one child of unshare."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().strip()

    async def run(self, name: str) -> IPAddress:
        """Start a container that waits; its address."""
        rootfs = ("--rootfs", str(self.own / "rootfs"))
        await self.do("run", "-d", "--name", name, "--network", "cbr0", "-p", "8080:80", *rootfs, "/bin/sleep", "1000")
        return IPAddress(await self.do("inspect", "--format", "{{.NetworkSettings.Networks.cbr0.IPAddress}}", name))


async def test_containers_of_two_hosts_meet_and_leave_nothing(lab: Lab) -> None:
    await lab.start_agents()
    one, two = Podman(lab.host(1)), Podman(lab.host(2))
    for each in (one, two):
        await each.start()
        await each.install()
    assert "flannel" in await one.do("network", "ls")
    ip1, ip2 = await asyncio.gather(one.run("p1"), two.run("p2"))
    assert ip1 in lab.host(1).subnet
    assert ip2 in lab.host(2).subnet
    assert await one.do("exec", "p1", "cat", "/sys/class/net/eth0/mtu") == "1450"
    assert " 0% packet loss" in await one.do("exec", "p1", "ping", "-c1", "-W2", "-s", "1422", str(ip2))
    assert " 0% packet loss" in await two.do("exec", "p2", "ping", "-c1", "-W2", "-s", "1422", str(ip1))
    for each, name in ((one, "p1"), (two, "p2")):
        assert len(list((each.own / "data").iterdir())) == 1
        await each.do("rm", "-f", "-t", "0", name)
        assert list((each.own / "data").iterdir()) == []
        assert await each.host.exec("ip", "-o", "link", "show", "master", "cni0") == ""
