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
from netns_lab.namespaces import Process, run
from tests.lab.cri_support import Containerd

UNPACKED = Path(sys.prefix)
NEEDED = (UNPACKED / "cni/usr/lib/cni/bridge", UNPACKED / "docker/usr/bin/containerd", UNPACKED / "docker/bin/busybox")
MISSING = [str(path) for path in NEEDED if not path.exists()]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no CRI: {', '.join(MISSING)} not there; make setup puts it there"),
    pytest.mark.topology(hosts=2, containers=0, bridge="unused"),
]


USUAL = 'mkdir /run/flannel; mount --bind "$host" /run/flannel; mount -t tmpfs tmpfs /var/lib'
"""The host's files where they are by default: what `cni install` writes fits as it is."""
CRICTL = UNPACKED / "cache/crictl"


async def containerd(lab: Lab, host: Host, prepare: str = "") -> Containerd:
    """One whose plugins are Debian's and ours, and which has no network yet."""
    bin_dir, conf_dir = host.directory / "cni-bin", host.directory / "cni-conf"
    shutil.copytree(NEEDED[0].parent, bin_dir)
    conf_dir.mkdir()
    made = Containerd(host, lab._ledger, bin_dir, conf_dir, prepare=f'host="{host.directory}"\n{prepare}')
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


def follow(host: Host, *options: str) -> Process:
    """What the package's unit runs, with this host's folders; the files of `cni install` are there as it writes them."""
    folders = ("--conf-dir", f"{host.directory}/cni-conf", "--run-dir", str(host.run_dir))
    words = (*PROGRAM, "cni", "follow", *folders, *options)
    return host.namespace.spawn(f"cni follow {host.name}", words, log=host.directory / "follow.log", lasting=False)


async def shown(runtime: Containerd) -> bool:
    """Is the network ready, as crictl shows it, and by CRI itself? They say the same."""
    ready, why = await runtime.network_ready()
    if CRICTL.exists():
        said = await run([str(CRICTL), "--runtime-endpoint", f"unix://{runtime.socket}", "info"], timeout_s=20)
        conditions = {each["type"]: each for each in json.loads(said.stdout)["status"]["conditions"]}
        assert conditions["NetworkReady"] == {
            "type": "NetworkReady", "status": ready, "message": why, "reason": "" if ready else "NetworkPluginNotReady"
        }  # fmt: skip
    return ready


async def becomes(runtime: Containerd, ready: bool, within_s: float = 20.0) -> None:
    """The network is so before long. It looks twice, which must be the same."""
    async with asyncio.timeout(within_s):
        while (await runtime.network_ready())[0] is not ready:  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.05)
    assert await shown(runtime) is ready


async def test_the_network_is_ready_while_the_agent_is_and_only_then(lab: Lab) -> None:
    one, two = await asyncio.gather(*(containerd(lab, host, USUAL) for host in lab.hosts))
    for host in lab.hosts:
        where = ("--bin-dir", f"{host.directory}/cni-bin", "--conf-dir", f"{host.directory}/cni-conf")
        await host.exec(*PROGRAM, "cni", "install", *where)
    # For this containerd the file is all there is to it.
    await asyncio.gather(*(becomes(each, ready=True) for each in (one, two)))
    followers = [follow(host) for host in lab.hosts]
    await asyncio.gather(*(becomes(each, ready=False) for each in (one, two)))
    with pytest.raises(Exception, match="cni plugin not initialized"):
        await one.run_pod("early")

    await lab.start_agents()
    await asyncio.gather(*(becomes(each, ready=True) for each in (one, two)))
    (id1, pod1), (id2, _pod2) = await asyncio.gather(one.run_pod("pod1"), two.run_pod("pod2"))
    ip2 = await two.address_of(id2)
    assert await two.address_of(id2) in lab.host(2).subnet
    ping = ("ping", "-n", "-c1", "-W2", ip2)
    assert " 0% packet loss" in await pod1.exec(*ping)

    # A restart, and a kill, are no news to the runtime: it is asked all the time.
    seen: list[bool] = []

    async def watch() -> None:
        while True:
            seen.append((await one.network_ready())[0])
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    for signalled in (False, True):
        await (lab.host(1).agent.kill() if signalled else lab.host(1).agent.stop())
        await lab.host(1).start_agent()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert len(seen) > 10
    assert all(seen)

    # Stopped, it is: what runs goes on. The time that it has is not waited for here.
    assert await followers[0].stop() == 0
    followers[0] = follow(lab.host(1), "--grace", "0.5")
    await lab.host(1).agent.stop()
    await becomes(one, ready=False)
    assert await shown(two)
    assert " 0% packet loss" in await pod1.exec(*ping)
    await lab.host(1).start_agent()
    await becomes(one, ready=True)

    # An agent that runs and is not ready is none either: its uplink is away.
    await lab.host(1).exec("ip", "link", "set", "eth1", "down")
    await becomes(one, ready=False)
    await lab.host(1).exec("ip", "link", "set", "eth1", "up")
    await becomes(one, ready=True)
    await asyncio.gather(one.remove_pod(id1), two.remove_pod(id2))
    for follower in followers:
        assert await follower.stop() == 0


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
