"""Does one command name what cuts containers off, within 15 s, and fall silent after the mend?

c1 - h1 ==== vxlan ==== h2 - c2         one fault at a time on h1, as an operator or another program makes it
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from netaddr import IPNetwork

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, no_traceback, settled_overlay, shell, until  # noqa: F401
from tests.lab.host_support import meet, told, until_nothing_is_wrong, until_they_meet

WITHIN_S = 15.0
"""What is promised. A machine that others use, too, may take longer: the time is printed, and three times it fails."""

TYPES = ("vxlan", "host-gw", "udp")

Act = Callable[[Lab], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Fault:
    """``code`` of the condition, ``words`` that its text or its remedy must hold; ``dead``: no packet passes meanwhile."""

    code: str
    words: tuple[str, ...]
    inject: Act
    mend: Act
    dead: bool = True


def run(*commands: str) -> Act:
    """Commands on h1; {peer}, {own}, {gateway}: subnets of h2 and h1, c2's lower half."""

    async def act(lab: Lab) -> None:
        one, two = lab.host(1), lab.host(2)
        low = next(iter(two.subnet.subnet(25)))
        for command in commands:
            await shell(one, command.format(peer=two.subnet, low=low, own=one.subnet, there=two.address))

    return act


async def bridge_back(lab: Lab) -> None:
    await lab.host(1).connect_containers()


async def drop_inside(lab: Lab) -> None:
    """A table of the host's own firewall that forwards nothing, as a hardened image has it."""
    await shell(
        lab.host(1), "nft 'add table inet hard; add chain inet hard forward { type filter hook forward priority 0; policy drop; }'"
    )


FAULTS = {
    "ip_forward is 0": Fault(
        "forwarding-off",
        ("net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"),
        run("sysctl -qw net.ipv4.ip_forward=0"),
        run("sysctl -qw net.ipv4.ip_forward=1"),
    ),
    "the overlay device does not forward": Fault(
        "forwarding-off",
        ("net.ipv4.conf.flannel/1.forwarding is 0",),
        run("sysctl -qw net.ipv4.conf.flannel/1.forwarding=0"),
        run("sysctl -qw net.ipv4.conf.flannel/1.forwarding=1"),
    ),
    "the firewall forwards nothing": Fault(
        "forward-blocked", ("inet hard", "policy drop", "nft insert rule"), drop_inside, run("nft delete table inet hard")
    ),
    "docker0 has another subnet": Fault(
        "bridge-elsewhere",
        ("docker0 has 172.17.0.1/16", "docker-opts"),
        run("ip addr flush dev docker0 scope global", "ip addr add 172.17.0.1/16 dev docker0"),
        bridge_back,
    ),
    "docker0 has another host's subnet": Fault(
        "bridge-stale",
        ("docker0 has 10.1.77.1/24", "systemctl restart docker"),
        run("ip addr flush dev docker0 scope global", "ip addr add 10.1.77.1/24 dev docker0"),
        bridge_back,
    ),
    "docker0 has a larger MTU": Fault(
        "bridge-mtu",
        ("docker0 has MTU 1500", "ip link set docker0 mtu 1450"),
        run("ip link set vc1 mtu 1500", "ip link set docker0 mtu 1500"),
        bridge_back,
        dead=False,
    ),
    "a longer route of somebody else": Fault(
        "route-astray",
        ("go by {low} dev eth1", "ip route del {low}"),
        run("ip route add {low} dev eth1"),
        run("ip route del {low}"),
    ),
    "a policy rule asks another table first": Fault(
        "route-astray",
        ("of table 100", "ip rule"),
        run("ip route add {peer} dev eth1 table 100", "ip rule add to {peer} lookup 100"),
        run("ip rule del to {peer} lookup 100", "ip route flush table 100"),
    ),
    "a policy rule for what containers send": Fault(
        "route-astray",
        ("of table 100", "ip rule"),
        run("ip route add default dev eth1 table 100", "ip rule add from {own} to {peer} lookup 100"),
        run("ip rule del from {own} to {peer} lookup 100", "ip route flush table 100"),
    ),
    "a policy rule that forbids": Fault(
        "route-astray",
        ("go nowhere",),
        run("ip rule add to {peer} prohibit"),
        run("ip rule del to {peer} prohibit"),
    ),
    "PublicIP goes by another link": Fault(
        "route-astray",
        ("not by the uplink eth1", "ip route del {there}"),
        run("ip route add {there} dev eth0"),
        run("ip route del {there} dev eth0"),
        dead=False,
    ),
    "a strict reverse path filter, and the way back is another": Fault(
        "reverse-path-filter",
        ("flannel.1 takes only packets", "sysctl -w net.ipv4.conf.flannel/1.rp_filter=2"),
        run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.flannel/1.rp_filter=1", "ip route add {low} dev eth1"),
        run("ip route del {low}", "sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.flannel/1.rp_filter=2"),
    ),
    "the uplink is down": Fault("uplink-down", ("ip link set",), run("ip link set eth1 down"), run("ip link set eth1 up")),
}


async def until_named(host: Host, fault: Fault, words: tuple[str, ...]) -> float:
    """Wait until a condition of this code says all of it; how long it took, in seconds."""
    began = time.monotonic()
    seen: list[str] = []

    async def named() -> bool:
        conditions = [each for each in (await told(host)).get("conditions", ()) if each["code"] == fault.code]
        seen[:] = [f"{each['text']} {each['remedy']}" for each in conditions]
        return any(all(word in text for word in words) for text in seen)

    await until(named, 3 * WITHIN_S, f"{fault.code} with {words}", lambda: (seen, Log.of(host).text[-1500:]))
    return time.monotonic() - began


@asynccontextmanager
async def injected(lab: Lab, fault: Fault) -> AsyncIterator[None]:
    await fault.inject(lab)
    try:
        yield
    finally:
        await fault.mend(lab)


@pytest.mark.topology(hosts=2)
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_host_is_named_with_its_remedy(overlay: Lab, name: str) -> None:
    fault, host = FAULTS[name], overlay.host(1)
    low = next(iter(overlay.host(2).subnet.subnet(25)))
    words = tuple(word.format(low=low, there=overlay.host(2).address) for word in fault.words)
    await until_they_meet(overlay, "before")
    await until_nothing_is_wrong(*overlay.hosts)
    async with injected(overlay, fault):
        print(f"{name}: named after {await until_named(host, fault, words):.1f} s")
        if fault.dead:
            assert not await meet(overlay)
        assert IPNetwork(overlay.topology.network).version == 4
    await until_nothing_is_wrong(*overlay.hosts, timeout_s=3 * WITHIN_S)
    await until_they_meet(overlay, "mended")


@pytest.mark.parametrize("backend", [pytest.param(name, marks=pytest.mark.topology(hosts=3, backend=name)) for name in TYPES])
async def test_a_healthy_host_is_told_nothing_of(overlay: Lab, backend: str) -> None:
    """Six looks long, with containers that come and go, as they do."""
    await until_they_meet(overlay, backend)
    await until_nothing_is_wrong(*overlay.hosts)
    host = overlay.host(1)
    log = Log.from_now(host)
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        await shell(host, "ip link add v9 type veth peer name v9p; ip link set v9 master docker0 up; ip link del v9")
        found = [(await told(each)).get("conditions") for each in overlay.hosts]
        assert found == [[], [], []]
    assert not log.begun("warning") + log.begun("error")
