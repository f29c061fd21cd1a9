"""Who gets packets into a dual-stack overlay? What test_guard.py asks, by IPv6 outside and inside.

c1 - h1 fd00:50::b ==+== fd00:50::c h2 - c2        containers have addresses of fd00:10:1:n::/64; x fd00:50::66 is a stranger
                     x
"""

from __future__ import annotations

import json
import re
import socket
import struct

import pytest
from netaddr import IPNetwork

from netns_lab.host import Box, Host
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, losing_nothing, no_probes, no_traceback, settled_overlay, shell, until  # noqa: F401
from tests.lab.test_agent_status import status
from tests.lab.test_guard import COUNT, accepted, checksum, datagram, ip_packet, make_stranger, received, vxlan
from tests.lab.test_guard import SENDER as IPV4_SENDER

pytestmark = pytest.mark.usefixtures("no_probes")

DUAL = {"EnableIPv6": True, "IPv6Network": "fd00:10:1::/48"}
PEER, VICTIM, STRANGER = "fd00:50::b", "fd00:50::c", "fd00:50::66"

SENDER = """
import socket, sys
raw, target, data = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
kind = (socket.SOCK_RAW, socket.IPPROTO_RAW) if raw else (socket.SOCK_DGRAM, 0)
sock = socket.socket(socket.AF_INET6, *kind)
for _ in range(100):
    sock.sendto(data, (target, 0 if raw else 8472))
"""
"""Sends 100 of one datagram; ``raw``: the data is the whole IPv6 packet."""


def udp_packet(source: str, target: str, port: int, payload: bytes) -> bytes:
    """An IPv6 packet; UDP's checksum, which counts here, is over the addresses, too (RFC 8200, 8.1)."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    length = 8 + len(payload)
    head = struct.pack("!HHHH", 4444, port, length, 0)
    summed = ends + struct.pack("!II", length, 17) + head + payload
    head = head[:6] + struct.pack("!H", checksum(summed + bytes(len(summed) % 2)) or 0xFFFF)
    return struct.pack("!IHBB", 6 << 28, length, 17, 64) + ends + head + payload


async def taken_out(host: Host) -> int:
    """What the host's IPv6 overlay device has taken out of datagrams, once that stands still."""

    async def now() -> int:
        (link,) = json.loads(await host.exec("ip", "-s", "-j", "link", "show", "flannel-v6.1"))
        return int(link["stats64"]["rx"]["packets"])

    seen = await now()
    while (more := await now()) != seen:
        seen = more
    return seen


async def let_in(sender: Box, lab: Lab, outer: str, source: str, target: str) -> int:
    """Of 100 VXLAN packets to h2 by IPv6, how many its device takes out for the target."""
    two = lab.host(2)
    mac = re.search(r"link/ether (\S+)", await two.exec("ip", "link", "show", "flannel-v6.1"))
    assert mac is not None
    frame = bytes.fromhex(mac[1].replace(":", "")) + bytes.fromhex("020000000099") + b"\x86\xdd"
    data = struct.pack("!II", 0x08000000, 1 << 8) + frame + udp_packet(source, target, 9999, b"forged..")
    if outer:
        data = udp_packet(outer, VICTIM, 8472, data)
    before = await taken_out(two)
    await sender.exec("python3", "-c", SENDER, outer, VICTIM, data.hex())
    return await taken_out(two) - before


async def settled(lab: Lab) -> None:
    """No address is tentative any more (RFC 4862)."""

    async def done() -> bool:
        return not any([await shell(box, "ip -6 -o addr show tentative") for box in (*lab.hosts, *lab.containers)])

    await until(done, 5, "duplicate address detection is over")


def ends(lab: Lab) -> tuple[dict[str, str], tuple[str, ...]]:
    """What may be forged as the source inside, by name; and to whom."""
    subnets = [IPNetwork(lab.host(number).subnet_env()["FLANNEL_IPV6_SUBNET"]).cidr for number in (1, 2, 3)]
    sources = {
        "another peer's container": str(lab.container("c3").address6),
        "a free address": "fd00:10:1:ffff::2",
        "one of its own subnet": str(subnets[1].ip + 9),
        "an outside address": "2001:db8::8",
        "its own": STRANGER,
        "that very peer's": str(lab.container("c1").address6),
    }
    return sources, (str(lab.container("c2").address6), VICTIM, "2001:db8:99::1")


async def strange(lab: Lab) -> Host:
    """h3 without its agent, at addresses that no lease names."""
    stranger = await make_stranger(lab)
    await shell(stranger, f"ip link del flannel-v6.1; ip -6 addr add {STRANGER}/64 dev eth1 nodad")
    return stranger


