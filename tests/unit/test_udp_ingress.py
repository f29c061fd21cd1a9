"""Source validation: what flannel carries legitimately passes, what nobody can have sent does not."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork
from scapy.layers.inet import IP, UDP

from backends.udp.counters import CELLS, COUNTERS, MOST_REFUSED, Refused, make_counters
from backends.udp.protocol import GUARDS, Guard
from backends.udp.worker import own_addresses
from backends.udp.worker.ingress import PASSED, IngressFilter
from backends.udp.worker.own_addresses import FRESH_S, MOST, OwnAddresses, is_local
from backends.udp.worker.packet import inbound
from backends.udp.worker.peers import PeerTable

NETWORK, OWN = IPNetwork("10.5.0.0/16"), IPNetwork("10.5.72.0/24")
PEER, OTHER, STRANGER = "192.0.2.2", "192.0.2.3", "198.51.100.9"
OURS = "192.0.2.1"

OUTER, INNER, DESTINATION = (f"inbound_dropped_{what}" for what in ("outer_source", "inner_source", "inner_destination"))


def ingress(guard: Guard) -> IngressFilter:
    peers = PeerTable(OWN.first, OWN.prefixlen, 8285)
    peers.set(IPNetwork("10.5.9.0/24").first, 24, int(IPAddress(PEER)))
    peers.set(IPNetwork("10.5.10.0/24").first, 24, int(IPAddress(OTHER)))
    ours = int(IPAddress(OURS))
    return IngressFilter(peers, (OWN.first, 24), (NETWORK.first, 16), guard, lambda address: address == ours)


def verdict(guard: Guard, src: str, dst: str, sender: str) -> str:
    packet = bytes(IP(src=src, dst=dst) / UDP() / b"payload")
    found = inbound(bytearray(packet), len(packet), sender, ingress(guard))
    return "passed" if found == PASSED else COUNTERS[found]


CASES = [
    # inner source, inner destination, outer source: by default, strict, peers
    ("10.5.9.2", "10.5.72.2", PEER, "passed", "passed", "passed"),
    ("10.5.9.0", "10.5.72.0", PEER, "passed", "passed", "passed"),  # the two hosts themselves
    (PEER, "10.5.72.2", PEER, "passed", "passed", "passed"),  # the peer's own address, where nobody masquerades
    ("192.0.2.77", "10.5.72.2", PEER, "passed", INNER, "passed"),  # a client that the peer routes
    ("8.8.8.8", "10.5.72.2", PEER, "passed", INNER, "passed"),  # one from outside, by a NodePort
    (OTHER, "10.5.72.2", PEER, "passed", INNER, "passed"),
    (OURS, "10.5.72.2", PEER, INNER, INNER, "passed"),  # ours, from outside
    ("10.5.10.2", "10.5.72.2", PEER, INNER, INNER, "passed"),  # another peer's
    ("10.5.200.2", "10.5.72.2", PEER, INNER, INNER, "passed"),  # nobody's
    ("10.5.72.9", "10.5.72.2", PEER, INNER, INNER, "passed"),  # our own subnet's
    ("10.5.9.2", "10.5.10.2", PEER, DESTINATION, DESTINATION, "passed"),
    ("8.8.8.8", "192.0.2.1", PEER, DESTINATION, INNER, "passed"),
    ("10.5.9.2", "10.5.72.2", STRANGER, OUTER, OUTER, OUTER),
    ("8.8.8.8", "10.5.72.2", STRANGER, OUTER, OUTER, OUTER),
    (STRANGER, "10.5.72.2", STRANGER, OUTER, OUTER, OUTER),
]


@pytest.mark.parametrize(("src", "dst", "sender", "default", "strict", "peers"), CASES)
def test_what_each_rule_says(src: str, dst: str, sender: str, default: str, strict: str, peers: str) -> None:
    found = {guard: verdict(guard, src, dst, sender) for guard in GUARDS}
    assert found == {"default": default, "strict": strict, "peers": peers, "off": "passed"}


@given(st.sampled_from(GUARDS), st.sampled_from(GUARDS), st.integers(0, 2**32 - 1), st.sampled_from([PEER, OTHER, STRANGER]))
def test_a_rule_that_is_changed_is_the_one_of_a_fresh_filter(before: Guard, after: Guard, source: int, sender: str) -> None:
    made = ingress(before)
    made.set_overlay((0x0A000000, 8))
    made.set_guard(after)
    made.set_overlay((NETWORK.first, 16))
    packet = bytes(IP(src=str(IPAddress(source, 4)), dst="10.5.72.2") / UDP())
    assert inbound(bytearray(packet), len(packet), sender, made) == inbound(bytearray(packet), len(packet), sender, ingress(after))


@given(st.integers(0, 2**32 - 1), st.sampled_from([PEER, OTHER, STRANGER]))
def test_strict_lets_in_nothing_that_the_default_does_not(source: int, sender: str) -> None:
    src = str(IPAddress(source, 4))
    order = [verdict(guard, src, "10.5.72.2", sender) == "passed" for guard in ("strict", "default", "peers", "off")]
    assert order == sorted(order)


# -------------------------------------------------------------------------------------------------------- own addresses


def test_the_kernel_knows_which_addresses_are_ours() -> None:
    assert is_local(int(IPAddress("127.0.0.1")))
    assert not is_local(int(IPAddress("198.51.100.9")))
    assert is_local(int(IPAddress("224.0.0.1")))  # no source either


def test_where_any_address_can_be_bound_to_the_route_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_addresses, "_binds", lambda _: True)
    assert is_local(int(IPAddress("127.0.0.1")))
    assert not is_local(int(IPAddress("198.51.100.9")))
    assert not is_local(0xFFFFFFFF)


class Refusing:
    """Stands for a socket of a kernel that has no more of something: ``at`` a call, with this error."""

    def __init__(self, at: str, code: int) -> None:
        self.at, self.code = at, code

    def __call__(self, *_: object) -> Refusing:
        return self._do("socket")

    def __enter__(self) -> Refusing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def bind(self, _address: object) -> None:
        self._do("bind")

    def connect(self, _address: object) -> None:
        self._do("connect")

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.7", 7)  # nobody that was asked about

    def _do(self, what: str) -> Refusing:
        if what == self.at:
            raise OSError(self.code, os.strerror(self.code))
        return self


NOTHING_LEFT = [
    *(("socket", code) for code in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM)),
    *(("bind", code) for code in (errno.EADDRINUSE, errno.ENOBUFS, errno.ENOMEM)),
    *(("connect", code) for code in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EPERM)),
]


@pytest.mark.parametrize(("at", "code"), NOTHING_LEFT, ids=lambda each: errno.errorcode.get(each, str(each)))
@pytest.mark.parametrize("anywhere", [False, True])
def test_what_the_kernel_cannot_be_asked_about_is_not_let_in(
    at: str, code: int, anywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ports are taken, say: of an address that is not ours the kernel says so all the same, where it binds not to any."""
    refusing = Refusing(at, code)
    if not anywhere:  # nobody's address is known to be nobody's, without ip_nonlocal_bind
        real = own_addresses._binds
        monkeypatch.setattr(own_addresses, "_binds", lambda name: name != own_addresses._NOBODYS and real(name))
    monkeypatch.setattr(own_addresses.socket, "socket", refusing)
    assert is_local(int(IPAddress(OURS))) == (not anywhere or at != "bind")  # else the route still tells
    refusing.at, refusing.code = "bind", errno.EADDRNOTAVAIL
    assert not is_local(int(IPAddress(OURS)))


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL])
def test_what_no_route_leads_to_is_not_ours(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_addresses.socket, "socket", Refusing("connect", code))
    assert not is_local(int(IPAddress(OURS)))


