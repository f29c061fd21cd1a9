"""Does traffic notice that the agent is killed, stopped, started, started twice?

c1 - h1 ==== vxlan 1 ==== h2 - c2         etcd apart; c1 pings c2 a hundred times a second
"""

from __future__ import annotations

import signal
import time

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    Log,
    Vtep,
    fdb,
    lab_name,
    losing_nothing,
    neighbours,
    no_traceback,
    put_leased,
    record,
    routes,
    settled_overlay,
    shell,
    until,
    until_gone,
    until_programmed,
    vtep,
)


async def kernel_text(host: Host) -> list[str]:
    """All that the agent has programmed, as text."""
    return [
        *await shell(host, "ip -o link show flannel.1"),
        *await shell(host, "ip -4 -o addr show dev flannel.1"),
        *await routes(host, "proto 102"),
        *await neighbours(host),
        *await fdb(host),
        *await shell(host, "nft -s -t list table inet flannelpy"),
    ]


@pytest.mark.parametrize("how", ["kill -9", "stop"])
@pytest.mark.topology(hosts=2)
async def test_an_agent_that_comes_again_is_the_same_host_and_loses_no_packet(overlay: Lab, how: str) -> None:
    one, two = overlay.host(1), overlay.host(2)
    before = await vtep(one)
    kernel = await kernel_text(one)
    modified = record(overlay, before.key)["mod_revision"]
    async with losing_nothing(overlay, "c1", "c2"):
        if how == "stop":
            assert await one.agent.stop() == 0
        else:
            await one.agent.kill()
        assert await kernel_text(one) == kernel  # nothing was taken away
        assert await before.missing(two) == []
        # While it is down a peer goes and another comes.
        late = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
        put_leased(overlay, late.key, late.value)
        await until_programmed(two, late)
        assert await late.traces(one) == []
        await one.start_agent()
        await until_programmed(one, late)
    assert await vtep(one) == before
    assert record(overlay, before.key)["create_revision"] <= modified  # the key was never away
    assert [line for line in await kernel_text(one) if "10.1.77.0" not in line and late.mac not in line] == kernel
    assert await before.missing(two) == []


@pytest.mark.topology(hosts=2)
async def test_a_peer_that_left_while_the_agent_was_down_leaves_nothing(overlay: Lab) -> None:
    one = overlay.host(1)
    gone = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    put_leased(overlay, gone.key, gone.value)
    await until_programmed(one, gone)
    await one.agent.kill()
    overlay.etcd.delete(gone.key)
    assert await gone.missing(one) == []
    async with losing_nothing(overlay, "c1", "c2"):
        await one.start_agent()
        await until_gone(one, gone)


@pytest.mark.topology(hosts=2)
async def test_a_second_agent_on_one_run_directory_says_so_and_leaves_the_first_alone(overlay: Lab) -> None:
    one = overlay.host(1)
    before = await kernel_text(one)
    async with losing_nothing(overlay, "c1", "c2"):
        second = await one.attempt(*one.agent_words())
    assert second.code == 1
    said = [line for line in (second.stdout + second.stderr).splitlines() if str(one.run_dir) in line]
    assert len(said) == 1
    assert "Traceback" not in second.stderr
    assert len((second.stdout + second.stderr).splitlines()) <= 2  # the version, and why not
    assert one.agent.running
    assert await kernel_text(one) == before
    # The first still does its work.
    late = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    put_leased(overlay, late.key, late.value)
    await until_programmed(one, late)


@pytest.mark.topology(hosts=2)
async def test_twice_started_in_a_row_changes_nothing_in_etcd_or_the_kernel(overlay: Lab) -> None:
    one = overlay.host(1)
    before, kernel = await vtep(one), await kernel_text(one)
    async with losing_nothing(overlay, "c1", "c2"):
        for _ in range(2):
            await one.agent.restart()
            assert await vtep(one) == before
    assert await kernel_text(one) == kernel
    assert len(overlay.etcd.keys("/coreos.com/network/subnets")) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.topology(hosts=1, containers=0)
async def test_a_stop_takes_less_than_a_second_and_leaves_the_kernel_as_it_is(overlay: Lab, number: signal.Signals) -> None:
    host = overlay.host(1)
    peer = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    put_leased(overlay, peer.key, peer.value)
    await until_programmed(host, peer)
    before, env, key = await kernel_text(host), host.subnet_file.read_bytes(), host.lease_key
    for repeats in (1, 2):  # once, and by an impatient hand
        start = time.monotonic()
        for _ in range(repeats):
            host.agent.signal(number)
        assert await host.agent.process.wait(5) == 0
        assert time.monotonic() - start < 1
        await until(lambda: host.agent.said.get("STOPPING") == "1", 1, "STOPPING=1", lambda: dict(host.agent.said))
        assert await kernel_text(host) == before
        assert host.subnet_file.read_bytes() == env
        assert overlay.etcd.get(key) is not None
        assert Log.of(host).lines("warning:") + Log.of(host).lines("error:") == []
        await host.start_agent()


@pytest.mark.topology(hosts=1, containers=0)
async def test_a_stop_before_it_is_ready_is_a_clean_stop_too(lab: Lab) -> None:
    host = lab.host(1)
    lab.etcd.delete("/coreos.com/network/config")
    agent = host.launch_agent()
    await until(lambda: Log.of(host).lines("is missing"), 5, "it waits for a config", lambda: Log.of(host).text)
    start = time.monotonic()
    assert await agent.stop() == 0
    assert time.monotonic() - start < 1
