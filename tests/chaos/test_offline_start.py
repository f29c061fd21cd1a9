"""Does a host that boots while etcd is away come up?

c1 - h1 ==== vxlan 1 ==== h2 - c2         etcd is killed, h1 reboots (its device goes, with all that hangs on it)
"""

from __future__ import annotations

import signal

import pytest

from netns_lab.lab import Lab
from tests.chaos.chaos_support import GONE, LATE, put_peer, unharmed
from tests.lab.agent_support import Log, until, until_gone, until_programmed, until_said, vtep


async def reboot_without_etcd(lab: Lab) -> None:
    """h1's agent ends, etcd ends, everything that h1's kernel had is gone; subnet.env lay on a tmpfs."""
    one = lab.host(1)
    await one.agent.stop()
    lab.etcd.kill()
    await one.exec("ip", "link", "del", "flannel.1")
    await one.exec("nft", "flush", "ruleset")
    one.subnet_file.unlink()


@pytest.mark.topology(hosts=2)
async def test_a_host_comes_up_from_what_it_kept_and_corrects_itself_later(overlay: Lab) -> None:
    one, two = overlay.host(1), overlay.host(2)
    put_peer(overlay, GONE)
    await until_programmed(one, GONE)
    own, peer, env = await vtep(one), await vtep(two), one.subnet_file.read_text()
    await reboot_without_etcd(overlay)
    log = Log.from_now(one)
    await one.start_agent(within_s=15)
    assert one.subnet_file.read_text() == env
    assert await vtep(one) == own
    await until_programmed(one, peer, GONE)
    await until_said(log, "3 leases as of revision", timeout_s=5)
    assert (await overlay.ping("c1", "c2")).ok

    for host in overlay.hosts:  # what happens before they can look is part of what they missed
        host.agent.signal(signal.SIGSTOP)
    overlay.etcd.restart()
    overlay.etcd.delete(GONE.key)
    put_peer(overlay, LATE)
    for host in overlay.hosts:
        host.agent.signal(signal.SIGCONT)
    async with unharmed(overlay, "h1 started without etcd, etcd returns", leaving=[GONE]):
        await until_programmed(one, LATE, timeout_s=10)
        await until_gone(one, GONE, timeout_s=10)
        await until_said(log, "resolved: ", "not been reached since the start", timeout_s=5)
    assert overlay.etcd.get(own.key) == own.value


@pytest.mark.topology(hosts=2)
async def test_an_outage_begins_while_the_agent_is_down_and_the_peer_has_moved_when_it_ends(overlay: Lab) -> None:
    """What was kept says that h2 has its old subnet: nothing may be left of it when etcd tells of the new one."""
    one, two = overlay.host(1), overlay.host(2)
    old = await vtep(two)
    await two.agent.stop()
    overlay.etcd.delete(old.key)
    await until_gone(one, old, timeout_s=8)
    await reboot_without_etcd(overlay)
    await one.start_agent(within_s=15)
    assert await old.traces(one) == []
    overlay.etcd.restart()
    two.subnet_file.unlink()
    await two.exec("ip", "link", "del", "flannel.1")
    await two.start_agent()
    await until_programmed(one, await vtep(two), timeout_s=10)
    await overlay.connect_containers()
    assert (await overlay.ping("c1", "c2")).ok


@pytest.mark.topology(hosts=1, containers=0)
async def test_without_anything_kept_it_waits(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.kill()
    agent = one.launch_agent()
    await until(lambda: Log.of(one).path.exists() and Log.of(one).lines("etcd does not answer"), 10, "it says that it waits")
    assert not one.subnet_file.exists()
    assert "READY" not in agent.said
    lab.etcd.restart()
    await agent.ready(within_s=8)
