"""Does any fault of etcd cost a packet or a peer?

c1 - h1 ==== vxlan 1 ==== h2 - c2         etcd is killed, stands still, forgets, loses everything; pings from c1 to c2 all the while
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from netns_lab.lab import Lab
from netns_lab.topology import Topology
from tests.chaos.chaos_support import APART, EVERY_DEADLINE_S, GONE, LATE, cut_off, put_peer, stopped, unharmed, until_put
from tests.lab.agent_support import (
    SUBNETS,
    Log,
    Vtep,
    lease_of,
    put_many,
    time_to_live,
    until,
    until_gone,
    until_programmed,
    until_said,
    vtep,
)

two_hosts = pytest.mark.topology(hosts=2)
three_members = pytest.mark.topology(hosts=2, etcd=3)


# ------------------------------------------------------------------------------------------------------- one member


@two_hosts
async def test_kill_and_restart(overlay: Lab) -> None:
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    put_peer(overlay, GONE)
    await until_programmed(one, GONE)
    async with unharmed(overlay, "one member, kill -9, away 3 s", leaving=[GONE]):
        overlay.etcd.kill()
        await until_said(log, "etcd does not answer", timeout_s=10)
        overlay.etcd.restart()
        put_peer(overlay, LATE)
        overlay.etcd.delete(GONE.key)
        await until_programmed(one, LATE, timeout_s=6)
        await until_gone(one, GONE, timeout_s=8)
        await until_said(log, "resolved: ", "etcd", timeout_s=5)


@two_hosts
async def test_standing_still_for_longer_than_every_deadline(overlay: Lab) -> None:
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    async with unharmed(overlay, "one member, SIGSTOP for 13 s"):
        with stopped(overlay, 0):
            await asyncio.sleep(EVERY_DEADLINE_S)
            assert log.lines("etcd does not answer")
        put_peer(overlay, LATE)
        await until_programmed(one, LATE, timeout_s=6)
        await until_said(log, "resolved: ", "etcd", timeout_s=5)
    assert len(log.begun("does not answer")) == 1


@two_hosts
async def test_a_watch_that_goes_deaf_for_less_than_a_deadline(overlay: Lab) -> None:
    """Too short for anybody to say a word; what came meanwhile is followed as if nothing had been."""
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    async with unharmed(overlay, "one member, SIGSTOP for 1.5 s, three times"):
        for number in range(3):
            with stopped(overlay, 0):
                await asyncio.sleep(1.5)
            peer = Vtep(f"10.1.{80 + number}.0/24", f"192.168.50.{80 + number}", f"02:00:00:00:00:8{number}")
            put_peer(overlay, peer)
            await until_programmed(one, peer, timeout_s=4)
    assert log.lines("warning:") + log.lines("error:") == []


@two_hosts
async def test_history_that_is_compacted_while_nobody_listens(overlay: Lab) -> None:
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    put_peer(overlay, GONE)
    await until_programmed(one, GONE)
    async with unharmed(overlay, "compaction while h1 is cut off", leaving=[GONE]):
        async with cut_off(one):
            await until_said(log, "etcd does not answer", timeout_s=20)
            put_peer(overlay, LATE)
            overlay.etcd.delete(GONE.key)
            overlay.etcd.compact()
            assert not await LATE.programmed(one)
        await until_programmed(one, LATE, timeout_s=10)
        await until_gone(one, GONE, timeout_s=8)


@two_hosts
async def test_defragmentation(overlay: Lab) -> None:
    one = overlay.host(1)
    put_many(overlay, {f"/elsewhere/{number}": "x" * 1000 for number in range(1500)})
    overlay.etcd.ctl("del", "--prefix", "/elsewhere/")
    async with unharmed(overlay, "defragmentation, twice"):
        for peer in (LATE, GONE):
            overlay.etcd.compact()
            overlay.etcd.ctl("defrag")
            put_peer(overlay, peer)
            await until_programmed(one, peer, timeout_s=6)


@two_hosts
async def test_all_data_is_lost(overlay: Lab) -> None:
    """The disk is new, the config is put back. Peers are held until they return, and every host returns with what it had."""
    one, two = overlay.host(1), overlay.host(2)
    own, peer = await vtep(one), await vtep(two)
    put_peer(overlay, GONE)
    await until_programmed(one, GONE)
    log = Log.from_now(one)
    async with unharmed(overlay, "one member, data lost"):
        overlay.etcd.wipe()
        await overlay.put_config(overlay.topology.network_config)
        await until(lambda: overlay.etcd.keys(SUBNETS) == sorted([own.key, peer.key]), 10, "both keys are there again")
        await until_said(log, "lost", timeout_s=10)
        for each in (own, peer):
            assert overlay.etcd.get(each.key) == each.value
            assert time_to_live(overlay, lease_of(overlay, each.key))[0] == 86400
        put_peer(overlay, LATE)
        await until_programmed(one, LATE, peer, GONE, timeout_s=5)  # GONE has not returned yet, and is waited for
        await until_programmed(two, LATE, own, GONE, timeout_s=5)


@two_hosts
async def test_all_data_is_lost_and_others_have_written_more_than_we_knew(overlay: Lab) -> None:
    """Nothing in the revisions tells that they have started over: they are higher than before."""
    one, two = overlay.host(1), overlay.host(2)
    own, peer = await vtep(one), await vtep(two)
    async with unharmed(overlay, "one member, data lost, revision higher than before"):
        for host in overlay.hosts:
            host.agent.signal(signal.SIGSTOP)
        overlay.etcd.wipe()
        await overlay.put_config(overlay.topology.network_config)
        for number in range(10):
            overlay.etcd.put(f"/elsewhere/{number}", "x")
        for host in overlay.hosts:
            host.agent.signal(signal.SIGCONT)
        await until(lambda: overlay.etcd.keys(SUBNETS) == sorted([own.key, peer.key]), 20, "both keys are there again")


# ---------------------------------------------------------------------------------------------------- three members


@three_members
async def test_three_members_the_leader_is_killed(overlay: Lab) -> None:
    one = overlay.host(1)
    async with unharmed(overlay, "three members, kill -9 of the leader"):
        leader = overlay.etcd.leader()
        overlay.etcd.kill(leader)
        await until_put(overlay, LATE)
        await until_programmed(one, LATE, timeout_s=8)
        overlay.etcd.restart(leader)
        await until_put(overlay, GONE)
        await until_programmed(one, GONE, timeout_s=5)


async def test_three_members_some_stand_still(lab_name: str) -> None:
    """The leader is among them: with one of them the others go on, with two nobody can write, with three nobody answers.

    Three labs at once: what is tested is waiting.
    """
    async with asyncio.TaskGroup() as labs:
        for how_many in (1, 2, 3):
            labs.create_task(let_some_stand_still(f"{lab_name}-{how_many}", how_many))


async def let_some_stand_still(name: str, how_many: int) -> None:
    async with Lab.up(Topology(hosts=2, etcd=3, config=APART), name=name) as lab:
        await lab.start_agents()
        await lab.connect_containers()
        one = lab.host(1)
        async with unharmed(lab, f"three members, SIGSTOP of {how_many} for 13 s"):
            leader = lab.etcd.leader()
            with stopped(lab, *[(leader + number) % 3 for number in range(how_many)]):
                if how_many == 1:
                    await until_put(lab, GONE)
                    await until_programmed(one, GONE, timeout_s=10)
                await asyncio.sleep(EVERY_DEADLINE_S)
            await until_put(lab, LATE)
            await until_programmed(one, LATE, timeout_s=8)
        for host in lab.hosts:
            assert "Traceback" not in Log.of(host).text
