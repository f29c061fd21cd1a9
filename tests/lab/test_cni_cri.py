"""Do pods of two hosts reach each other? A real containerd on each, asked as kubelet asks it, with what `cni install` writes.

pod1 - cni0 - h1 ==== vxlan ==== h2 - cni0 - pod2         etcd apart
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import PROGRAM, Lab
from tests.lab.cri_support import Containerd

UNPACKED = Path(sys.prefix)
NEEDED = (UNPACKED / "cni/usr/lib/cni/bridge", UNPACKED / "docker/usr/bin/containerd", UNPACKED / "docker/bin/busybox")
MISSING = [str(path) for path in NEEDED if not path.exists()]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no CRI: {', '.join(MISSING)} not there; make setup puts it there"),
    pytest.mark.topology(hosts=2, containers=0, bridge="unused"),
]


async def containerd(lab: Lab, host: Host) -> Containerd:
    """One whose plugins are Debian's and ours, and which has no network yet."""
    bin_dir, conf_dir = host.directory / "cni-bin", host.directory / "cni-conf"
    shutil.copytree(NEEDED[0].parent, bin_dir)
    conf_dir.mkdir()
    made = Containerd(host, lab._ledger, bin_dir, conf_dir)
    await made.start()
    return made


async def install(host: Host) -> None:
    """The files of ``flannelpy cni install``; paths are those of the lab."""
    conf_dir = host.directory / "cni-conf"
    await host.exec(*PROGRAM, "cni", "install", "--bin-dir", f"{host.directory}/cni-bin", "--conf-dir", str(conf_dir))
    path = conf_dir / "10-flannel.conflist"
    network = json.loads(path.read_text())
    network["plugins"][0] |= {
        "subnetFile": str(host.subnet_file),
        "dataDir": f"{host.directory}/cni-data",
        "ipam": {"dataDir": f"{host.directory}/cni-ipam"},
    }
    path.write_text(json.dumps(network))


async def test_pods_of_two_hosts_meet_and_leave_nothing(lab: Lab) -> None:
    one, two = await asyncio.gather(*(containerd(lab, host) for host in lab.hosts))
    ready, why = await one.network_ready()
    assert not ready, why  # there is no network yet
    await lab.start_agents()
    await asyncio.gather(*(install(host) for host in lab.hosts))

    await asyncio.gather(one.until_network_ready(), two.until_network_ready())
    (id1, pod1), (id2, pod2) = await asyncio.gather(one.run_pod("pod1"), two.run_pod("pod2"))
    ip1, ip2 = await one.address_of(id1), await two.address_of(id2)
    assert ip1 in lab.host(1).subnet
    assert ip2 in lab.host(2).subnet
    for source, target in ((pod1, ip2), (pod2, ip1)):
        assert " 0% packet loss" in await source.exec("ping", "-n", "-c1", "-W2", "-M", "do", "-s", "1422", target)
    assert len(list((lab.host(1).directory / "cni-data").iterdir())) == 1
    await asyncio.gather(one.remove_pod(id1), two.remove_pod(id2))
    for host in lab.hosts:
        assert list((host.directory / "cni-data").iterdir()) == []
        assert await host.exec("ip", "-o", "link", "show", "master", "cni0") == ""
