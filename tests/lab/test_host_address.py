"""Which of its addresses does a host go by, when others come, go, or come first?

c1 - h1 192.168.50.11 ==== overlay ==== h2 192.168.50.12 - c2         etcd apart; it is h2's eth1 (and eth0) that changes
"""

from __future__ import annotations

import json

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, settled_overlay, until, until_said  # noqa: F401
from tests.lab.host_support import (
    BACKENDS,
    WITHIN_S,
    change,
    device,
    lives,
    published,
    relaunch,
    until_nothing_is_wrong,
    until_they_meet,
)

OLD, NEW, VIP = "192.168.50.12/24", "192.168.50.112/24", "192.168.50.200/32"
FAR = "198.51.100.9"
"""An address that no host has: a NAT gateway's."""


async def until_published(lab: Lab, host: Host, address: str) -> None:
    key = host.lease_key
    await until(lambda: published(lab)[key] == address, WITHIN_S, f"{address} is published", lambda: published(lab))


async def bridge(host: Host) -> list[object]:
    """What Docker made, as far as it may be touched: the interface itself, and its addresses."""
    found = json.loads(await host.exec("ip", "-json", "-4", "addr", "show", "docker0"))[0]
    return [found["ifindex"], [(each["local"], each["prefixlen"]) for each in found["addr_info"]]]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_second_address_changes_nothing_until_the_first_one_goes(overlay: Lab, backend: str) -> None:
    two = overlay.host(2)
    await two.exec("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth1/promote_secondaries")
    before, keys, docker, log = lives(overlay.hosts), published(overlay), await bridge(two), Log.from_now(two)
    async with losing_nothing(overlay, "c1", "c2"):
        await change(two, f"addr add {NEW} dev eth1")
    assert (published(overlay), log.lines("uplink")) == (keys, [])
    await change(two, f"addr del {OLD} dev eth1")
    await until_published(overlay, two, "192.168.50.112")
    await until_they_meet(overlay, f"{backend}, the first address went")
    await until_nothing_is_wrong(*overlay.hosts)
    assert lives(overlay.hosts) == before
    assert published(overlay) == {**keys, two.lease_key: "192.168.50.112"}
    assert await bridge(two) == docker
    assert len(log.lines("uplink:", "192.168.50.112, it was 192.168.50.12")) == 1


@pytest.mark.topology(hosts=2)
async def test_a_virtual_address_that_comes_first_is_not_taken_and_not_missed(overlay: Lab) -> None:
    """keepalived's: it comes, after a reconnect it stands before the host's own, at a restart too; then it goes."""
    two = overlay.host(2)
    before, keys, log = lives(overlay.hosts), published(overlay), Log.from_now(two)
    async with losing_nothing(overlay, "c1", "c2"):
        await change(two, f"addr add {VIP} dev eth1")
    await change(
        two, f"addr del {VIP} dev eth1", f"addr del {OLD} dev eth1", f"addr add {VIP} dev eth1", f"addr add {OLD} dev eth1"
    )
    await until_they_meet(overlay, "the virtual address comes first")
    assert published(overlay) == keys
    assert lives(overlay.hosts) == before
    await two.agent.restart()
    await until_they_meet(overlay, "restarted, the virtual address first")
    assert published(overlay) == keys
    async with losing_nothing(overlay, "c1", "c2"):
        await change(two, f"addr del {VIP} dev eth1")
    assert published(overlay) == keys
    assert log.lines("192.168.50.200") == []


@pytest.mark.topology(hosts=2)
async def test_the_interface_by_which_an_address_is_reached_is_followed(overlay: Lab) -> None:
    """192.0.2.77 is reached by eth1 at first, then by eth0, then by eth1 again."""
    two = overlay.host(2)
    await two.exec("ip", "route", "add", "192.0.2.77", "via", "192.168.50.5")
    await relaunch(two, "--iface-can-reach=192.0.2.77")
    await two.agent.ready()
    before, log = lives(overlay.hosts), Log.from_now(two)
    assert published(overlay)[two.lease_key] == "192.168.50.12"
    await two.exec("ip", "route", "replace", "192.0.2.77", "via", "10.0.2.2")
    await until_said(log, "uplink:", "eth0", timeout_s=WITHIN_S)
    await until_published(overlay, two, "10.0.2.15")
    await two.exec("ip", "route", "replace", "192.0.2.77", "via", "192.168.50.5")
    await until_published(overlay, two, "192.168.50.12")
    await until_they_meet(overlay, "reached by eth1 again")
    await until_nothing_is_wrong(two)
    assert lives(overlay.hosts) == before


@pytest.mark.topology(hosts=2)
async def test_behind_a_gateway_what_is_advertised_stays_when_the_own_address_changes(overlay: Lab) -> None:
    two = overlay.host(2)
    await relaunch(two, "--iface=eth1", f"--public-ip={FAR}")
    await two.agent.ready()
    before, keys = lives(overlay.hosts), published(overlay)
    assert keys[two.lease_key] == FAR
    await change(two, f"addr del {OLD} dev eth1", f"addr add {NEW} dev eth1")

    async def follows() -> bool:
        return (await device(two))["linkinfo"]["info_data"]["local"] == "192.168.50.112"

    await until(follows, WITHIN_S, "the device sends from the new address", lambda: Log.of(two).text[-1500:])
    await until_nothing_is_wrong(two)
    assert published(overlay) == keys
    assert lives(overlay.hosts) == before


@pytest.mark.topology(hosts=2)
async def test_public_ip_alone_takes_the_interface_that_has_it(lab: Lab) -> None:
    """As flanneld does: the default route is eth0's, whose address all hosts share."""
    for host in lab.hosts:
        host.selector = (f"--public-ip={host.address}",)
    await lab.start_agents()
    await lab.connect_containers()
    await until_they_meet(lab, "--public-ip alone")
    assert sorted(published(lab).values()) == ["192.168.50.11", "192.168.50.12"]
    assert (await device(lab.host(1)))["linkinfo"]["info_data"]["local"] == "192.168.50.11"
