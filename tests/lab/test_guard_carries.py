"""Does source validation let through all that flannel carries legitimately, by each rule, where a stranger's gets nowhere?

out 203.0.113.1 - h1 192.168.50.11 ==+== 192.168.50.12 h2 - c2 10.1.2.2        nat1 has the address out, behind h1's eth0;
      c1 10.1.1.2 -/                 x                                         the stranger x 192.168.50.66 is on the same link
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from netns_lab.host import Box
from netns_lab.lab import Lab
from netns_lab.topology import NAT_ADDRESS, OUTSIDE
from tests.lab.agent_support import lab_name, no_probes, no_traceback, settled_overlay, shell  # noqa: F401
from tests.lab.test_agent_status import status
from tests.lab.test_guard import COUNT, INNER, TARGETS, accepted, make_stranger

pytestmark = [pytest.mark.usefixtures("no_probes"), pytest.mark.timeout(400)]
"""Thousands of forged packets, one command for each hundred."""

C2, H2, H2_BRIDGE = "10.1.2.2", "192.168.50.12", "10.1.2.1"
NODE_PORT = 30080
CONNECT = """
import socket, sys
refused = 0
for _ in range(100):
    with socket.socket() as sock:
        sock.settimeout(2)
        sock.bind((sys.argv[1], 0))
        try:
            sock.connect((sys.argv[2], int(sys.argv[3])))
        except ConnectionRefusedError:
            refused += 1
        except OSError:
            break
print(refused)
"""
"""How many of 100 connections are refused, which nobody but who is asked does: the way there and the way back."""


def by_rule(*rules: str, options: tuple[str, ...] = (), hosts: int = 2) -> pytest.MarkDecorator:
    """Once for each rule, as agents with these options have it from etcd."""
    return pytest.mark.parametrize(
        "rule",
        [
            pytest.param(rule, marks=pytest.mark.topology(hosts=hosts, agent_options=options, config={"Backend": {"Guard": rule}}))
            for rule in rules
        ],
    )


async def echoed(sender: Box, target: str, *options: str) -> int:
    """Of 100 pings, how many were answered."""
    told = await sender.attempt("ping", "-n", "-q", "-c100", "-i0.002", "-W1", *options, target)
    return int(re.findall(r"(\d+) received", told.stdout)[0])


async def connected(sender: Box, source: str, target: str, port: int) -> int:
    return int(await sender.exec("python3", "-c", CONNECT, source, target, str(port)))


async def resets(box: Box) -> int:
    """TCP connections that this box has refused."""
    lines = [line.split() for line in (await box.exec("cat", "/proc/net/snmp")).splitlines() if line.startswith("Tcp: ")]
    return int(dict(zip(*lines, strict=True))["OutRsts"])


async def dropped(lab: Lab) -> dict[str, int]:
    """What h2's guard has dropped, by reason; nothing where it has none."""
    guard = json.loads((await status(lab.host(2), "--json")).stdout)["guard"]
    return {reason: count for reason, count in guard["dropped"].items() if count} if guard else {}


@by_rule("default", "strict", "peers", "off")
async def test_what_hosts_and_containers_send_is_carried_where_nobody_masquerades(overlay: Lab, rule: str) -> None:
    """By every rule: none of it has another source inside than the subnet's, or the PublicIP."""
    lab, one, two = overlay, overlay.host(1), overlay.host(2)
    assert await echoed(lab.box("c1"), C2) == COUNT
    assert await echoed(lab.box("c1"), H2) == COUNT  # answered by h2 with its own address, through the overlay
    assert await echoed(lab.box("c1"), H2_BRIDGE) == COUNT
    assert await echoed(one, C2) == COUNT  # a host-network process
    assert await echoed(one, C2, "-I", "10.1.1.1") == COUNT
    assert await echoed(one, C2, "-I", "192.168.50.11") == COUNT
    assert await echoed(two, "10.1.1.2", "-I", H2) == COUNT
    before = await resets(lab.box("c2"))
    assert await connected(one, "192.168.50.11", C2, 9) == COUNT
    assert await resets(lab.box("c2")) - before == COUNT
    assert await dropped(lab) == {}


