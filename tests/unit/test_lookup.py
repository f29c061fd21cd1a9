"""Does a packet to a peer go where it should? Judged by what the kernel's look-up says."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.lookup import Found, detour, expected, goes, mend_outer
from flannelpy.core.objects import Route

WHOSE = "10.5.9.0/24 at 192.0.2.9"
OURS = Route(IPNetwork("10.5.9.0/24"), via=IPAddress("10.5.9.0"), dev="flannel.1", onlink=True)
WIDE = Route(IPNetwork("10.5.0.0/16"), dev="flannel0")
V6 = Route(IPNetwork("fd00:9::/64"), via=IPAddress("fd00:9::"), dev="flannel-v6.1", onlink=True)


def found(dev: str, via: str | None = None, route: str = "10.5.9.0/24", **more: Any) -> Found:
    return Found(dev, None if via is None else IPAddress(via), IPNetwork(route), **more)


@pytest.mark.parametrize(
    ("address", "route"),
    [("10.5.9.1", OURS), ("10.5.9.254", OURS), ("10.5.8.1", WIDE), ("10.6.0.1", None), ("fd00:9::1", V6), ("fd00:8::1", None)],
)
def test_the_longest_route_that_covers_an_address_is_to_take_it(address: str, route: Route | None) -> None:
    assert expected([WIDE, OURS, V6], IPAddress(address)) == route


def test_an_unreachable_lid_takes_nothing_anywhere() -> None:
    assert expected([Route(IPNetwork("10.5.0.0/16"), kind="blackhole")], IPAddress("10.5.9.1")) is None


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (found("flannel.1", "10.5.9.0"), True),
        (found("flannel.1", "10.5.9.0", table=100), True),  # by another table, and the same way
        (found(""), True),  # several next hops, of which nothing is known: the kernel chooses packet by packet
        (found("", hops=(("eth0", None), ("flannel.1", IPAddress("10.5.9.0")))), True),
        (found("", hops=(("eth0", IPAddress("192.0.2.254")), ("eth1", IPAddress("192.0.2.254")))), False),
        (found("", hops=(("flannel.1", IPAddress("10.5.8.0")), ("flannel.1", None))), False),
        (found("flannel.1", "10.5.8.0"), False),
        (found("flannel.1"), False),
        (found("eth0", "192.0.2.254"), False),
        (Found(code=errno.EHOSTUNREACH), False),
    ],
)
def test_a_look_up_is_right_where_it_names_device_and_gateway(answer: Found, right: bool) -> None:
    assert goes(OURS, answer) == right


def test_a_route_without_a_gateway_is_right_by_its_device() -> None:
    assert goes(WIDE, found("flannel0", route="10.5.0.0/16"))
    assert not goes(WIDE, found("eth0", "192.0.2.254", "0.0.0.0/0"))


@pytest.mark.parametrize(
    ("answer", "subject", "words"),
    [
        (
            found("eth0", "192.0.2.254", "10.5.9.0/25"),
            "10.5.9.0/25 via 192.0.2.254 dev eth0",
            "packets to 10.5.9.0/24 at 192.0.2.9 go by 10.5.9.0/25 via 192.0.2.254 dev eth0, not by 10.5.9.0 dev flannel.1: "
            "ip route del 10.5.9.0/25 via 192.0.2.254 dev eth0",
        ),
        (
            found("", None, "10.5.9.0/25", hops=(("eth0", IPAddress("192.0.2.254")), ("eth1", None))),
            "10.5.9.0/25",
            "packets to 10.5.9.0/24 at 192.0.2.9 go by 10.5.9.0/25, not by 10.5.9.0 dev flannel.1: ip route del 10.5.9.0/25",
        ),
        (
            found("eth0", None, "0.0.0.0/0", table=100),
            "table 100 default dev eth0",
            "packets to 10.5.9.0/24 at 192.0.2.9 go by default dev eth0 of table 100, not by 10.5.9.0 dev flannel.1: "
            "a policy rule asks that table first: ip rule show; ip rule del ... lookup 100",
        ),
        (
            Found(code=errno.EHOSTUNREACH),
            f"error {errno.EHOSTUNREACH}",
            "packets to 10.5.9.0/24 at 192.0.2.9 go nowhere (no route, or one of type unreachable), not by 10.5.9.0 dev flannel.1: "
            "ip rule show; ip route show table all",
        ),
        (
            Found(code=errno.EACCES),
            f"error {errno.EACCES}",
            "packets to 10.5.9.0/24 at 192.0.2.9 go nowhere (a route of type prohibit), not by 10.5.9.0 dev flannel.1: "
            "ip rule show; ip route show table all",
        ),
    ],
)
def test_a_detour_is_told_with_the_command_that_mends_it(answer: Found, subject: str, words: str) -> None:
    assert detour(OURS, answer, WHOSE) == (subject, words)
    said = detour(OURS, answer, WHOSE, "pref 5 from all lookup 100")
    assert said[0] == "rule pref 5 from all lookup 100"
    assert said[1].endswith(", for a policy rule says so: ip rule del pref 5 from all lookup 100")


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (Found(code=errno.EACCES), ""),
        (Found(code=errno.EINVAL), "pref 5 from all blackhole"),
        (Found("eth0", None, IPNetwork("::/0"), 100), ""),
        (Found("eth0", None, IPNetwork("::/0"), 100), "pref 5 from all lookup 100"),
    ],
)
def test_of_rules_of_ipv6_it_has_to_be_said_that_they_are(answer: Found, rule: str) -> None:
    """ip takes a rule for IPv4's where nothing is said: it would delete another one, or none."""
    words = detour(V6, answer, WHOSE, rule)[1]
    assert "ip -6 rule" in words
    assert "ip rule" not in words


@given(
    st.sampled_from(("10.5.9.7", "2001:db8::7")),
    st.integers(0, 128),
    st.sampled_from(("eth0", "flannel.1", "tun0")),
    st.integers(0, 128),
)
def test_no_route_is_to_be_deleted_by_which_others_packets_go(to: str, length: int, dev: str, wanted: int) -> None:
    """Most of all no default: the person at the keyboard may be reached by it."""
    address = IPAddress(to)
    bits = 32 if address.version == 4 else 128
    length, wanted = min(length, bits), min(wanted, bits)
    answer = Found(dev, None, IPNetwork(f"{address}/{length}").cidr)
    ours = Route(IPNetwork(f"{address}/{wanted}").cidr, dev="flannel.2")
    assert ("ip route del" in detour(ours, answer, WHOSE)[1]) == (length >= wanted)
    said = mend_outer(answer, address, "eth1", {"flannel.1"})
    assert ("ip route del" in said) == (length == bits or (dev == "flannel.1" and length > 0))
    assert "ip route del" in said or said.startswith(f"ip route add {address} via GATEWAY dev eth1")
