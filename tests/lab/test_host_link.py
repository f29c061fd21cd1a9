"""Does an agent follow its uplink through all that may happen to an interface?

c1 - h1 ==== overlay ==== h2 - c2         etcd apart; it is h2's eth1 that goes, comes, shrinks, grows, or lies in a bridge
"""

from __future__ import annotations

import asyncio

import pytest

from netns_lab.footprint import processor_s
from netns_lab.lab import Lab
from netns_lab.traffic import Pair, transfer
from tests.lab.agent_support import Log, lab_name, no_traceback, settled_overlay, shell, until, until_said  # noqa: F401
from tests.lab.host_support import (
    BACKENDS,
    WITHIN_S,
    change,
    conditions,
    device,
    lives,
    published,
    relaunch,
    told,
    until_condition,
    until_nothing_is_wrong,
    until_they_meet,
)

STREAM = 60_000_000
HOLDER = """
import socket, time
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("0.0.0.0", 8472))
print("bound", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("backend", BACKENDS)
async def test_an_uplink_that_is_deleted_and_made_anew_under_its_name_is_the_same_uplink(overlay: Lab, backend: str) -> None:
    two = overlay.host(2)
    before, keys, log = lives(overlay.hosts), published(overlay), Log.from_now(two)
    await two.make_uplink_anew()
    await until_they_meet(overlay, f"{backend}, made anew")
    await until_nothing_is_wrong(*overlay.hosts)
    assert lives(overlay.hosts) == before
    assert published(overlay) == keys
    assert log.lines("again and again") == []
    assert log.lines("IPAddress(") == []


@pytest.mark.topology(hosts=2)
async def test_an_uplink_that_is_put_into_a_bridge_is_followed_where_its_address_goes(overlay: Lab) -> None:
    """With ``--iface ADDRESS`` the bridge is the uplink from then on: the address moves there."""
    two = overlay.host(2)
    await relaunch(two, "--iface=192.168.50.12")
    await two.agent.ready()
    before, keys = lives(overlay.hosts), published(overlay)
    await change(
        two,
        "link add br1 type bridge forward_delay 0",
        "link set br1 up",
        "addr del 192.168.50.12/24 dev eth1",
        "link set eth1 master br1",
        "addr add 192.168.50.12/24 dev br1",
    )
    await until_they_meet(overlay, "in a bridge")
    await until_nothing_is_wrong(*overlay.hosts)
    assert lives(overlay.hosts) == before
    assert published(overlay) == keys
    assert (await told(two))["uplink"]["interface"] == "br1"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_mtu_of_the_uplink_is_followed_under_a_stream(overlay: Lab, backend: str) -> None:
    one, two = overlay.hosts
    await overlay.box("net").exec("ip", "link", "set", "h2", "mtu", "9000")
    overhead = {"vxlan": 50, "host-gw": 0, "udp": 28}[backend]
    before = lives(overlay.hosts)
    source, target = overlay.container("c1"), overlay.container("c2")
    pair = Pair(source.namespace.path, target.namespace.path, str(target.address))
    stream = asyncio.create_task(transfer(pair, STREAM))
    for mtu in (1400, 9000, 1500):
        await two.exec("ip", "link", "set", "eth1", "mtu", str(mtu))
        await until(lambda mtu=mtu: two.subnet_env().get("FLANNEL_MTU") == str(mtu - overhead), WITHIN_S, f"FLANNEL_MTU for {mtu}")
        document = await told(two)
        assert document["backend"]["mtu"] == mtu - overhead
        assert document["uplink"]["mtu"] == mtu
        if backend != "host-gw":
            assert (await device(two, "flannel0" if backend == "udp" else "flannel.1"))["mtu"] == mtu - overhead
    done = await asyncio.wait_for(stream, 60)
    assert (done.octets, done.sent) == (STREAM, done.got)
    assert lives(overlay.hosts) == before
    await until_nothing_is_wrong(one, two)


@pytest.mark.topology(hosts=2, config={"Backend": {"MTU": 9000}})
async def test_an_mtu_above_what_one_host_carries_is_clamped_there(lab: Lab) -> None:
    one, two = lab.hosts
    for host, port in ((one, "h1"), (two, "h2")):
        await lab.box("net").exec("ip", "link", "set", port, "mtu", "9500")
        await host.exec("ip", "link", "set", "eth1", "mtu", "9500" if host is one else "1500")
    await lab.start_agents()
    assert [host.subnet_env()["FLANNEL_MTU"] for host in lab.hosts] == ["8950", "1450"]
    text = await until_condition(two, "mtu-clamped")
    assert "9000" in text
    assert "1500" in text
    await two.agent.restart()
    assert two.subnet_env()["FLANNEL_MTU"] == "1450"
    await two.exec("ip", "link", "set", "eth1", "mtu", "9500")
    await until(lambda: two.subnet_env()["FLANNEL_MTU"] == "8950", WITHIN_S, "all of it where the uplink carries it")
    await until_nothing_is_wrong(one, two)


@pytest.mark.topology(hosts=2)
async def test_an_uplink_that_is_missing_at_the_start_is_waited_for(lab: Lab) -> None:
    one, two = lab.hosts
    await one.start_agent()
    await change(two, "link set eth1 down", "link set eth1 name later0")
    agent = two.launch_agent()
    # Without eth1 there is no way to etcd either: what is read on this host is all there is.
    await change(two, "link set later0 up")
    text = await until_condition(two, "uplink-missing")
    assert "eth1" in text
    assert "READY" not in agent.said
    assert (await told(two))["ready"] is False
    await change(two, "link set later0 down", "link set later0 name eth1", "link set eth1 up")
    await agent.ready(within_s=WITHIN_S)
    await lab.connect_containers()
    await until_they_meet(lab, "the uplink came")
    await until_nothing_is_wrong(one, two)


@pytest.mark.topology(hosts=2)
async def test_without_an_uplink_everything_is_held_and_it_is_said(overlay: Lab) -> None:
    two = overlay.host(2)
    before, keys, log = lives(overlay.hosts), published(overlay), Log.from_now(two)
    env = two.subnet_file.read_bytes()
    await change(two, "addr del 192.168.50.12/24 dev eth1")
    await until_condition(two, "uplink-missing")
    assert (await told(two))["ready"] is False
    assert (published(overlay), two.subnet_file.read_bytes()) == (keys, env)
    assert await shell(two, "ip -br link show flannel.1") != []
    await change(two, "addr add 192.168.50.12/24 dev eth1")
    await until_they_meet(overlay, "the address is back")
    await until_nothing_is_wrong(*overlay.hosts)
    assert lives(overlay.hosts) == before
    assert len(log.lines("error:", "no uplink")) == 1
    assert len(log.lines("resolved:", "no uplink")) == 1


@pytest.mark.topology(hosts=2)
async def test_a_port_that_is_taken_costs_little_and_heals_when_it_is_free(lab: Lab) -> None:
    """Somebody has bound UDP 8472: one condition that names it, next to no processor time, and ready soon after it is free."""
    one, two = lab.hosts
    await one.start_agent()
    holder = two.namespace.spawn("holder", ["python3", "-c", HOLDER], log=two.directory / "holder.out", lasting=False)
    await until(lambda: "bound" in holder.printed(), WITHIN_S, "the port is taken")
    agent = two.launch_agent()
    text = await until_condition(two, "kernel-refused")
    assert "8472" in text
    await asyncio.sleep(8)  # the first attempts follow each other more quickly, and what waits for them falls due
    began = processor_s(agent.pid), processor_s(one.agent.pid)
    await asyncio.sleep(6)
    taken, idle = processor_s(agent.pid) - began[0], processor_s(one.agent.pid) - began[1]
    print(f"port taken: {taken / 6:.4f} of a core, an idle agent {idle / 6:.4f}")
    assert taken < idle + 0.05 * 6, f"{taken:.3f} s in 6 s, an idle agent takes {idle:.3f} s"
    assert list(await conditions(two)) == ["kernel-refused"]
    assert len((await told(two))["conditions"]) == 1
    await holder.kill()
    await agent.ready(within_s=WITHIN_S)
    await until_nothing_is_wrong(one, two)
