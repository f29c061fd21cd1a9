"""Does a host say within 15 seconds that a peer is not reached, and what is wrong? And is it silent when nothing is?

h1 192.168.50.11 ==== vxlan, udp or host-gw ==== h2 192.168.50.12, h3 192.168.50.13         etcd 192.168.50.5
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import SUBNETS, Vtep, lab_name, no_traceback, put_many, settled_overlay  # noqa: F401

WITHIN_S = 40.0
"""For what is said within 15 seconds on a machine that has nothing else to do."""

ENCAPSULATED = ["vxlan", "udp"]
BACKENDS = [*ENCAPSULATED, "host-gw"]
Said = dict[str, Any]


async def exit_code(host: Host) -> int:
    """How ``flannelpy status`` ends."""
    return (await host.attempt(sys.executable, "-m", "flannelpy", "status", f"--run-dir={host.run_dir}")).code


def probe(said: Said, address: str) -> Said:
    """What is said of the peer at this PublicIP."""
    found = next(peer["probe"] for peer in said["peers"] if peer["PublicIP"] == address)
    return found or {"state": "not asked", "why": ""}


def holds(said: Said, code: str) -> list[str]:
    return [condition["text"] for condition in said["conditions"] if condition["code"] == code]


async def until_told(host: Host, fact: Callable[[Said], object], within_s: float = WITHIN_S) -> tuple[Said, float]:
    """Wait until the status is like this; the status, and how long that took in seconds."""
    began = time.monotonic()
    while not fact(said := await host.status()):
        peers = [(peer["PublicIP"], peer["state"], peer["probe"]) for peer in said["peers"][:4]]
        assert time.monotonic() - began < within_s, (said["probesOff"], peers, said["conditions"])
        await asyncio.sleep(0.3)
    return said, time.monotonic() - began


def well(said: Said) -> bool:
    """Ready, nothing wrong, and every peer reachable."""
    return (
        said["ready"] and not said["conditions"] and {(peer["probe"] or {}).get("state") for peer in said["peers"]} == {"reachable"}
    )


async def until_all_are_reachable(lab: Lab) -> None:
    for host in lab.hosts:
        await until_told(host, well)


async def nft(host: Host, *lines: str) -> None:
    """A table of the test's own; the host's stays."""
    await host.exec("nft", "\n".join(["add table inet test; delete table inet test; add table inet test", *lines]))


INPUT = "add chain inet test in { type filter hook prerouting priority raw; }"
OUTPUT = "add chain inet test out { type filter hook postrouting priority 0; }"


@pytest.mark.parametrize("backend", [pytest.param(name, marks=pytest.mark.topology(backend=name)) for name in BACKENDS])
async def test_a_healthy_cluster_is_all_reachable_and_stays_so_through_a_restart(backend: str, overlay: Lab) -> None:
    await until_all_are_reachable(overlay)
    one, two, _three = overlay.hosts
    assert [await exit_code(host) for host in overlay.hosts] == [0, 0, 0]
    said = await one.status()
    for peer in said["peers"]:
        found = peer["probe"]
        assert 0 < found["rttMs"] < 1000
        assert (found["sizePasses"], found["size"]) == (True, int(one.subnet_env()["FLANNEL_MTU"]))
    await two.agent.stop()
    for _ in range(20):
        said = await one.status()
        if backend != "udp":  # there the packets go with the agent
            assert not said["conditions"]
        await asyncio.sleep(1.0)
    await two.start_agent()
    await until_all_are_reachable(overlay)


@pytest.mark.parametrize("backend", [pytest.param(name, marks=pytest.mark.topology(backend=name)) for name in ENCAPSULATED])
async def test_a_port_that_is_filtered_is_named(backend: str, overlay: Lab) -> None:
    await until_all_are_reachable(overlay)
    one, two, three = overlay.hosts
    port = {"vxlan": "8472", "udp": "8285"}[backend]
    await nft(two, INPUT, f"add rule inet test in udp dport {port} drop")
    said, took = await until_told(one, lambda said: holds(said, "peer-unreachable"))
    print(f"{backend}: port filtered, told after {took:.1f} s")
    (text,) = holds(said, "peer-unreachable")
    assert str(two.address) in text
    assert "its host answers" in text or "one way only" in text
    assert said["ready"]
    assert await exit_code(one) == 3
    assert probe(said, str(three.address))["state"] == "reachable"
    await until_told(
        one, lambda said: f"one way only: its packets come, ours get no answer; UDP {port}" in holds(said, "peer-unreachable")[0]
    )
    await until_told(two, lambda said: not said["ready"])  # h2 hears from nobody
    await two.exec("nft", "delete", "table", "inet", "test")
    await until_all_are_reachable(overlay)


@pytest.mark.parametrize("backend", [pytest.param(name, marks=pytest.mark.topology(backend=name)) for name in BACKENDS])
async def test_a_host_that_is_powered_off_is_told_and_its_return(backend: str, overlay: Lab) -> None:
    await until_all_are_reachable(overlay)
    one, two, _three = overlay.hosts
    await two.unplug()
    said, took = await until_told(one, lambda said: holds(said, "peer-unreachable"))
    print(f"{backend}: host gone, told after {took:.1f} s: {holds(said, 'peer-unreachable')}")
    why = probe(said, str(two.address))["why"]
    assert "down" in why, why
    await two.plug()
    await until_all_are_reachable(overlay)


@pytest.mark.parametrize("backend", [pytest.param(name, marks=pytest.mark.topology(backend=name)) for name in BACKENDS])
async def test_a_black_hole_for_large_packets_is_told(backend: str, overlay: Lab) -> None:
    await until_all_are_reachable(overlay)
    one, two, _three = overlay.hosts
    await nft(two, INPUT, "add rule inet test in iifname eth1 meta length > 1400 drop")
    said, took = await until_told(one, lambda said: holds(said, "peer-unreachable"))
    print(f"{backend}: black hole, told after {took:.1f} s: {holds(said, 'peer-unreachable')}")
    found = probe(said, str(two.address))
    assert f"packets of {found['size']} bytes are lost, small ones pass" in found["why"]
    assert not found["sizePasses"]
    await two.exec("nft", "delete", "table", "inet", "test")
    await until_all_are_reachable(overlay)


async def test_fifty_leases_of_hosts_that_do_not_exist_are_told(overlay: Lab) -> None:
    await until_all_are_reachable(overlay)
    one, two, _three = overlay.hosts
    ghosts = {
        f"10.1.{number}.0-24": Vtep("", f"192.168.50.{number}", f"02:00:00:00:01:{number:02x}").value for number in range(101, 151)
    }
    put_many(overlay, {f"{SUBNETS}/{key}": value for key, value in ghosts.items()})

    def told(said: Said) -> bool:
        return sum((peer["probe"] or {}).get("state") in ("unreachable", "silent") for peer in said["peers"]) == 50

    said, took = await until_told(one, told, 90.0)
    print(f"50 ghosts, all told after {took:.1f} s")
    said, _took = await until_told(one, lambda said: any("on the link" in text for text in holds(said, "peer-unreachable")), 90.0)
    assert said["ready"]
    assert probe(said, str(two.address))["state"] == "reachable"
    for key in ghosts:
        overlay.etcd.delete(f"{SUBNETS}/{key}")
    await until_all_are_reachable(overlay)


@pytest.mark.parametrize("backend", [pytest.param(name, marks=pytest.mark.topology(backend=name)) for name in BACKENDS])
async def test_a_host_that_reaches_nobody_is_not_ready(backend: str, overlay: Lab) -> None:
    await until_all_are_reachable(overlay)
    one = overlay.hosts[0]
    peers = ", ".join(str(host.address) for host in overlay.hosts[1:])
    await nft(one, OUTPUT, f"add rule inet test out ip daddr {{ {peers} }} drop")
    said, took = await until_told(one, lambda said: not said["ready"])
    print(f"{backend}: nobody reached, not ready after {took:.1f} s: {said['whyNot']}")
    assert await exit_code(one) == 1
    assert holds(said, "peers-unreachable") == said["whyNot"]
    await one.exec("nft", "delete", "table", "inet", "test")
    await until_all_are_reachable(overlay)


@pytest.mark.parametrize("hosts", [3])
async def test_a_network_without_icmp_is_no_alarm(hosts: int, overlay: Lab) -> None:
    """PublicIPs that are silent are nothing; and what never answered at all is a warning, and the host stays ready."""
    assert len(overlay.hosts) == hosts
    one, _two, _three = overlay.hosts
    await one.agent.stop()
    await nft(one, OUTPUT, "add rule inet test out oifname eth1 icmp type echo-request drop")
    await one.start_agent()
    await until_all_are_reachable(overlay)
    await one.agent.stop()
    await nft(one, OUTPUT, "add rule inet test out icmp type echo-request drop")
    await one.start_agent()
    said, _took = await until_told(one, lambda said: len(holds(said, "peer-silent")) == 2)
    assert said["ready"]
    assert await exit_code(one) == 0
    assert not holds(said, "peer-unreachable")
    await one.exec("nft", "delete", "table", "inet", "test")
    await until_all_are_reachable(overlay)


@pytest.mark.parametrize("where", ["host", "cluster"])
async def test_probes_can_be_switched_off(where: str, lab: Lab) -> None:
    await lab.put_config({**lab.topology.network_config, **({"Probe": False} if where == "cluster" else {})})
    await lab.start_agents(*(("--probe=false",) if where == "host" else ()))
    await lab.connect_containers()
    one, two, _three = lab.hosts
    said, _took = await until_told(one, lambda said: "switched off" in (said["probesOff"] or "") and len(said["peers"]) == 2)
    assert [peer["probe"] for peer in said["peers"]] == [None, None]
    async with lab.pcap(two.name, "any", "icmp") as seen:
        await asyncio.sleep(12.0)
    assert await seen.lines() == []
