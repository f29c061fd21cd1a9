"""Does an agent follow its host? The same process, the same lease, the same subnet; peers ping again soon.

c1 - h1 ==== overlay ==== h2 - c2         etcd apart; it is h2's eth1 that changes
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

import pytest

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, settled_overlay, until_said  # noqa: F401

BACKENDS = [pytest.param(backend, marks=pytest.mark.topology(hosts=2, backend=backend)) for backend in ("vxlan", "host-gw", "udp")]
OLD, NEW = "192.168.50.12/24", "192.168.50.112/24"


async def pings(lab: Lab) -> bool:
    return (await lab.ping("c1", "c2", wait_s=0.3)).ok and (await lab.ping("c2", "c1", wait_s=0.3)).ok


async def again(lab: Lab, what: str) -> None:
    """Both ways, within a bound that a loaded machine keeps; how long it took is printed."""
    began = time.monotonic()
    await lab.until(lambda: pings(lab), timeout_s=30, every_s=0.0, what=what)
    print(f"{what}: pings again after at most {time.monotonic() - began:.2f} s")


def published(lab: Lab) -> dict[str, str]:
    """Where each lease says that its host is, by key."""
    return {key: json.loads(lab.etcd.get(key) or "{}")["PublicIP"] for key in lab.etcd.keys(f"{PREFIX}/subnets")}


async def change(host: Host, *lines: str) -> None:
    """All at once, as a script or a DHCP client does. The second address of a network outlives the first, as systemd sets it."""
    await host.exec("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth1/promote_secondaries || true")
    await host.exec("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))


async def link(host: Host, what: str) -> object:
    """Something of flannel.1, as ``ip`` tells it."""
    return json.loads(await host.exec("ip", "-json", "link", "show", "flannel.1"))[0][what]


def lives(hosts: Sequence[Host]) -> list[tuple[int, str]]:
    return [(host.agent.pid, str(host.subnet)) for host in hosts]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ["add first", "delete first"])
async def test_another_address_is_followed_in_the_same_lease(overlay: Lab, backend: str, order: str) -> None:
    two = overlay.host(2)
    before, keys, log = lives(overlay.hosts), published(overlay), Log.from_now(two)
    lines = [f"addr add {NEW} dev eth1", f"addr del {OLD} dev eth1"]
    await change(two, *(lines if order == "add first" else lines[::-1]))
    line = await until_said(log, "uplink:", "192.168.50.112, it was 192.168.50.12", timeout_s=20)
    assert "IPAddress(" not in line
    await again(overlay, f"{backend}, {order}")
    assert lives(overlay.hosts) == before
    assert published(overlay) == {key: at.replace("192.168.50.12", "192.168.50.112") for key, at in keys.items()}


@pytest.mark.topology(hosts=2)
async def test_a_host_that_starts_with_another_address_takes_its_own_lease_over(overlay: Lab) -> None:
    """As after a reboot: the device is gone, the state is there, the address is another one."""
    two = overlay.host(2)
    subnet, keys = two.subnet, published(overlay)
    await two.agent.stop()
    await change(two, f"addr add {NEW} dev eth1", f"addr del {OLD} dev eth1", "link del flannel.1")
    two.launch_agent()
    await two.agent.ready(within_s=20)
    assert two.subnet == subnet
    await again(overlay, "a start with another address")
    assert published(overlay) == {key: at.replace("192.168.50.12", "192.168.50.112") for key, at in keys.items()}


@pytest.mark.parametrize("backend", BACKENDS)
async def test_an_uplink_that_goes_down_and_up_is_repaired_each_time(overlay: Lab, backend: str) -> None:
    two = overlay.host(2)
    before, log = lives(overlay.hosts), Log.from_now(two)
    for number in range(6):
        await two.exec("ip", "link", "set", "eth1", "down")
        await until_said(log, "error:", "the uplink eth1 is down", timeout_s=20)
        await two.exec("ip", "link", "set", "eth1", "up")
        await again(overlay, f"{backend}, flap {number + 1}")
    assert lives(overlay.hosts) == before
    assert log.lines("again and again") == []


@pytest.mark.topology(hosts=2)
async def test_the_mtu_is_followed_under_a_running_ping(overlay: Lab) -> None:
    two = overlay.host(2)
    before = lives(overlay.hosts)
    async with losing_nothing(overlay, "c1", "c2"):
        for mtu in (1400, 1500):
            await two.exec("ip", "link", "set", "eth1", "mtu", str(mtu))
            await overlay.until(lambda mtu=mtu: two.subnet_env().get("FLANNEL_MTU") == str(mtu - 50), timeout_s=20)
            assert f"mtu {mtu - 50}" in await two.exec("ip", "link", "show", "flannel.1")
    assert lives(overlay.hosts) == before


@pytest.mark.topology(hosts=2)
async def test_a_renamed_uplink_deletes_nothing(overlay: Lab) -> None:
    two = overlay.host(2)
    await two.agent.stop()
    words = [word for word in two.agent_words("--iface=192.168.50.12") if word != "--iface=eth1"]
    two.launch_agent(program=words)
    await two.agent.ready(within_s=20)
    index = await link(two, "ifindex")
    log = Log.from_now(two)
    await change(two, "link set eth1 down", "link set eth1 name ens3", "link set ens3 up")
    await until_said(log, "eth1 is called ens3 now", timeout_s=20)
    await again(overlay, "renamed")
    assert await link(two, "ifindex") == index


@pytest.mark.parametrize("backend", BACKENDS)
async def test_interfaces_that_come_and_go_end_nothing_and_lose_nothing(overlay: Lab, backend: str) -> None:
    two = overlay.host(2)
    before = lives(overlay.hosts)
    made = [f"link add va{number} type veth peer name vb{number}" for number in range(150)]
    gone = [f"link del va{number}" for number in range(150)]
    async with losing_nothing(overlay, "c1", "c2"):
        for _ in range(2):
            await change(two, *made)
            await change(two, *gone)
    assert lives(overlay.hosts) == before
    assert two.agent.running


@pytest.mark.topology(hosts=3)
async def test_hosts_that_first_shared_one_address_have_a_mac_each(lab: Lab) -> None:
    """Vagrant's boxes: without --iface all three are 10.0.2.15."""
    for host in lab.hosts:
        host.launch_agent(program=[word for word in host.agent_words() if word != "--iface=eth1"])
    for host in lab.hosts:
        await host.agent.ready(within_s=30)
    for host in lab.hosts:
        await host.agent.stop()
    await asyncio.gather(*(host.start_agent() for host in lab.hosts))
    await lab.connect_containers()

    async def all_meet() -> bool:
        pairs = [(one, other) for one in ("c1", "c2", "c3") for other in ("c1", "c2", "c3") if one != other]
        return all([(await lab.ping(one, other)).ok for one, other in pairs])

    await lab.until(all_meet, timeout_s=40)
    macs = {await link(host, "address") for host in lab.hosts}
    assert len(macs) == 3
