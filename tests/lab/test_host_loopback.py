"""Does a host work whose address is on lo, as BGP to the host has it? The way to a peer's is a route, not a link.

c1 - h1 (10.77.0.1/32 on lo) ==== vxlan, udp ==== h2 (10.77.0.2/32 on lo) - c2         etcd apart; the hosts' routes by eth1
"""

from __future__ import annotations

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, settled_overlay, shell, until  # noqa: F401
from tests.lab.host_support import (
    BACKENDS,
    WITHIN_S,
    change,
    published,
    relaunch,
    until_condition,
    until_nothing_is_wrong,
    until_they_meet,
)


async def give_loopback_addresses(lab: Lab) -> None:
    """Each host has an address on lo, and a route to the other's."""
    for host, other in zip(lab.hosts, reversed(lab.hosts), strict=True):
        number, there = host.plan.number, other.plan.number
        await change(
            host,
            f"addr add 10.77.0.{number}/32 dev lo",
            f"route add 10.77.0.{there}/32 via 192.168.50.1{there} dev eth1 src 10.77.0.{number}",
        )


@pytest.mark.parametrize("backend", [param for param in BACKENDS if param.values != ("host-gw",)])
async def test_a_host_that_is_told_to_use_an_address_on_lo_keeps_its_lease(overlay: Lab, backend: str) -> None:
    """lo is no network card that could tell one machine from another: it is the same machine as before, with another address."""
    keys = sorted(published(overlay))
    await give_loopback_addresses(overlay)
    for host in overlay.hosts:
        await relaunch(host, f"--iface=10.77.0.{host.plan.number}")
        await host.agent.ready(within_s=WITHIN_S)
    await until_they_meet(overlay, f"{backend} by addresses on lo")
    assert sorted(published(overlay)) == keys
    assert sorted(published(overlay).values()) == ["10.77.0.1", "10.77.0.2"]
    await until_nothing_is_wrong(*overlay.hosts)


@pytest.mark.topology(hosts=2, backend="host-gw")
async def test_a_gateway_that_is_on_no_link_is_refused_with_the_kernels_reason(lab: Lab) -> None:
    await give_loopback_addresses(lab)
    for host in lab.hosts:
        host.selector = (f"--iface=10.77.0.{host.plan.number}",)
    await lab.start_agents()
    said = await until_condition(lab.host(1), "kernel-refused")
    assert said.startswith(f"route add {lab.host(2).subnet} via 10.77.0.2 dev lo: ")
    assert said.endswith("; trying again")
    assert "unreachable" in said
