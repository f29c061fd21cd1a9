"""Who gets packets into the overlay? A stranger on the underlay, a peer's address that the stranger takes, and whoever may.

c1 10.1.1.2 - h1 192.168.50.11 ==+== 192.168.50.12 h2 - c2 10.1.2.2        the stranger x 192.168.50.66 is on the same link;
                                 x
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from netns_lab.host import Box, Host
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, mac, no_probes, no_traceback, settled_overlay, shell  # noqa: F401
from tests.lab.test_agent_status import status

pytestmark = [pytest.mark.usefixtures("no_probes"), pytest.mark.timeout(400)]
"""Thousands of forged packets, one command for each hundred."""

COUNT = 100
"""Forged packets of each kind."""
AS_NOBODY = "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)"

SENDER = """
import socket, sys
port, raw, target, data = int(sys.argv[1]), sys.argv[2], sys.argv[3], bytes.fromhex(sys.argv[4])
kind = (socket.SOCK_RAW, socket.IPPROTO_RAW) if raw else (socket.SOCK_DGRAM, 0)
sock = socket.socket(socket.AF_INET, *kind)
for _ in range(100):
    sock.sendto(data, (target, port))
"""
"""Sends 100 of one datagram; ``raw``: the data is the whole IP packet."""


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ip_packet(source: str, target: str, payload: bytes) -> bytes:
    head = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0) + socket.inet_aton(source) + socket.inet_aton(target)
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def datagram(port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", 4444, port, 8 + len(payload), 0) + payload


def vxlan(mac: str, inner: bytes, vni: int = 1, ethertype: int = 0x800) -> bytes:
    frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("020000000099") + struct.pack("!H", ethertype) + inner
    return struct.pack("!II", 0x08000000, vni << 8) + frame


INNER = {
    "another peer's container": "10.1.3.2",
    "a free address": "10.1.77.2",
    "one of its own subnet": "10.1.2.9",
    "an outside address": "8.8.8.8",
    "its own": "192.168.50.66",
    "that very peer's": "10.1.1.2",
}


async def accepted(sender: Box, lab: Lab, outer: str, source: str, target: str) -> int:
    """Of 100 VXLAN packets to h2, how many its device takes out for the target."""
    return await taken_out(sender, lab, outer, vxlan(await mac(lab.host(2)), forged(source, target)))


def forged(source: str, target: str) -> bytes:
    return ip_packet(source, target, datagram(9999, b"forged.."))


async def taken_out(sender: Box, lab: Lab, outer: str, data: bytes) -> int:
    """The same of any payload of the port; ``outer``: the source that is taken, the sender's own where there is none."""
    two = lab.host(2)
    before = await received(two)
    await send(sender, outer, data)
    return await received(two) - before


async def send(sender: Box, outer: str, data: bytes) -> None:
    if outer:
        data = ip_packet(outer, "192.168.50.12", datagram(8472, data))
    await sender.exec("python3", "-c", SENDER, "0" if outer else "8472", outer, "192.168.50.12", data.hex())


async def received(host: Host) -> int:
    """What the host's overlay device has taken out of datagrams, once that stands still."""

    async def now() -> int:
        (link,) = json.loads(await host.exec("ip", "-s", "-j", "link", "show", "flannel.1"))
        return int(link["stats64"]["rx"]["packets"])

    seen = await now()
    while (more := await now()) != seen:
        seen = more
    return seen


TARGETS = ("10.1.2.2", "192.168.50.12", "10.0.2.99")
"""A container of h2's, h2 itself, and what h2 would forward to on another network."""


async def make_stranger(lab: Lab) -> Host:
    """h3 without its agent, at an address that no lease names."""
    stranger = lab.host(3)
    await stranger.agent.stop()
    await shell(stranger, "ip link del flannel.1; ip addr flush dev eth1; ip addr add 192.168.50.66/24 dev eth1")
    return stranger


