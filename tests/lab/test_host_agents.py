"""Do two agents of one host leave each other's devices alone, also where a config makes both want the same one?

c1 - h1 ==== vxlan 1 ==== h2 - c2         and on h1 a second agent, for /blue, whose config forgot the VNI
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import pytest

from netns_lab.agent import Agent
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, settled_overlay, shell, until  # noqa: F401
from tests.lab.host_support import WITHIN_S, device, lives, until_nothing_is_wrong

NETWORK = "10.77.0.0/16"


def blue(host: Host) -> Agent:
    """A second agent on the host, with everything of its own but the device."""
    directory = host.directory / "blue"
    for name in ("", "state", "run"):
        (directory / name).mkdir(exist_ok=True)
    own = [f"--state-dir={directory}/state", f"--run-dir={directory}/run", f"--subnet-file={directory}/subnet.env"]
    agent = Agent(host.namespace, directory, host.agent_words("--etcd-prefix=/blue", *own), env={}, lasting=False)
    agent.launch()
    return agent


def put(lab: Lab, **backend: object) -> None:
    lab.etcd.put("/blue/config", json.dumps({"Network": NETWORK, "Backend": {"Type": "vxlan", **backend}}))


async def until_only(host: Host, name: str) -> None:
    """Wait until our routes lead through this device and no other."""

    async def so() -> bool:
        found = await shell(host, "ip route show proto 102")
        return bool(found) and all(f"dev {name}" in line for line in found)

    await until(so, WITHIN_S, f"routes through {name}", lambda: Log.of(host).text[-1500:])


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
@pytest.mark.topology(hosts=2)
async def test_a_second_agent_with_the_first_ones_device_touches_nothing_and_says_whose_it_is(overlay: Lab, backend: str) -> None:
    if backend == "udp":
        overlay.etcd.put("/coreos.com/network/config", '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}')
        for host in overlay.hosts:
            await until_only(host, "flannel0")
    one, name = overlay.host(1), "flannel0" if backend == "udp" else "flannel.1"
    before, found, log = lives(overlay.hosts), await device(one, name), Log.from_now(one)
    routes = await shell(one, "ip route show proto 102")
    put(overlay, **({"Type": "udp"} if backend == "udp" else {}))
    async with AsyncExitStack() as stack:
        second = blue(one)
        stack.callback(second.close)
        await stack.enter_async_context(losing_nothing(overlay, "c1", "c2"))
        said = Log(second.log)
        await until(
            lambda: [line for line in said.lines(name) if str(one.agent.pid) in line or str(one.run_dir) in line],
            WITHIN_S,
            "it says who has the device",
            lambda: said.text,
        )
        assert "READY" not in second.said
        # Its config is corrected: it goes its own way, and the first one's device is no left-over of it.
        put(overlay, VNI=2)
        await second.ready(within_s=WITHIN_S)
        assert (await device(one, "flannel.2"))["linkinfo"]["info_data"]["id"] == 2
        await second.restart()
    assert (await device(one, name))["ifindex"] == found["ifindex"]
    assert await shell(one, "ip route show proto 102") == routes
    assert log.lines("somebody else") == []
    assert lives(overlay.hosts) == before
    await until_nothing_is_wrong(*overlay.hosts)