async def dropped(host: Host) -> dict[str, int]:
    """What the host's guard has dropped, by reason, and by stranger."""
    guard = json.loads((await status(host, "--json")).stdout)["guard"]
    return {name: count for name, count in {**guard["dropped"], **(guard["strangers"] or {})}.items() if count}


@pytest.mark.topology(hosts=3, segment6="fd00:50::/64", config=DUAL, agent_options=())
async def test_what_a_stranger_forges_in_a_dual_stack_overlay_is_not_let_in(overlay: Lab) -> None:
    lab, two = overlay, overlay.host(2)
    await settled(lab)
    sources, targets = ends(lab)
    stranger = await strange(lab)
    outside = (sources["that very peer's"], sources["an outside address"], STRANGER)
    for outer in ("", PEER):
        for name, source in sources.items():
            for target in targets:
                may = bool(outer) and target == targets[0] and source in outside  # as test_guard.py has it by IPv4
                assert await let_in(stranger, lab, outer, source, target) == (COUNT if may else 0), (outer, name, target)
    counts = await dropped(two)
    assert counts == {
        "outer_source": 18 * COUNT,
        STRANGER: 18 * COUNT,
        "inner_destination": 12 * COUNT,
        "inner_source": 3 * COUNT,
    }
    for outer4 in ("", "192.168.50.11"):  # and by IPv4 in the same overlay
        assert await accepted(stranger, lab, outer4, "10.1.3.2", "10.1.2.2") == 0
    inner = udp_packet(sources["that very peer's"], targets[0], 9999, b"forged..")
    frame = vxlan("ff:ff:ff:ff:ff:ff", b"").removesuffix(b"\x08\x00") + b"\x86\xdd" + inner
    data = ip_packet("192.168.50.11", "192.168.50.12", datagram(8472, frame))  # IPv6 inside is nothing for IPv4's device
    before = await received(two)
    await stranger.exec("python3", "-c", IPV4_SENDER, "0", "192.168.50.11", "192.168.50.12", data.hex())
    assert await received(two) == before
    assert (await dropped(two))["inner_protocol"] == COUNT


@pytest.mark.topology(hosts=3, segment6="fd00:50::/64", config=DUAL, agent_options=())
async def test_what_peers_send_in_a_dual_stack_overlay_is_carried_while_a_stranger_floods(overlay: Lab) -> None:
    lab, two = overlay, overlay.host(2)
    await settled(lab)
    sources, targets = ends(lab)
    stranger, c1 = await strange(lab), lab.container("c1")
    async with losing_nothing(lab, "c1", targets[0]), losing_nothing(lab, "c1", "c2"):
        for target in targets:
            await let_in(stranger, lab, "", sources["that very peer's"], target)
            await accepted(stranger, lab, "", "10.1.1.2", "10.1.2.2")
    assert await dropped(two) == {"outer_source": 6 * COUNT, STRANGER: 3 * COUNT, "192.168.50.66": 3 * COUNT}
    own = str(IPNetwork(lab.host(1).subnet_env()["FLANNEL_IPV6_SUBNET"]).ip)
    for sender, options, target in (
        (c1, (), targets[0]),
        (c1, (), VICTIM),  # answered by h2 with its own address, through the overlay
        (lab.host(1), (), targets[0]),  # a host-network process
        (lab.host(1), ("-I", own), targets[0]),  # the bridge's address
        (lab.host(1), ("-I", PEER), targets[0]),  # where nobody masquerades
        (two, ("-I", VICTIM), str(c1.address6)),
    ):
        told = await sender.attempt("ping", "-6", "-n", "-q", "-c100", "-i0.002", "-W1", *options, target)
        assert f"{COUNT} received" in told.stdout, (sender.name, options, target, told.stdout)
    assert (await dropped(two))["outer_source"] == 6 * COUNT
    assert set(await dropped(two)) == {"outer_source", STRANGER, "192.168.50.66"}


@pytest.mark.topology(hosts=3, segment6="fd00:50::/64", config={**DUAL, "Backend": {"Guard": "off"}}, agent_options=())
async def test_without_a_guard_a_stranger_gets_everything_in_by_ipv6(overlay: Lab) -> None:
    """What is forged above is what the kernel takes."""
    await settled(overlay)
    sources, targets = ends(overlay)
    stranger = await strange(overlay)
    for outer in ("", PEER):
        for target in targets:
            assert await let_in(stranger, overlay, outer, sources["another peer's container"], target) == COUNT, (outer, target)
