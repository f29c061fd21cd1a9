"""Does each backend carry each family that it is for: packets of full size, streams, over a restart, and is a peer that left gone?

c1 - h1 192.168.50.11, fd00:50::b ==== h2 192.168.50.12, fd00:50::c - c2        etcd apart
"""

from __future__ import annotations

import signal
from functools import partial

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from netns_lab.streaming import streaming
from tests.lab.agent_support import SUBNETS, Log, lab_name, losing_nothing, no_probes, no_traceback, shell, until  # noqa: F401
from tests.lab.host_support import until_nothing_is_wrong
from tests.lab.wireguard_support import all_of, wireguard_go  # noqa: F401

WITHIN_S = 30.0
DUAL = {"EnableIPv6": True, "IPv6Network": "fd00:10:1::/48", "Network": "10.1.0.0/16"}
ONLY6 = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10:1::/48"}
NETWORKS = {"dual": (DUAL, (4, 6)), "only6": (ONLY6, (6,))}
PEER = '"fd00:50::c"'
HEADERS = {4: 28, 6: 48}
"""Bytes of IP and ICMP before what ping says."""

pytestmark = [pytest.mark.topology(hosts=2, segment6="fd00:50::/64", agent_options=()), pytest.mark.usefixtures("no_probes")]


def address(lab: Lab, name: str, version: int) -> str:
    container = lab.container(name)
    return str(container.address if version == 4 else container.address6)


async def pinged(lab: Lab, source: str, target: str, *options: str) -> bool:
    return (await lab.box(source).attempt("ping", "-n", "-c", "1", "-W", "2", *options, target)).code == 0


async def left(host: Host, peer: str) -> bool:
    """True where nothing sends to a subnet any more: no route, and no peer of WireGuard."""
    said = await shell(host, "ip route show proto 102; ip -6 route show proto 102; ip neigh; ip -6 neigh")
    allowed = [net for device in ("flannel-wg", "flannel-wg-v6") for net in await all_of(host, "allowed_ip", device)]
    return not any(peer in line for line in (*said, *allowed))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
async def test_each_backend_carries_each_family(lab: Lab, backend: str, network: str) -> None:
    await carries(lab, backend, network)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.usefixtures("wireguard_go")
async def test_wireguard_carries_each_family(lab: Lab, network: str) -> None:
    await carries(lab, "wireguard", network)


async def carries(lab: Lab, backend: str, network: str) -> None:
    config, versions = NETWORKS[network]
    await lab.put_config({**config, "Backend": {"Type": backend}})
    await lab.start_agents()
    await lab.connect_containers()
    one, two = lab.host(1), lab.host(2)
    mtu = int(one.subnet_env()["FLANNEL_MTU"])
    for version in versions:
        for source, name in (("c1", "c2"), ("c2", "c1")):
            target = address(lab, name, version)
            await until(partial(pinged, lab, source, target), WITHIN_S, f"{source} reaches {target}")
            assert await pinged(lab, source, target, "-M", "do", "-s", str(mtu - HEADERS[version]))
            assert not await pinged(lab, source, target, "-M", "do", "-s", str(mtu - HEADERS[version] + 1))
        target, log = address(lab, "c2", version), lab.directory / f"stream{version}.log"
        async with streaming(lab.container("c1").namespace, lab.container("c2").namespace, target, log) as stream:
            pass
        assert stream.sent == stream.received > 0
    last = versions[-1]
    async with losing_nothing(lab, "c1", address(lab, "c2", last)):
        await one.agent.stop()
        await one.start_agent()
        two.agent.signal(signal.SIGKILL)
        await two.agent.process.wait(10)
        await two.start_agent()
    await until_nothing_is_wrong(one, two)
    key = next(key for key in lab.etcd.keys(SUBNETS) if PEER in (lab.etcd.get(key) or ""))
    subnets = [part.rpartition("-")[0].rstrip(":") for part in key.rpartition("/")[2].split("&") if not part.startswith("0.0.0.0")]
    await two.agent.stop()
    lab.etcd.ctl("del", key)
    for subnet in subnets:
        nothing = partial(left, one, subnet)
        await until(nothing, WITHIN_S, f"nothing of {subnet} is left", lambda: Log.of(one).text[-1500:])