def test_nothing_is_left_open_by_asking() -> None:
    with socket.socket() as one:
        before = one.fileno()
    for address in range(0xC6336400, 0xC6336440):
        is_local(address)
    with socket.socket() as one:
        assert one.fileno() == before


def test_an_answer_is_believed_for_a_second_and_memory_is_bounded() -> None:
    now, asked = [5.0], list[int]()

    def ask(address: int) -> bool:
        asked.append(address)
        return address == 7

    own = OwnAddresses(lambda: now[0], ask)
    assert [own.holds(7), own.holds(8), own.holds(7), own.holds(8)] == [True, False, True, False]
    assert asked == [7, 8]
    now[0] += FRESH_S
    assert own.holds(7)
    assert asked == [7, 8, 7]
    for address in range(3 * MOST):
        own.holds(address)
        assert len(own._known) <= MOST


# ------------------------------------------------------------------------------------------------------- drops by peer


def test_refused_packets_are_counted_by_peer_and_the_next_worker_counts_on() -> None:
    counters = make_counters()
    try:
        refused = Refused(counters.live)
        refused.add(PEER, 3)
        refused.add(OTHER, 1)
        Refused(counters.live).add(PEER, 4)  # its successor
        assert counters.refused() == {PEER: 7, OTHER: 1}
        assert counters.read() == [0] * len(COUNTERS)
    finally:
        counters.close()


def test_more_peers_than_there_is_room_for_do_no_harm() -> None:
    cells = [0] * CELLS
    refused = Refused(cells)
    for number in range(MOST_REFUSED + 10):
        refused.add(f"192.0.2.{number}", 1)
    assert cells[-2:] == [int(IPAddress(f"192.0.2.{MOST_REFUSED - 1}")), 1]
