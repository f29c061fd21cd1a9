"""From an installed program to packets between containers with one command, and back: ``setup``, ``cleanup --all``.

c1 - h1 (systemd is PID 1; nothing is configured) ==== h2 (an ordinary agent) - c2         etcd apart
"""

from __future__ import annotations

import asyncio

import pytest

from netns_lab.booted import Booted, missing
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name  # noqa: F401

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

UNIT = "flannelpy.service"
LEFT = """
ip -d link | grep flannel; ip route | grep 'proto 102'; nft list ruleset | grep flannelpy
ls -d /run/flannelpy /run/flannel /run/docker_opts.env /etc/default/flannelpy /etc/systemd/system/docker.service.d \
  /etc/systemd/system/multi-user.target.wants/flannelpy.service 2>/dev/null
ls -A /var/lib/flannelpy 2>/dev/null
"""


async def left(systemd: Booted) -> list[str]:
    return (await systemd.attempt("sh", "-c", LEFT)).stdout.splitlines()


@pytest.mark.topology(hosts=2)
async def test_one_command_starts_it_and_one_takes_it_all_back(lab: Lab) -> None:
    one = lab.host(1)
    systemd = await lab.install(1)
    (systemd.root / "etc/default/flannelpy").unlink()
    unit = systemd.root / "etc/systemd/system/docker.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    before = await left(systemd)
    assert one.settings is not None
    given = ["setup", f"--etcd-endpoints={one.settings.endpoints}", "--iface=eth1", "--wait=60"]

    dry = await systemd.attempt("flannelpy", *given, "--dry-run", timeout_s=60)
    assert dry.code == 0, dry.stderr
    assert "interface eth1: 192.168.50.11/24" in dry.stdout
    assert "would write /etc/default/flannelpy (mode 0640)" in dry.stdout
    assert await left(systemd) == before
    asked = await systemd.attempt("flannelpy", *given, timeout_s=60)
    assert (asked.code, "--yes does it" in asked.stderr) == (1, True)
    refused = await systemd.attempt("flannelpy", "setup", "--etcd-endpoints=http://127.0.0.1:9", "--yes", timeout_s=60)
    assert (refused.code, "nothing was written: first" in refused.stderr) == (3, True)
    assert await left(systemd) == before

    first, _ = await asyncio.gather(systemd.attempt("flannelpy", *given, "--yes", timeout_s=90), lab.host(2).start_agent())
    assert first.code == 0, first.stdout + first.stderr
    assert "ready         yes" in first.stdout
    assert (await systemd.show(UNIT, "UnitFileState", "ActiveState")) == {"UnitFileState": "enabled", "ActiveState": "active"}
    await lab.connect_containers()
    assert (await lab.ping("c1", "c2")).ok
    pid = (await systemd.show(UNIT, "MainPID"))["MainPID"]
    second = await systemd.attempt("flannelpy", "setup", timeout_s=60)  # asks nothing: there is nothing to do
    assert second.code == 0, second.stdout + second.stderr
    assert (await systemd.show(UNIT, "MainPID"))["MainPID"] == pid

    gone = await systemd.attempt("flannelpy", "cleanup", "--all", "--yes", timeout_s=60)
    assert gone.code == 0, gone.stderr
    assert [line for line in await left(systemd) if line not in before] == []
    again = await systemd.attempt("flannelpy", "cleanup", "--all", "--yes", timeout_s=60)
    assert (again.code, again.stdout.strip()) == (0, "nothing to do: no agent has left anything here")
