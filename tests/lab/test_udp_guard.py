"""Does source validation let through all that flannel carries where nobody masquerades, and nothing that nobody can have sent?

ca 10.5.72.2 -- cbr0 - ha - flannel0 ~ UDP 8285 ~ flannel0 - hb - cbr0 -- cb 10.5.9.2
                       192.0.2.1 ======= veth ======= 192.0.2.2
                                                      203.0.113.7 is hb's too; 203.0.113.66 is a client behind hb
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from scapy.layers.inet import IP, UDP

from tests.lab.udp_support import CA, CB, HA, HB, Host, inside, ip, network, pings, running, socket_in, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and TUN devices")
__all__ = ["network"]

CLIENT = f"udp-{os.getpid()}-client"


@pytest.fixture(params=["default", "strict", "peers"])
def guard(request: pytest.FixtureRequest) -> str:
    rule: str = request.param
    return rule


@pytest.fixture
def hosts(network: None, guard: str) -> Iterator[tuple[Host, Host]]:
    """Both datapaths by one rule; routes, and no masquerading, to what else is behind b."""
    a, b = Host(HA, "10.5.72.0/24", "192.0.2.1"), Host(HB, "10.5.9.0/24", "192.0.2.2")
    with running(a, b, f'{{"Guard": "{guard}"}}'), ExitStack() as undo:
        ip(f"netns add {CLIENT}")
        undo.callback(ip, f"netns del {CLIENT}")
        ip(f"link add out netns {HB} type veth peer eth0 netns {CLIENT}")
        ip(f"-n {HB} addr add 203.0.113.7/24 dev out")
        ip(f"-n {HB} link set out up")
        ip(f"-n {CLIENT} addr add 203.0.113.66/24 dev eth0")
        ip(f"-n {CLIENT} link set eth0 up")
        ip(f"-n {CLIENT} route add default via 203.0.113.7")
        ip(f"-n {HA} route add 203.0.113.0/24 via 192.0.2.2")
        undo.callback(ip, f"-n {HA} route del 203.0.113.0/24 via 192.0.2.2")
        until(lambda: pings(CA, "10.5.9.2") and pings(CB, "10.5.72.2"))
        yield a, b


def test_what_flannel_carries_is_carried(hosts: tuple[Host, Host], guard: str) -> None:
    a, _ = hosts
    assert pings(CA, "10.5.9.2")
    assert pings(CA, "10.5.9.1")  # a remote host, by its bridge's address
    assert pings(CA, "192.0.2.2")  # by its own, which answers through the overlay
    assert pings(CA, "203.0.113.7") == (guard != "strict")  # by another one of its own
    assert pings(CLIENT, "10.5.72.2") == (guard != "strict")  # a client that it routes
    assert "inbound_dropped_outer_source" not in a.counters
    refused = a.counters.get("inbound_dropped_inner_source", 0)
    assert refused == (2 if guard == "strict" else 0)
    assert a.tell("refused") == ({"192.0.2.2": refused} if refused else {})


def test_what_nobody_can_have_sent_is_refused(hosts: tuple[Host, Host], guard: str) -> None:
    a, b = hosts
    forged = 0

    def forge(source: str, target: str = "10.5.9.2") -> None:
        nonlocal forged
        forged += 1
        packet = bytes(IP(src=source, dst=target) / UDP(dport=4000) / b"forged")
        with socket_in(HA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("192.0.2.1", 0))
            sender.sendto(packet, ("192.0.2.2", 8285))

    passed = b.counters["inbound_packets"]
    for source in ("10.5.200.2", "10.5.9.7", "192.0.2.2", "203.0.113.7"):  # nobody's, its own subnet's, its own, its other one
        forge(source)
    if guard == "peers":
        until(lambda: b.counters["inbound_packets"] == passed + forged)  # what it asks for: the outer source is a peer
        return
    until(partial(b.counts, "inbound_dropped_inner_source", forged))
    forge("10.5.72.2", "203.0.113.66")  # through it to elsewhere
    until(partial(b.counts, "inbound_dropped_inner_destination", 1))
    assert b.counters["inbound_packets"] == passed
    assert b.tell("refused") == {a.address: forged}


@pytest.mark.parametrize("guard", ["default"], indirect=True)
def test_an_address_that_the_host_gets_later_is_its_own_soon(hosts: tuple[Host, Host]) -> None:
    _, b = hosts

    def forge() -> None:
        packet = bytes(IP(src="203.0.113.99", dst="10.5.9.2") / UDP(dport=4000))
        with socket_in(HA, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("192.0.2.1", 0))
            sender.sendto(packet, ("192.0.2.2", 8285))

    passed = b.counters["inbound_packets"]
    forge()
    until(lambda: b.counters["inbound_packets"] == passed + 1)
    ip(f"-n {HB} addr add 203.0.113.99/24 dev out")

    def refused() -> bool:
        forge()
        return b.counters.get("inbound_dropped_inner_source", 0) > 0

    until(refused)
    assert inside(HB, "ip -br addr show dev out").count("203.0.113.99") == 1
