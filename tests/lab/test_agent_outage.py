"""Does anything but the log notice that etcd is away?

c1 - h1 ==== vxlan 1 ==== h2 - c2         etcd 192.168.50.5 is stopped, killed, cut off, compacted
"""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    Log,
    Vtep,
    lab_name,
    losing_nothing,
    no_traceback,
    put_leased,
    settled_overlay,
    until,
    until_cut_off,
    until_gone,
    until_programmed,
    until_said,
    vtep,
)

LATE = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
GONE = Vtep("10.1.78.0/24", "192.168.50.78", "02:00:00:00:00:78")


@pytest.mark.topology(hosts=2)
async def test_etcd_that_no_longer_answers_costs_nothing_and_is_said_once(overlay: Lab) -> None:
    """SIGSTOP: the connection stands, nothing comes back; only deadlines notice."""
    one = overlay.host(1)
    own, log = await vtep(one), Log.from_now(one)
    async with losing_nothing(overlay, "c1", "c2"):
        overlay.etcd.signal(0, signal.SIGSTOP)
        try:
            await until_said(log, "warning:", "etcd")
            # Whoever tampers with the kernel meanwhile is answered as ever.
            await one.exec("nft", "delete", "table", "inet", "flannelpy")

            async def back() -> bool:
                return "table inet flannelpy" in await one.exec("nft", "list", "tables")

            await until(back, 2, "the table is back", lambda: log.text)
        finally:
            overlay.etcd.signal(0, signal.SIGCONT)
        put_leased(overlay, LATE.key, LATE.value)
        await until_programmed(one, LATE)
        await until_said(log, "resolved: ", "etcd")
    assert len(log.begun("does not answer")) == 1
    assert await vtep(one) == own
    assert overlay.etcd.get(own.key) == own.value


@pytest.mark.topology(hosts=2)
async def test_etcd_killed_and_started_again_brings_what_was_missed(overlay: Lab) -> None:
    one = overlay.host(1)
    own = await vtep(one)
    put_leased(overlay, GONE.key, GONE.value)
    await until_programmed(one, GONE)
    log = Log.from_now(one)
    async with losing_nothing(overlay, "c1", "c2"):
        overlay.etcd.kill()
        await until_said(log, "etcd does not answer")
        # What happens before they can look is part of what they missed.
        for host in overlay.hosts:
            host.agent.signal(signal.SIGSTOP)
        overlay.etcd.restart()
        put_leased(overlay, LATE.key, LATE.value)
        overlay.etcd.delete(GONE.key)
        for host in overlay.hosts:
            host.agent.signal(signal.SIGCONT)
        await until_programmed(one, LATE)
        await until_gone(one, GONE)
        await until_said(log, "resolved: ", "etcd")
    assert len(log.begun("does not answer")) == 1
    assert overlay.etcd.get(own.key) == own.value
    assert len(overlay.etcd.keys(SUBNETS)) == 3


@pytest.mark.topology(hosts=2)
async def test_a_blip_of_a_second_is_no_news(overlay: Lab) -> None:
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    async with losing_nothing(overlay, "c1", "c2"):
        overlay.etcd.kill()
        overlay.etcd.restart()
        put_leased(overlay, LATE.key, LATE.value)
        await until_programmed(one, LATE)
    assert log.lines("warning:") + log.lines("error:") == []


@pytest.mark.topology(hosts=2)
async def test_a_cut_cable_to_etcd_and_compaction_meanwhile(overlay: Lab) -> None:
    """etcd forgets the revision that the watch was at: a new listing tells what went and what came."""
    one = overlay.host(1)
    put_leased(overlay, GONE.key, GONE.value)
    await until_programmed(one, GONE)
    reject = "table inet cut { chain c { type filter hook output priority 0; tcp dport 2379 reject with tcp reset; }; }"
    async with losing_nothing(overlay, "c1", "c2"):
        await one.exec("nft", "-f", "-", stdin=reject)
        await until_cut_off(one)
        put_leased(overlay, LATE.key, LATE.value)
        overlay.etcd.delete(GONE.key)
        overlay.etcd.compact()
        await until_programmed(overlay.host(2), LATE)
        assert await LATE.traces(one) == []
        await one.exec("nft", "delete", "table", "inet", "cut")
        await until_programmed(one, LATE)
        await until_gone(one, GONE)


@pytest.mark.topology(hosts=2)
async def test_an_etcd_that_lost_its_data_gets_every_host_back_with_its_subnet(overlay: Lab) -> None:
    """ "No data" is not "empty" for longer than it takes the hosts to write their leases again; they keep what they have."""
    one, two = overlay.host(1), overlay.host(2)
    own, peer = await vtep(one), await vtep(two)
    overlay.etcd.ctl("del", "--prefix", "/coreos.com/network")
    await until(lambda: overlay.etcd.keys(SUBNETS) == sorted([own.key, peer.key]), 5, "both keys are there again")
    await until_programmed(one, peer)
    await until_programmed(two, own)
    assert (await overlay.ping("c1", "c2")).ok
    assert (await vtep(one), await vtep(two)) == (own, peer)


@pytest.mark.topology(hosts=1, containers=0)
async def test_an_agent_started_before_etcd_waits_for_it(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.kill()
    agent = one.launch_agent()
    await until(lambda: Log.of(one).lines("etcd does not answer"), 10, "it says that it waits")
    assert "192.168.50.5:2379" in Log.of(one).lines("etcd does not answer")[0]
    assert agent.running
    lab.etcd.restart()
    await agent.ready(within_s=6)
    assert len(Log.of(one).begun("etcd does not answer")) == 1


@pytest.mark.topology(hosts=2, etcd=3)
async def test_the_leader_of_three_members_may_go(overlay: Lab) -> None:
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    status = [item["Status"] for item in json.loads(overlay.etcd.ctl("endpoint", "status", "-w", "json"))]
    leader = next(number for number, item in enumerate(status) if item["leader"] == item["header"]["member_id"])
    async with losing_nothing(overlay, "c1", "c2"):
        overlay.etcd.kill(leader)
        await put_somewhere(overlay, LATE)
        await until_programmed(one, LATE)
        overlay.etcd.restart(leader)
        await put_somewhere(overlay, GONE)
        await until_programmed(one, GONE)
    assert log.begun("error:") == []
    # Where the members take long to elect one, that is told: in these words, and once.
    assert all("no leader" in line for line in log.begun("does not answer"))
    assert len(log.begun("does not answer")) <= 1


async def put_somewhere(lab: Lab, peer: Vtep) -> None:
    """Put while the members elect a leader."""
    for attempt in range(20):
        try:
            put_leased(lab, peer.key, peer.value)
        except Exception:
            if attempt == 19:
                raise
            await asyncio.sleep(0.1)
        else:
            return
