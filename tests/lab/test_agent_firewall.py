"""What happens to packets on their way: who is masqueraded, who is not, and does the host forward?

outside 203.0.113.1 - nat1 - eth0 10.0.2.15 h1 ==== vxlan 1 ==== h2 - c2 10.1.9.2        seen on the wire, at the far container
                                c1 10.1.72.2
"""

from __future__ import annotations

import asyncio

import pytest
from netaddr import IPAddress

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    captured,
    lab_name,
    losing_nothing,
    no_traceback,
    remember_subnet,
    shell,
    until,
)
from tests.lab.host_support import until_condition, until_nothing_is_wrong, until_they_meet


async def start(lab: Lab, *options: str) -> None:
    remember_subnet(lab.host(1), "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(lab.host(2), "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents(*options)
    await lab.connect_containers()


async def ruleset(host: Host) -> str:
    return await host.exec("nft", "list", "ruleset")


async def sources_at(lab: Lab, container: str, *senders: str) -> list[str]:
    """The sources of the echo requests that arrive at a container when each of these pings it once."""
    async with lab.pcap(container, "eth0", "icmp[icmptype]=icmp-echo") as capture:
        for sender in senders:
            assert (await lab.ping(sender, container)).ok
        lines = await captured(capture, len(senders))
    return [line.split(" > ")[0].split()[-1] for line in lines]


@pytest.mark.topology(hosts=2, agent_options=("--ip-masq",))
async def test_who_is_masqueraded_on_the_wire(lab: Lab) -> None:
    await start(lab)
    one = lab.host(1)
    with one.outside_view() as outside:
        ping = asyncio.create_task(lab.ping("c1", "203.0.113.1"))
        assert await outside.source() == IPAddress("10.0.2.15")
        assert (await ping).ok
    # Between containers and from a host to a remote container: the container keeps its own; the host has an overlay address.
    sources = await sources_at(lab, "c2", "c1", "h1")
    assert sources[0] == "10.1.72.2"
    assert sources[1] in ("10.1.72.0", "10.1.72.1")
    # A program of the host that is bound to the host's own address is masqueraded: the far container answers through the overlay.
    async with lab.pcap("c2", "eth0", "icmp[icmptype]=icmp-echo") as capture:
        await one.exec("ping", "-n", "-c1", "-W2", "-I", "192.168.50.11", "10.1.9.2")
        assert "10.1.72.0 > 10.1.9.2" in (await captured(capture, 1))[0]
    # From the host to its own container nothing is changed.
    assert await sources_at(lab, "c1", "h1") == ["10.1.72.1"]
    # An outside client that reaches a container (a published port, say) keeps its source.
    await lab.box("nat1").exec("ip", "route", "add", "10.1.72.0/24", "via", "10.0.2.15")
    async with lab.pcap("c1", "eth0", "icmp[icmptype]=icmp-echo") as capture:
        await lab.box("nat1").exec("ping", "-c1", "-W2", "-I", "203.0.113.1", "10.1.72.2")
        lines = await captured(capture, 1)
    assert ["203.0.113.1 > 10.1.72.2" in line for line in lines] == [True]


@pytest.mark.topology(hosts=2, agent_options=("--ip-masq",))
async def test_multicast_and_marked_packets_are_not_masqueraded(lab: Lab) -> None:
    """0x4000 is kube-proxy's mark for what it masquerades itself (flannel-compat 10.1)."""
    await start(lab)
    one = lab.host(1)
    table = "table inet theirs { chain c { type filter hook forward priority -200; ip saddr 10.1.72.2 meta mark set 0x4000; }; }"
    await one.exec("nft", "-f", "-", stdin=table)
    with one.outside_view() as outside:
        ping = asyncio.create_task(lab.ping("c1", "203.0.113.1", wait_s=0.3))
        assert await outside.source() == IPAddress("10.1.72.2")
        await ping


@pytest.mark.topology(hosts=2, agent_options=())
async def test_without_ip_masq_nothing_is_masqueraded(lab: Lab) -> None:
    await start(lab)
    one = lab.host(1)
    assert "masquerade" not in await ruleset(one)
    assert "postrtg" not in await ruleset(one)
    assert "FLANNEL_IPMASQ=false\n" in one.subnet_file.read_text()
    with one.outside_view() as outside:
        ping = asyncio.create_task(lab.ping("c1", "203.0.113.1", wait_s=0.3))
        assert await outside.source() == IPAddress("10.1.72.2")
        assert not (await ping).ok
    assert await sources_at(lab, "c2", "c1") == ["10.1.72.2"]


@pytest.mark.topology(hosts=2, agent_options=())
async def test_masquerading_is_switched_by_a_restart(lab: Lab) -> None:
    await start(lab)
    one = lab.host(1)
    await one.agent.stop()
    async with losing_nothing(lab, "c1", "c2"):
        await one.start_agent("--ip-masq")
    assert "chain postrtg" in await ruleset(one)
    assert "FLANNEL_IPMASQ=true\n" in one.subnet_file.read_text()
    assert (await lab.ping("c1", "203.0.113.1")).ok
    await one.agent.stop()
    assert "chain postrtg" in await ruleset(one)  # a stop takes nothing away
    async with losing_nothing(lab, "c1", "c2"):
        await one.start_agent("--ip-masq=false")
    assert "postrtg" not in await ruleset(one)
    assert not (await lab.ping("c1", "203.0.113.1", wait_s=0.3)).ok


@pytest.mark.topology(hosts=1, containers=0, agent_options=())
async def test_forward_rules_are_there_unless_switched_off(lab: Lab) -> None:
    one = lab.host(1)
    await one.start_agent()
    text = [line.strip() for line in (await ruleset(one)).splitlines()]
    assert "ip saddr 10.1.0.0/16 accept" in text
    assert "ip daddr 10.1.0.0/16 accept" in text
    assert [line for line in text if "hook forward" in line] == [
        "type filter hook forward priority filter - 5; policy accept;",
        "type filter hook forward priority filter; policy accept;",
    ]
    await one.agent.stop()
    await one.start_agent("--iptables-forward-rules=false")
    assert "10.1.0.0/16 accept" not in await ruleset(one)
    await one.agent.stop()
    await one.start_agent("--iptables-forward-rules=false", "--container-source-check=false")
    assert "hook forward" not in await ruleset(one)


@pytest.mark.topology(hosts=2, agent_options=())
async def test_a_table_of_somebody_else_that_drops_is_told_with_the_commands_that_mend_it(lab: Lab) -> None:
    """No rule of ours can let through what another table drops: a packet passes every chain of the hook (nft(8), "VERDICT
    STATEMENTS"). In iptables' own table one can (test_host_forward.py).
    """
    policy = "table ip strict { chain passing { type filter hook forward priority filter; policy drop; }; }"
    for host in lab.hosts:
        await host.exec("nft", "-f", "-", stdin=policy)
    await start(lab)
    assert not (await lab.ping("c1", "c2", wait_s=0.5)).ok
    for host in lab.hosts:
        text = await until_condition(host, "forward-blocked")
        for command in text.partition(f"{lab.topology.network}: ")[2].split(" && "):
            await host.exec(*command.split())
    await until_they_meet(lab, "after what was told was done")
    await until_nothing_is_wrong(*lab.hosts)


@pytest.mark.topology(hosts=1, containers=1, agent_options=("--ip-blackhole-route",))
async def test_unused_addresses_of_our_own_subnet_lead_nowhere(lab: Lab) -> None:
    """Without it, a packet for an address before docker0 is up leaves by the default route."""
    one = lab.host(1)
    await one.start_agent()

    async def there() -> bool:
        return any(line.startswith(f"blackhole {one.subnet} proto 102") for line in await shell(one, "ip route"))

    assert await there()
    await one.exec("ip", "route", "del", "blackhole", str(one.subnet))
    await until(there, 2, "the blackhole route is back")
    # The bridge that comes later, with a route to the same prefix, is what counts.
    await one.connect_containers()
    assert "dev docker0" in (await shell(one, f"ip route get {lab.container('c1').address} || true"))[0]
    assert (await lab.ping("h1", "c1")).ok
    await one.agent.restart()
    assert await there()
    assert (await lab.ping("h1", "c1")).ok
