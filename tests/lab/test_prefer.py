"""Do two hosts use between them what both prefer, and the network's Type with everybody else, and is no packet lost on the way?

c1 - h1 192.168.50.11 ====+==== h2 192.168.50.12 - c2
                          |
                     h4, a router 192.168.50.14
                          |
                         h3 192.168.50.13 - c3                    vxlan, Prefer host-gw; etcd apart; captures on eth1
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    Log,
    captured,
    lab_name,
    losing_nothing,
    no_probes,
    no_traceback,
    routes,
    until,
    until_said,
)
from tests.lab.host_support import change, offering, told, until_nothing_is_wrong, until_they_meet
from tests.lab.test_flanneld import FLANNELD, flanneld_words

HOSTS = f"{PREFIX}/flannelpy/hosts"
WITHIN_S = 30.0
REDIRECTS = ("conf.all.send_redirects=0", "conf.eth1.send_redirects=0")
ALL = ("c1", "c2", "c3")
PREFERRED = {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Prefer": ["host-gw", "wireguard"]}}
PLAIN = {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}

pytestmark = [pytest.mark.topology(hosts=4), pytest.mark.usefixtures("no_probes")]


async def behind_a_router(lab: Lab) -> None:
    """Let the third host be reached, and reach the others, by way of the fourth."""
    router = lab.host(4)
    await router.exec("sysctl", "-qw", *(f"net.ipv4.{each}" for each in ("ip_forward=1", *REDIRECTS)))
    await change(lab.host(3), *(f"route add 192.168.50.{end} via 192.168.50.14" for end in (11, 12)))
    for number in (1, 2):
        await change(lab.host(number), "route add 192.168.50.13 via 192.168.50.14")


async def begin(lab: Lab, config: dict[str, object], **options: str) -> tuple[Host, Host, Host]:
    await lab.put_config(config)
    await behind_a_router(lab)
    one, two, three = (lab.host(number) for number in (1, 2, 3))
    for host in (one, two, three):
        await host.start_agent(*([options[host.name]] if host.name in options else []))
    await asyncio.gather(*(host.connect_containers() for host in (one, two, three)))
    await until_they_meet(lab, "at first", *ALL)
    return one, two, three


async def ways(host: Host) -> dict[str, str]:
    """By what each peer is reached, by its address, as the host's agent says; and the kernel's own device."""
    document: dict[str, Any] = await told(host)
    return {each["PublicIP"]: each["carrier"] for each in document["peers"]}


async def until_reached(host: Host, wanted: dict[Host, str]) -> None:
    """Wait until host reaches these by vxlan or host-gw, as the kernel has it."""
    lines = []
    for peer, carrier in wanted.items():
        net = str(peer.subnet)
        base = net.partition("/")[0]
        vxlan = f"{net} via {base} dev flannel.1 proto 102 onlink"
        lines.append(vxlan if carrier == "vxlan" else f"{net} via {peer.address} dev eth1 proto 102")

    async def reached() -> bool:
        there = await routes(host)
        return all(line in there for line in lines)

    await until(reached, WITHIN_S, f"{host.name}: {lines}", lambda: Log.of(host).text[-2500:])


async def test_direct_on_one_link_and_vxlan_through_the_router_both_ways(lab: Lab) -> None:
    one, two, three = await begin(lab, PREFERRED)
    await until_reached(one, {two: "host-gw", three: "vxlan"})
    await until_reached(two, {one: "host-gw", three: "vxlan"})
    await until_reached(three, {one: "vxlan", two: "vxlan"})
    await until_they_meet(lab, "each by its way", *ALL)
    async with lab.pcap("h2", "eth1", "udp port 8472 or icmp") as capture:
        assert (await lab.ping("c1", "c2")).ok
        assert (await lab.ping("c2", "c1")).ok
        lines = await captured(capture, 4)
    assert all("ICMP echo" in line and ".8472: " not in line for line in lines)
    async with lab.pcap("h3", "eth1", "udp port 8472") as capture:
        assert (await lab.ping("c1", "c3")).ok
        assert (await lab.ping("c3", "c1")).ok
        lines = await captured(capture, 8)  # the packet, and the one inside
    assert sum(".8472: " in line for line in lines) == 4
    document = await told(one)
    reasons = {each["PublicIP"]: (each["carrier"], each["reason"]) for each in document["peers"]}
    assert reasons["192.168.50.12"] == ("host-gw", "both offer it")
    assert reasons["192.168.50.13"][0] == "vxlan"
    assert reasons["192.168.50.13"][1].startswith("host-gw: not on one link; wireguard: ")
    # The file's MTU is the tunnel's, for containers reach the third host, too.
    assert "FLANNEL_MTU=1450\n" in one.subnet_file.read_text()
    await until_nothing_is_wrong(one, two, three)


async def test_turned_on_and_off_loses_no_packet(lab: Lab) -> None:
    one, two, three = await begin(lab, PLAIN)
    await until_reached(one, {two: "vxlan", three: "vxlan"})
    async with losing_nothing(lab, "c1", "c2"), losing_nothing(lab, "c3", "c1"):
        for _ in range(3):
            await lab.put_config(PREFERRED)
            await until_reached(one, {two: "host-gw", three: "vxlan"})
            await until_reached(two, {one: "host-gw", three: "vxlan"})
            await lab.put_config(PLAIN)
            await until_reached(one, {two: "vxlan", three: "vxlan"})
            await until_reached(two, {one: "vxlan", three: "vxlan"})
    await until(lambda: not offering(lab), WITHIN_S, "no offer is left")
    await until_nothing_is_wrong(one, two, three)


async def test_a_host_that_wants_none_of_it_is_reached_by_the_type_and_changes_without_loss(lab: Lab) -> None:
    one, two, three = await begin(lab, PREFERRED, h2="--prefer=none")
    await until_reached(one, {two: "vxlan", three: "vxlan"})
    await until_reached(two, {one: "vxlan", three: "vxlan"})
    assert offering(lab) == sorted(f"{host.subnet}".replace("/", "-") for host in (one, three))
    assert set((await ways(two)).values()) == {"vxlan"}
    async with losing_nothing(lab, "c1", "c2"):
        await two.agent.stop()
        await two.start_agent()
        await until_reached(one, {two: "host-gw"})
        await until_reached(two, {one: "host-gw"})
        await two.agent.stop()
        await two.start_agent("--prefer=none")
        await until_reached(one, {two: "vxlan"})
        await until_reached(two, {one: "vxlan"})
    # And a restart in between, which finds everything as it was.
    await two.agent.stop()
    await two.start_agent()
    await until_reached(one, {two: "host-gw"})
    async with losing_nothing(lab, "c2", "c1"):
        await one.agent.stop()
        await one.start_agent()
        await until_reached(one, {two: "host-gw", three: "vxlan"})


async def test_junk_beside_a_lease_hurts_nobody(lab: Lab) -> None:
    one, two, three = await begin(lab, PREFERRED)
    await until_reached(one, {two: "host-gw"})
    log = Log.from_now(one)
    key = f"{HOSTS}/{three.subnet}".replace("0/24", "0-24")
    own = lab.etcd.get(key)
    async with losing_nothing(lab, "c1", "c2"), losing_nothing(lab, "c1", "c3"):
        junk = ("{", "[]", '{"PublicIP":"192.168.50.12","Carriers":{"host-gw":{}}}', "x" * 100_000, "\x1b[2J")
        for number, value in enumerate(junk):
            lab.etcd.put(key, value)
            lab.etcd.put(f"{HOSTS}/10.1.25{number}.0-24", value)
            lab.etcd.put(f"{HOSTS}/{value[:40]}", value)
        lab.etcd.put(f"{HOSTS}/{two.subnet}".replace("0/24", "0-24"), "junk")
        await until_reached(one, {two: "vxlan"})  # until it is put right by its host
        await until_reached(one, {two: "host-gw", three: "vxlan"})
        await until(lambda: lab.etcd.get(key) == own, WITHIN_S, "its host has put it right")
    assert "\x1b" not in log.text
    await until_said(log, "offer", "cannot be used")
    await until_reached(two, {one: "host-gw", three: "vxlan"})


@pytest.mark.skipif(not os.access(FLANNELD, os.X_OK), reason=f"no flanneld at {FLANNELD}: make flanneld builds it (with Go)")
async def test_with_a_real_flanneld_it_is_the_type_and_with_the_other_the_direct_way(lab: Lab) -> None:
    await lab.put_config(PREFERRED)
    one, two, three = (lab.host(number) for number in (1, 2, 3))
    await three.start_agent(program=flanneld_words(lab, three), within_s=60)
    await one.start_agent()
    await two.start_agent()
    await asyncio.gather(*(host.connect_containers() for host in (one, two, three)))
    await until_they_meet(lab, "mixed", *ALL)
    await until_reached(one, {two: "host-gw"})
    await until_reached(two, {one: "host-gw"})
    await until_they_meet(lab, "each by its way", *ALL)
    assert (await ways(one))["192.168.50.13"] == "vxlan"
    value = json.loads(lab.etcd.get(f"{SUBNETS}/{one.subnet}".replace("0/24", "0-24")) or "{}")
    assert sorted(value) == ["BackendData", "BackendType", "PublicIP", "PublicIPv6"]