@pytest.mark.topology(hosts=3, agent_options=())
async def test_what_a_stranger_forges_is_not_let_in_and_what_flannel_carries_is(overlay: Lab) -> None:
    lab, stranger = overlay, await make_stranger(overlay)
    outside = ("8.8.8.8", "192.168.50.66")  # as a peer it may speak for whomever it routes (core.backend.SourceRule)
    for outer in ("", "192.168.50.11"):
        for name, source in INNER.items():
            for target in TARGETS:
                may = bool(outer) and target == "10.1.2.2" and source in ("10.1.1.2", *outside)
                assert await accepted(stranger, lab, outer, source, target) == (COUNT if may else 0), (outer, name, target)
    for way in (("c1", "c2"), ("h1", "c2"), ("c2", "h1")):
        assert (await lab.ping(*way)).ok, way
    await lab.host(1).exec("ping", "-n", "-c1", "-W2", "-I", "192.168.50.11", "10.1.2.2")  # without masquerading, its own address
    text = await lab.host(2).exec("nft", "list", "counters", "table", "inet", "flannelpy")
    counts = {name: int(count) for name, count in re.findall(r"counter (\w+) \{\s+packets (\d+)", text)}
    assert {name: count > 0 for name, count in counts.items()} == {
        "container_source": False,
        "outer_source": True,
        "inner_protocol": False,
        "inner_destination": True,
        "inner_source": True,
    }
    told = await status(lab.host(2), "--json")
    document = json.loads(told.stdout)
    assert document["guard"] == {
        "rule": "default",
        "strangers": {"192.168.50.66": counts["outer_source"]},
        "dropped": {name: count for name, count in counts.items() if name != "container_source"},
    }
    assert document["containerSourceCheck"] == {"dropped": 0}
    (taken,) = (peer for peer in document["peers"] if peer["PublicIP"] == "192.168.50.11")  # the stranger has sent as this one
    assert taken["dropped"] == counts["inner_source"] + counts["inner_destination"]
    assert re.search(r"^guard +default, dropped [\d,]+ outer source", (await status(lab.host(2))).stdout, re.MULTILINE)


@pytest.mark.topology(hosts=2, agent_options=())
async def test_an_ordinary_socket_in_a_container_gets_nothing_in(overlay: Lab) -> None:
    """Nothing masquerades here: the container's own address is the outer source, and no peer's. c2 is on the host itself."""
    for sender in ("c1", "c2"):
        for name, source in INNER.items():
            for target in TARGETS:
                assert await accepted(overlay.box(sender), overlay, "", source, target) == 0, (sender, name, target)


@pytest.mark.topology(hosts=2)
async def test_a_container_that_its_host_masquerades_is_its_neighbour_and_nobody_elses(overlay: Lab) -> None:
    """h1's address is the outer source then: what may come from h1 may come from c1 (docs/SECURITY.md)."""
    for name, source in INNER.items():
        for target in TARGETS:
            may = target == "10.1.2.2" and source in ("10.1.1.2", "8.8.8.8", "192.168.50.66")
            assert await accepted(overlay.box("c1"), overlay, "", source, target) == (COUNT if may else 0), (name, target)


@pytest.mark.topology(hosts=3, config={"Backend": {"Type": "vxlan", "Guard": "off"}})
async def test_without_a_guard_a_stranger_gets_everything_in(overlay: Lab) -> None:
    """What is forged above is what the kernel takes."""
    stranger = await make_stranger(overlay)
    assert "guard" not in await overlay.host(2).exec("nft", "list", "table", "inet", "flannelpy")
    assert [await accepted(stranger, overlay, "", "10.1.3.2", target) for target in TARGETS] == [COUNT] * 3


@pytest.mark.topology(hosts=3, agent_options=())
async def test_what_not_even_a_peer_may_have_sent_is_not_let_in(overlay: Lab) -> None:
    """Through us to another host, to a MAC that nobody has to know, in another overlay, another protocol, half a packet. And what
    is let in because a client outside of the network could have sent it goes no further where no client can have this address.
    """
    lab, stranger, us = overlay, await make_stranger(overlay), await mac(overlay.host(2))
    peer, container, everybody = "192.168.50.11", "10.1.2.2", "ff:ff:ff:ff:ff:ff"
    for outer in ("", peer):
        for name, data in {
            "reflected": vxlan(us, forged("10.1.1.2", "10.1.3.2")),
            "reflected, of whom it goes to": vxlan(us, forged("10.1.3.2", "10.1.3.2")),
            "reflected, from outside": vxlan(us, forged("8.8.8.8", "10.1.3.2")),
            "to everybody's MAC, for the host": vxlan(everybody, forged("10.1.1.2", "192.168.50.12")),
            "another VNI": vxlan(us, forged("10.1.1.2", container), vni=7),
            "IPv6": vxlan(us, bytes([0x60]) + bytes(7) + bytes(32), ethertype=0x86DD),
            "IPv6 that has our addresses where IPv4 has them": vxlan(us, forged("10.1.1.2", container), ethertype=0x86DD),
            "half an address": vxlan(us, forged("10.1.1.2", container)[:14]),
            "nothing in the frame": vxlan(us, b""),
            "no frame": vxlan(us, b"")[:8],
        }.items():
            assert await taken_out(stranger, lab, outer, data) == 0, (outer, name)
    for source in ("192.168.50.12", "10.1.2.1", "127.0.0.1", "224.0.0.5", "255.255.255.255"):
        assert await unheard(lab, container, partial(send, stranger, peer, vxlan(us, forged(source, container)))) == 0, source
    assert await unheard(lab, container, partial(send, stranger, peer, vxlan(us, forged("10.1.1.2", container)))) == COUNT


