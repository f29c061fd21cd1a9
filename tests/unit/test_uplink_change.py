"""Is it seen when the uplink is another one, is nothing asked when it cannot be, and is it said in words?"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Uplink
from flannelpy.core.re2 import compile_re2
from flannelpy.core.uplink import HostFacts, Interface, InterfaceAddress, Wish, choose
from flannelpy.core.uplink_change import concerns, describe_change, query

ETH1 = Uplink("eth1", 3, 1500, IPAddress("192.168.90.1"), public_ip=IPAddress("192.168.90.1"))
BY_NAME, BY_DEFAULT = Wish(iface=("eth1",)), Wish()
BY_ADDRESS, BY_PATTERN, BY_REACH = Wish(iface=("192.168.90.1",)), Wish(iface_regex=("^eth",)), Wish(can_reach=IPAddress("8.8.8.8"))


def nic(name: str, index: int, *nets: str, up: bool = True) -> Interface:
    held = tuple(InterfaceAddress(IPNetwork(net).ip, IPNetwork(net).prefixlen) for net in nets)
    return Interface(name, index, 1500, up, held)


@given(st.dictionaries(st.integers(10, 99), st.from_regex(r"veth[0-9a-f]{6}", fullmatch=True), min_size=1))
def test_containers_that_come_and_go_ask_for_nothing(links: dict[int, str]) -> None:
    assert not concerns(links, False, BY_NAME, ETH1)
    assert not concerns(links, False, BY_DEFAULT, ETH1)


@pytest.mark.parametrize("wish", [BY_NAME, BY_DEFAULT, BY_ADDRESS, BY_PATTERN, BY_REACH])
def test_whatever_happens_to_the_uplink_is_looked_at(wish: Wish) -> None:
    assert concerns({3: "eth1"}, False, wish, ETH1)
    assert concerns({3: "ens3"}, False, wish, ETH1)  # renamed
    assert concerns({7: "eth1"}, False, wish, ETH1)  # made anew


@pytest.mark.parametrize(("wish", "asked"), [(BY_DEFAULT, True), (BY_REACH, True), (BY_NAME, False)])
def test_a_default_route_matters_where_the_choice_goes_by_it(wish: Wish, asked: bool) -> None:
    assert concerns({}, True, wish, ETH1) is asked


def test_an_interface_that_was_asked_for_and_comes_is_looked_at() -> None:
    assert concerns({9: "eth1"}, False, BY_NAME, None)
    assert concerns({9: "eth5"}, False, BY_PATTERN, ETH1)


def test_no_more_is_asked_than_the_choice_needs() -> None:
    assert query(BY_NAME).names == {"eth1"}
    assert not query(BY_NAME).default_routes
    assert query(BY_DEFAULT).names == frozenset()
    assert query(BY_DEFAULT).default_routes
    assert query(BY_ADDRESS).names is None


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (ETH1, ""),
        (replace(ETH1, index=9), "eth1 was made anew"),
        (replace(ETH1, name="ens3"), "eth1 is called ens3 now"),
        (replace(ETH1, name="eth2", index=4), "it is eth2 now, it was eth1"),
        (replace(ETH1, mtu=1400), "eth1's MTU is 1400, it was 1500"),
        (
            replace(ETH1, address=IPAddress("192.168.90.51"), public_ip=IPAddress("192.168.90.51")),
            "eth1's address is 192.168.90.51, it was 192.168.90.1",
        ),
        (replace(ETH1, public_ip=IPAddress("203.0.113.7")), "203.0.113.7 is advertised, it was 192.168.90.1"),
    ],
)
def test_a_change_is_said_in_words(after: Uplink, said: str) -> None:
    assert describe_change(ETH1, after) == said


def pick(facts: HostFacts, wish: Wish = BY_NAME, prefer: Uplink | None = None, ours: tuple[str, ...] = ()) -> str:
    networks = (IPNetwork("10.5.0.0/16"),)
    uplink = choose(facts, wish, (4,), {}, prefer, networks, frozenset(ours)).uplink
    return f"{uplink.name} {uplink.address}"


def test_an_address_stays_the_uplinks_while_it_is_there() -> None:
    facts = HostFacts((nic("eth1", 3, "192.168.90.7/24", "192.168.90.1/24"),))
    assert pick(facts) == "eth1 192.168.90.7"
    assert pick(facts, prefer=ETH1) == "eth1 192.168.90.1"
    assert pick(HostFacts((nic("eth1", 3, "192.168.90.7/24"),)), prefer=ETH1) == "eth1 192.168.90.7"


def test_a_virtual_address_comes_last_whichever_comes_first() -> None:
    assert pick(HostFacts((nic("eth1", 3, "192.168.90.100/32", "192.168.90.1/24"),))) == "eth1 192.168.90.1"
    assert pick(HostFacts((nic("eth1", 3, "192.168.90.100/32"),))) == "eth1 192.168.90.100"


def test_neither_the_overlays_addresses_nor_our_devices_are_an_uplink() -> None:
    facts = HostFacts((nic("docker0", 2, "10.5.9.1/24"), nic("flannel.1", 3, "192.0.2.9/24"), nic("eth1", 4, "192.168.90.1/24")))
    assert pick(facts, Wish(iface_regex=(r"^(10|192)\.",)), ours=("flannel.1",)) == "eth1 192.168.90.1"


def test_another_name_of_an_interface_is_one() -> None:
    facts = HostFacts((replace(nic("eth1", 3, "192.168.90.1/24"), altnames=("enp0s3",)),))
    assert pick(facts, Wish(iface=("enp0s3",))) == "eth1 192.168.90.1"
    assert pick(facts, Wish(iface_regex=("^enp",))) == "eth1 192.168.90.1"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^eth[[:digit:]]$", "eth1"),
        (r"^[[:alpha:]]+\d\z", "eth1"),
        (r"(?i)ETH\pN", "eth1"),
        (r"^\p{L}+\p{Nd}$", "eth1"),
        (r"^192\.168\.", "192.168.90.1"),
    ],
)
def test_goes_patterns_mean_what_they_mean_to_go(pattern: str, text: str) -> None:
    assert compile_re2(pattern).search(text)
    assert not compile_re2(pattern).search("-")


@given(st.text(max_size=40))
def test_any_pattern_can_be_read_or_is_refused(pattern: str) -> None:
    with suppress(ValueError):  # and nothing else
        compile_re2(pattern).search("eth0")