@by_rule("default", "strict", options=("--ip-masq",))
async def test_what_is_masqueraded_is_carried(overlay: Lab, rule: str) -> None:
    """By the agent, by a rule such as Docker's own, and by one that takes the host's address on the underlay."""
    lab, one = overlay, overlay.host(1)
    assert await echoed(lab.box("c1"), C2) == COUNT
    assert await echoed(lab.box("c1"), H2) == COUNT
    assert await echoed(one, C2, "-I", "192.168.50.11") == COUNT
    for how in ("masquerade", "snat to 192.168.50.11"):
        await shell(one, "nft add table ip docker; nft flush table ip docker")
        await shell(one, "nft add chain ip docker post '{ type nat hook postrouting priority srcnat - 1; }'")
        await shell(one, f"nft add rule ip docker post ip saddr 10.1.1.0/24 oifname != docker0 {how}")
        assert await echoed(lab.box("c1"), C2) == COUNT, how
    assert await dropped(lab) == {}


async def routed(lab: Lab) -> int:
    """A client outside that h1 routes to c2: how many of its packets get there. The answers have another way home."""
    box = lab.box("c2")

    async def now() -> int:
        lines = [line.split() for line in (await box.exec("cat", "/proc/net/snmp")).splitlines() if line.startswith("Icmp: ")]
        return int(dict(zip(*lines, strict=True))["InEchos"])

    before = await now()
    await lab.box("nat1").attempt("ping", "-n", "-q", "-c100", "-i0.002", "-W0.1", "-I", str(OUTSIDE), C2)
    return await now() - before


@by_rule("default", "strict", "peers")
async def test_an_outside_client_that_a_host_routes_or_forwards_by_a_node_port(overlay: Lab, rule: str) -> None:
    """As kube-proxy's NodePort does, with and without masquerading; ``strict`` stops a host from being such a gateway."""
    lab, one = overlay, overlay.host(1)
    gateway = str(NAT_ADDRESS.ip)
    client = lab.box("nat1")
    await client.exec("ip", "route", "replace", "10.1.0.0/16", "via", gateway)
    assert await routed(lab) == (0 if rule == "strict" else COUNT)
    assert await dropped(lab) == ({"inner_source": COUNT} if rule == "strict" else {})
    await shell(one, "nft add table ip kube")
    await shell(one, "nft add chain ip kube pre '{ type nat hook prerouting priority dstnat; }'")
    await shell(one, f"nft add rule ip kube pre iifname eth0 tcp dport {NODE_PORT} meta mark set 0x4000 dnat to {C2}:9")
    await shell(one, "nft add chain ip kube post '{ type nat hook postrouting priority srcnat - 1; }'")
    await shell(one, "nft add rule ip kube post meta mark 0x4000 masquerade")
    before = await resets(lab.box("c2"))
    assert await connected(client, str(OUTSIDE), gateway, NODE_PORT) == COUNT
    assert await resets(lab.box("c2")) - before == COUNT
    assert await dropped(lab) == ({"inner_source": COUNT} if rule == "strict" else {})


INSIDE = {"192.168.50.11": "the peer's PublicIP", **{source: name for name, source in INNER.items()}}


@by_rule("strict", "peers", "off", hosts=3)
async def test_what_each_rule_lets_a_stranger_do(overlay: Lab, rule: str) -> None:
    """With its own address as the outer source, and with h1's; the default is test_guard.py's."""
    lab, stranger = overlay, await make_stranger(overlay)
    may: dict[str, Callable[[str, str, str], bool]] = {
        "strict": lambda outer, source, target: bool(outer) and target == C2 and source in ("10.1.1.2", "192.168.50.11"),
        "peers": lambda outer, source, target: bool(outer),
        "off": lambda outer, source, target: True,
    }
    for outer in ("", "192.168.50.11"):
        for source, name in INSIDE.items():
            for target in TARGETS:
                wanted = COUNT if may[rule](outer, source, target) else 0
                assert await accepted(stranger, lab, outer, source, target) == wanted, (outer, name, target)
    for way in (("c1", "c2"), ("h1", "c2"), ("c2", "h1")):
        assert (await lab.ping(*way)).ok, way
