"""Does the overlay pass where the host's own firewall forwards nothing?

c1 - h1 ==== vxlan ==== h2 - c2         iptables -P FORWARD DROP on both, or a last rule that rejects, as ufw and others leave it
"""

from __future__ import annotations

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, no_traceback, settled_overlay, shell, until  # noqa: F401
from tests.lab.host_support import WITHIN_S, lives, until_they_meet

VARIANTS = ("iptables-nft", "iptables-legacy")


async def close(host: Host, command: str, how: str) -> None:
    if (await host.attempt(command, "-S")).code:
        pytest.skip(f"{command} does not work in this kernel")
    await host.exec(command, *(("-P", "FORWARD", "DROP") if how == "policy" else ("-A", "FORWARD", "-j", "REJECT")))


async def ours(host: Host, command: str) -> list[str]:
    """The rules in FORWARD that bear our mark."""
    return [line for line in await shell(host, f"{command} -S FORWARD") if "flannelpy" in line]


async def until_ours(host: Host, command: str, there: bool) -> None:
    async def so() -> bool:
        return bool(await ours(host, command)) == there

    await until(so, WITHIN_S, f"rules of ours: {there}", lambda: Log.of(host).text[-1500:])


@pytest.mark.parametrize("command", VARIANTS)
@pytest.mark.parametrize("how", ["policy", "a last rule"])
@pytest.mark.topology(hosts=2)
async def test_a_firewall_that_forwards_nothing_lets_the_overlay_through(lab: Lab, command: str, how: str) -> None:
    for host in lab.hosts:
        await close(host, command, how)
    await lab.start_agents()
    await lab.connect_containers()
    before = lives(lab.hosts)
    await until_they_meet(lab, f"{command}, {how}")
    for host in lab.hosts:
        assert await ours(host, command) != []
    # Taken away by other hands, and the rest with it: they come back, before what rejects.
    await lab.host(1).exec(command, "-F", "FORWARD")
    await close(lab.host(1), command, how)
    await until_ours(lab.host(1), command, there=True)
    await until_they_meet(lab, "flushed")
    assert lives(lab.hosts) == before


@pytest.mark.parametrize("command", VARIANTS)
@pytest.mark.topology(hosts=2)
async def test_a_firewall_that_is_closed_under_a_running_agent_is_noticed(overlay: Lab, command: str) -> None:
    for host in overlay.hosts:
        await close(host, command, "policy")
    await until_they_meet(overlay, f"{command}, closed while it runs")


@pytest.mark.topology(hosts=2)
async def test_rules_of_ours_go_where_they_are_not_wanted_any_more(lab: Lab) -> None:
    one = lab.host(1)
    for host in lab.hosts:
        await close(host, "iptables-nft", "policy")
    await lab.start_agents()
    await until_ours(one, "iptables-nft", there=True)
    await one.agent.stop()
    await one.start_agent("--iptables-forward-rules=false")
    await until_ours(one, "iptables-nft", there=False)


@pytest.mark.topology(hosts=2)
async def test_a_firewall_that_forwards_is_left_alone(overlay: Lab) -> None:
    for host in overlay.hosts:
        await host.exec("iptables-nft", "-A", "FORWARD", "-s", "198.51.100.0/24", "-j", "DROP")
        assert await ours(host, "iptables-nft") == []
    await until_they_meet(overlay, "an open firewall")
