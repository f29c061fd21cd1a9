"""What becomes of a host that lives and cannot reach etcd?

c1 - h1 ==== vxlan 1 ==== h2 - c2         packets between etcd 192.168.50.5 and h1 (or everybody) vanish; leases last 5 s
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from netns_lab.lab import Lab
from tests.chaos.chaos_support import LATE, cut_off, put_peer, unharmed
from tests.lab.agent_support import SUBNETS, Log, put_leased, until, until_gone, until_programmed, until_said, vtep

SHORT = ("--subnet-lease-ttl=5",)


@pytest.fixture
async def short_lived(lab: Lab) -> Lab:
    """Agents whose leases end 5 s after the last that was heard of them."""
    await lab.start_agents(*SHORT)
    await lab.connect_containers()
    return lab


@asynccontextmanager
async def etcd_unplugged(lab: Lab) -> AsyncIterator[None]:
    """The cable of etcd's machine is pulled: nobody reaches it."""
    switch = lab.box("net")
    await switch.exec("ip", "link", "set", "etcd", "down")
    try:
        yield
    finally:
        await switch.exec("ip", "link", "set", "etcd", "up")


@pytest.mark.topology(hosts=2)
async def test_one_host_is_cut_off_for_longer_than_its_lease(short_lived: Lab) -> None:
    """Its key expires, and the host is alive: it answers its peers, so they go on sending to it."""
    lab, one, two = short_lived, short_lived.host(1), short_lived.host(2)
    own, log = await vtep(one), Log.from_now(one)
    async with unharmed(lab, "h1 cut off from etcd, its lease of 5 s expires, 7 s without it"):
        async with cut_off(one):
            await until(lambda: own.key not in lab.etcd.keys(SUBNETS), 15, "the key expires")
            await asyncio.sleep(7)
            put_peer(lab, LATE)
            await until_programmed(two, LATE, timeout_s=5)
        await until(lambda: own.key in lab.etcd.keys(SUBNETS), 10, "the same key again")
        assert lab.etcd.get(own.key) == own.value
        await until_programmed(one, LATE, timeout_s=6)
    await until_said(log, "ours again", timeout_s=5)


@pytest.mark.topology(hosts=2)
async def test_everybody_is_cut_off_for_longer_than_the_leases(short_lived: Lab) -> None:
    """All keys expire. The hosts return one after the other, and none may take the late ones for gone."""
    lab, one, two = short_lived, short_lived.host(1), short_lived.host(2)
    own, peer = await vtep(one), await vtep(two)
    async with unharmed(lab, "etcd unplugged, all leases expire, h2 returns 5 s after h1"):
        async with cut_off(two):
            async with etcd_unplugged(lab):
                await asyncio.sleep(9)  # the leases, and etcd's own time to notice
            await until(lambda: lab.etcd.keys(SUBNETS) == [own.key], 15, "h1 is back, h2 is not")
            await asyncio.sleep(5)
        await until(lambda: lab.etcd.keys(SUBNETS) == sorted([own.key, peer.key]), 15, "both are back")
        assert (lab.etcd.get(own.key), lab.etcd.get(peer.key)) == (own.value, peer.value)


@pytest.mark.topology(hosts=2)
async def test_a_key_that_is_deleted_on_purpose_goes_soon_and_one_that_expired_when_its_subnet_is_taken(overlay: Lab) -> None:
    one = overlay.host(1)
    ending = put_leased(overlay, LATE.key, LATE.value, 5)
    await until_programmed(one, LATE)
    overlay.etcd.ctl("lease", "revoke", ending)
    await asyncio.sleep(5)
    assert await LATE.programmed(one)
    overlay.etcd.delete(LATE.key)  # nothing there
    heir = type(LATE)(LATE.subnet, "192.168.50.99", "02:00:00:00:00:99")
    put_peer(overlay, heir)
    await until_programmed(one, heir)
    assert LATE.fdb not in await one.exec("bridge", "fdb", "show", "dev", "flannel.1")
    overlay.etcd.delete(heir.key)
    await until_gone(one, heir, timeout_s=6)