async def arrived(lab: Lab, sender: str, source: str, target: str) -> int:
    """Of 100 packets that the sender forges, how many reach the target, where nobody listens for them."""
    data = forged(source, target)
    return await unheard(lab, target, lambda: lab.box(sender).exec("python3", "-c", SENDER, "0", "raw", target, data.hex()))


async def unheard(lab: Lab, target: str, sending: Callable[[], Awaitable[object]]) -> int:
    """How many datagrams for a port that nobody has come to this container meanwhile."""
    box = next(each for each in lab.containers if str(each.address) == target)

    async def now() -> int:
        lines = [line.split() for line in (await box.exec("cat", "/proc/net/snmp")).splitlines() if line.startswith("Udp: ")]
        return int(dict(zip(*lines, strict=True))["NoPorts"])

    before = await now()
    await sending()
    seen = await now()
    while (more := await now()) != seen:
        seen = more
    return seen - before


async def dropped(host: Host) -> int:
    text = await host.exec("nft", "list", "counter", "inet", "flannelpy", "container_source")
    return int(re.findall(r"packets (\d+)", text)[0])


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
@pytest.mark.topology(hosts=3, agent_options=())
async def test_a_container_sends_as_itself_and_no_other_link_brings_containers(lab: Lab, backend: str) -> None:
    """Also with a raw socket of its own; the other link is h2's eth0."""
    await lab.put_config({"Network": "10.1.0.0/16", "Backend": {"Type": backend}})
    await lab.start_agents()
    await lab.connect_containers()
    own, third = (lab.container(name).address for name in ("c2", "c3"))
    subnet = f"{lab.host(1).subnet.network + 9}"
    target, one, two = str(own), lab.host(1), lab.host(2)
    for source in (str(third), str(lab.host(3).subnet.network + 77), str(lab.host(2).subnet.network + 9)):
        before = await dropped(one)
        assert await arrived(lab, "c1", source, target) == 0, source
        assert await dropped(one) - before == COUNT, source
    assert await arrived(lab, "c1", subnet, target) == COUNT  # of its own host's subnet: nobody can tell
    gateway = await two.exec("ip", "-4", "-o", "addr", "show", "dev", "eth0")
    await lab.box("nat2").exec("ip", "route", "add", f"{two.subnet}", "via", gateway.split()[3].split("/")[0])
    before = await dropped(two)
    assert await arrived(lab, "nat2", str(third), target) == 0
    assert await dropped(two) - before == COUNT
    assert await arrived(lab, "nat2", "8.8.8.8", target) == COUNT  # an outside client of a container
    for way in (("c1", "c2"), ("c3", "c2"), ("h1", "c2"), ("c2", "h1"), ("c1", "h2")):
        assert (await lab.ping(*way)).ok, way


@pytest.mark.topology(hosts=3, backend="host-gw", agent_options=())
async def test_by_host_gw_whoever_is_on_the_peers_own_link_is_any_of_them(overlay: Lab) -> None:
    """Nothing is encapsulated: no receiver can tell, which docs/SECURITY.md says."""
    stranger = overlay.host(3)
    await stranger.agent.stop()
    await shell(stranger, "ip addr add 192.168.50.66/24 dev eth1; ip route replace 10.1.2.0/24 via 192.168.50.12 src 192.168.50.66")
    assert await arrived(overlay, "h3", "10.1.1.2", "10.1.2.2") == COUNT


@pytest.mark.topology(hosts=2, agent_options=())
async def test_a_local_user_of_a_peer_is_a_container_of_it_and_on_his_own_host_nobody(overlay: Lab) -> None:
    """His socket has his host's address: what may come from there may come from him (docs/SECURITY.md)."""
    for sender, most in (("h1", COUNT), ("h2", 0)):
        box = overlay.box(sender)
        for source, target in (("10.1.1.2", "10.1.2.2"), ("10.1.3.2", "10.1.2.2"), ("10.1.1.2", "192.168.50.12")):
            data = vxlan(await mac(overlay.host(2)), forged(source, target))
            before = await received(overlay.host(2))
            await box.exec("python3", "-c", AS_NOBODY + SENDER, "8472", "", "192.168.50.12", data.hex())
            may = most if (source, target) == ("10.1.1.2", "10.1.2.2") else 0
            assert await received(overlay.host(2)) - before == may, (sender, source, target)
