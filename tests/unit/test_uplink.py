"""Which interface carries the overlay? Hosts are written as an operator would draw them, the choice is read from its text."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Local, Uplink
from flannelpy.core.errors import NoUplinkError
from flannelpy.core.model import Family
from flannelpy.core.uplink import Choice, DefaultRoute, HostFacts, Interface, InterfaceAddress, RouteAnswer, Wish, choose
from flannelpy.host.subnet_env import as_mtu
from flannelpy.plugins import parse

IPV4: tuple[Family, ...] = (4,)
IPV6: tuple[Family, ...] = (6,)
DUAL: tuple[Family, ...] = (4, 6)


def interface(index: int, name: str, *addresses: str, mtu: int = 1500, up: bool = True) -> Interface:
    """``10.0.0.1/24`` or ``fd00::1/64 deprecated``, ``... dynamic``, ``... temporary``."""
    held = []
    for text in addresses:
        cidr, *flags = text.split()
        network = IPNetwork(cidr)
        held.append(
            InterfaceAddress(
                network.ip,
                network.prefixlen,
                scope="link" if network.ip.is_link_local() else "global",
                deprecated="deprecated" in flags,
                permanent="dynamic" not in flags,
                temporary="temporary" in flags,
                duplicate="duplicate" in flags,
            )
        )
    return Interface(name, index, mtu, up, tuple(held))


LO = interface(1, "lo", "127.0.0.1/8", "::1/128", mtu=65536)
ETH0 = interface(2, "eth0", "10.0.2.15/24", "fe80::2/64")
ETH1 = interface(3, "eth1", "192.0.2.1/24", "192.0.2.7/24", "fe80::3/64", "2001:db8::1/64")
DUMMY0 = interface(4, "dummy0", "172.16.30.4/24", "fd00::30/64")
HOST = HostFacts((LO, ETH0, ETH1, DUMMY0), (DefaultRoute(4, 2), DefaultRoute(6, 3)))


def pick(wish: Wish = Wish(), families: tuple[Family, ...] = IPV4, facts: HostFacts = HOST, **answers: RouteAnswer) -> Choice:  # noqa: B008
    return choose(facts, wish, families, {IPAddress("198.51.100.1"): answer for answer in answers.values()})


def refusal(wish: Wish = Wish(), families: tuple[Family, ...] = IPV4, facts: HostFacts = HOST) -> str:  # noqa: B008
    with pytest.raises(NoUplinkError) as caught:
        pick(wish, families, facts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(choice: Choice) -> str:
    """The interface and every address of the uplink: own, then told where it differs."""
    uplink = choice.uplink
    addresses = [str(address) for address in (uplink.address, uplink.address6) if address is not None]
    return " ".join([uplink.name, *addresses])


# ------------------------------------------------------------------------------------------- flannel's own test cases (13)


def test_conformance_lookup_by_v4_regex() -> None:
    assert shown(pick(Wish(iface_regex=(r"172\.16\.30\.\d+",)))) == "dummy0 172.16.30.4"


def test_conformance_lookup_by_name_regex_gives_first_address() -> None:
    assert shown(pick(Wish(iface_regex=("^eth1$",)))) == "eth1 192.0.2.1"


def test_conformance_lookup_by_name() -> None:
    assert shown(pick(Wish(iface=("dummy0",)))) == "dummy0 172.16.30.4"


def test_conformance_lookup_by_address() -> None:
    assert shown(pick(Wish(iface=("192.0.2.7",)))) == "eth1 192.0.2.7"


def test_conformance_lookup_by_address_dual() -> None:
    assert shown(pick(Wish(iface=("192.0.2.7",)), DUAL)) == "eth1 192.0.2.7 2001:db8::1"


def test_conformance_regex_with_public_ip_is_what_peers_are_told() -> None:
    uplink = pick(Wish(iface_regex=(r"172\.16\.30\.\d+",), public_ip=IPAddress("203.0.113.9"))).uplink
    assert (uplink.address, uplink.public_ip) == (IPAddress("172.16.30.4"), IPAddress("203.0.113.9"))


def test_conformance_can_reach_gives_the_source_address() -> None:
    answer = RouteAnswer("eth1", 3, source=IPAddress("192.0.2.7"), via=IPAddress("192.0.2.254"))
    assert shown(pick(Wish(can_reach=IPAddress("198.51.100.1")), a=answer)) == "eth1 192.0.2.7"


# ------------------------------------------------------------------------------------------------------------------ order


def test_the_default_route_is_taken_where_nothing_is_asked_for() -> None:
    assert shown(pick()) == "eth0 10.0.2.15"
    assert shown(pick(families=IPV6)) == "eth1 2001:db8::1"


def test_names_come_before_patterns_and_those_before_can_reach() -> None:
    reach = IPAddress("198.51.100.1")
    answer = RouteAnswer("eth0", 2, source=IPAddress("10.0.2.15"))
    assert shown(pick(Wish(("nope", "dummy0"), ("eth1",), reach), a=answer)) == "dummy0 172.16.30.4"
    assert shown(pick(Wish(("nope",), ("eth1",), reach), a=answer)) == "eth1 192.0.2.1"
    assert shown(pick(Wish(("nope",), ("nope",), reach), a=answer)) == "eth0 10.0.2.15"


def test_the_default_route_is_no_last_resort_for_what_was_asked_for() -> None:
    assert refusal(Wish(iface=("nope",))).startswith(
        "no interface fits; --iface nope: no such interface; there is lo (127.0.0.1, ::1), eth0"
    )


def test_public_ip_takes_the_interface_that_has_it_where_none_was_asked_for() -> None:
    for public, chosen in (("192.0.2.1", "eth1 192.0.2.1"), ("192.0.2.7", "eth1 192.0.2.7"), ("10.0.2.15", "eth0 10.0.2.15")):
        choice = pick(Wish(public_ip=IPAddress(public)))
        assert shown(choice) == chosen
        assert choice.uplink.public_ip == choice.uplink.address == IPAddress(public)
    assert (
        shown(pick(Wish(public_ip=IPAddress("192.0.2.7"), public_ipv6=IPAddress("2001:db8::1")), DUAL))
        == "eth1 192.0.2.7 2001:db8::1"
    )
    assert shown(pick(Wish(public_ipv6=IPAddress("fd00::30")), IPV6)) == "dummy0 fd00::30"
    assert shown(pick(Wish(public_ipv6=IPAddress("fd00::30")), IPV4)) == "eth0 10.0.2.15"


def test_a_public_ip_that_no_interface_has_is_only_advertised() -> None:
    choice = pick(Wish(public_ip=IPAddress("203.0.113.9")))
    assert shown(choice) == "eth0 10.0.2.15"
    assert choice.reasons == (
        "--public-ip 203.0.113.9: no interface has it; it is only told to the peers",
        "default route: eth0, 10.0.2.15, MTU 1500, peers are told 203.0.113.9",
    )


def test_public_ip_of_loopback_is_advertised_beside_the_default_route() -> None:
    facts = HostFacts((interface(1, "lo", "127.0.0.1/8", "203.0.113.9/32"), ETH0), (DefaultRoute(4, 2),))
    choice = pick(Wish(public_ip=IPAddress("203.0.113.9")), facts=facts)
    assert shown(choice) == "eth0 10.0.2.15"
    assert "it is lo's, by which nothing leaves" in choice.reasons[0]


def test_public_ip_does_not_move_an_interface_that_was_asked_for_and_whose_it_is_is_told() -> None:
    choice = pick(Wish(iface=("eth1",), public_ip=IPAddress("10.0.2.15"), public_ipv6=IPAddress("fd00::30")), DUAL)
    assert shown(choice) == "eth1 192.0.2.1 2001:db8::1"
    assert choice.reasons[-1].endswith(
        "peers are told 10.0.2.15 (an address of eth0 on this host) and fd00::30 (an address of dummy0 on this host)"
    )


def test_every_candidate_that_fell_out_is_told_with_its_reason() -> None:
    facts = HostFacts((interface(1, "eth0", "10.0.0.1/24"), interface(2, "eth1")))
    assert refusal(Wish(("nope", "192.0.2.99"), ("^wl",), IPAddress("198.51.100.1")), facts=facts).split("; ") == [
        "no interface fits",
        "--iface nope: no such interface",
        "--iface 192.0.2.99: no interface has this address",
        "--iface-regex ^wl: matches no address and no name",
        "--iface-can-reach 198.51.100.1: the kernel has no route to it",
        "there is eth0 (10.0.0.1), eth1 (no address)",
    ]
    assert pick(Wish(iface=("nope", "eth1"))).reasons[-1] == "--iface eth1: eth1, 192.0.2.1, MTU 1500"


# ------------------------------------------------------------------------------------------------------------- patterns


def test_a_pattern_prefers_an_address_on_a_later_interface_to_a_name_on_an_earlier() -> None:
    facts = HostFacts((interface(1, "net17", "10.0.0.1/24"), interface(2, "eth0", "17.0.0.1/24")))
    assert shown(pick(Wish(iface_regex=("17",)), facts=facts)) == "eth0 17.0.0.1"


def test_a_pattern_goes_by_index_whatever_the_order_of_the_facts() -> None:
    facts = HostFacts((interface(5, "b", "10.0.0.5/24"), interface(2, "a", "10.0.0.2/24")))
    assert shown(pick(Wish(iface_regex=("10",)), facts=facts)) == "a 10.0.0.2"


def test_a_pattern_takes_the_best_of_the_addresses_that_match() -> None:
    facts = HostFacts((interface(1, "eth0", "10.0.0.1/24 dynamic", "10.0.0.2/24"),))
    assert shown(pick(Wish(iface_regex=("10",)), facts=facts)) == "eth0 10.0.0.2"


def test_a_pattern_is_not_anchored_and_ignores_unusable_addresses() -> None:
    assert shown(pick(Wish(iface_regex=("ummy",)))) == "dummy0 172.16.30.4"
    assert "matches no address" in refusal(Wish(iface_regex=("^127",)))


def test_dual_a_pattern_must_match_both_families_on_one_interface() -> None:
    assert shown(pick(Wish(iface_regex=(r"^172\.|^fd00",)), DUAL)) == "dummy0 172.16.30.4 fd00::30"
    assert "matches no address and no name" in refusal(Wish(iface_regex=(r"^172\.",)), DUAL)
    assert "matches no address and no name" in refusal(Wish(iface_regex=(r"^192\.|^fd00",)), DUAL)


# ---------------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        (("fe80::1/64", "2001:db8::1/64"), "2001:db8::1"),
        (("2001:db8::1/64 dynamic", "2001:db8::2/64"), "2001:db8::2"),
        (("2001:db8::1/64 dynamic temporary", "2001:db8::2/64 dynamic"), "2001:db8::2"),
        (("2001:db8::1/64 deprecated", "fe80::1/64"), "2001:db8::1"),
        (("2001:db8::1/64 deprecated", "2001:db8::2/64 dynamic temporary"), "2001:db8::2"),
        (("2001:db8::1/64 duplicate", "2001:db8::2/64 dynamic temporary"), "2001:db8::2"),
        (("2001:db8::1/64 duplicate", "2001:db8::2/64 deprecated"), "2001:db8::2"),
        (("2001:db8::1/64", "2001:db8::2/64"), "2001:db8::1"),
        (("fe80::1/64", "2001:db8::1/64 dynamic temporary"), "2001:db8::1"),
    ],
)
def test_the_best_address_is_global_permanent_not_temporary(addresses: tuple[str, ...], best: str) -> None:
    facts = HostFacts((interface(1, "eth0", *addresses),))
    assert shown(pick(Wish(iface=("eth0",)), IPV6, facts)) == f"eth0 {best}"


@pytest.mark.parametrize("wish", [Wish(iface=("eth0",)), Wish(iface=("2001:db8::1",)), Wish(public_ipv6=IPAddress("2001:db8::1"))])
def test_an_address_that_another_host_has_is_not_taken_and_told(wish: Wish) -> None:
    """The kernel does not use it (RFC 4862 5.4): peers that are told of it would send to that host."""
    facts = HostFacts((interface(1, "eth0", "2001:db8::1/64 duplicate", "192.0.2.1/24"),), (DefaultRoute(6, 1),))
    assert "eth0 has no usable IPv6 address; another host on its link has 2001:db8::1" in refusal(
        Wish(iface=("eth0",)), IPV6, facts
    )
    assert refusal(wish, IPV6, facts)


# (what is in use, what its interface has, what is taken or why nothing is)
MAKESHIFTS = [
    # down and up, or booted: the link-local address is there at once, the other comes by a router's word some seconds later
    ("2001:db8::1", ("fe80::1/64",), "eth1 has only fe80::1, link-local, where 2001:db8::1 is in use"),
    ("2001:db8::1", ("fe80::1/64", "2001:db8::1/64 duplicate"), "in use; another host on its link has 2001:db8::1"),
    ("2001:db8::1", ("fe80::1/64", "2001:db8::1/64 dynamic"), "2001:db8::1"),
    ("fe80::1", ("fe80::1/64", "2001:db8::1/64 dynamic"), "2001:db8::1"),
    ("fe80::1", ("fe80::1/64", "2001:db8::1/64 deprecated"), "2001:db8::1"),
    ("fe80::1", ("fe80::2/64", "fe80::1/64"), "fe80::1"),
    # no router has said a word for longer than the preferred lifetime
    ("2001:db8::1", ("fe80::1/64", "2001:db8::1/64 deprecated"), "2001:db8::1"),
    ("2001:db8::1", ("2001:db8::2/64 deprecated", "2001:db8::1/64 deprecated"), "2001:db8::1"),
    ("2001:db8::1", ("2001:db8:1::1/64 dynamic", "2001:db8::1/64 deprecated"), "2001:db8:1::1"),
    ("2001:db8::1", ("2001:db8::1/64 duplicate", "2001:db8::2/64"), "2001:db8::2"),
    # no DHCP server has answered
    ("192.0.2.1", ("169.254.7.7/16",), "eth1 has only 169.254.7.7, link-local, where 192.0.2.1 is in use"),
    ("169.254.7.7", ("169.254.7.7/16", "192.0.2.1/24 dynamic"), "192.0.2.1"),
]


@pytest.mark.parametrize(("used", "held", "then"), MAKESHIFTS)
def test_a_makeshift_takes_no_addresss_place_and_gives_up_its_own(used: str, held: tuple[str, ...], then: str) -> None:
    facts, address = HostFacts((interface(3, "eth1", *held),)), IPAddress(used)
    family = address.version
    before = Uplink("eth1", 3, 1500, address if family == 4 else None, address if family == 6 else None)
    try:
        uplink = choose(facts, Wish(iface=("eth1",)), (family,), {}, before).uplink
        found = str(uplink.address or uplink.address6)
    except NoUplinkError as error:
        found = str(error)
    assert found == then or (" " in then and then in found)


HAD = Uplink("eth1", 3, 1500, IPAddress("192.0.2.1"), IPAddress("2001:db8::1"), IPAddress("192.0.2.1"), IPAddress("2001:db8::1"))

# (what its interface has, of which IP versions there is a default route, what is taken, what is said to lack)
HALVES = [
    (("192.0.2.9/24",), (4, 6), "192.0.2.9 2001:db8::1", "eth1 has no usable IPv6 address"),
    (("192.0.2.9/24", "fe80::1/64"), (4, 6), "192.0.2.9 2001:db8::1", "eth1 has only fe80::1, link-local"),
    (("192.0.2.9/24", "2001:db8::1/64 duplicate"), (4,), "192.0.2.9 2001:db8::1", "another host on its link has 2001:db8::1"),
    (("2001:db8::9/64",), (4, 6), "192.0.2.1 2001:db8::9", "eth1 has no usable IPv4 address"),
    (("192.0.2.9/24", "2001:db8::9/64"), (4, 6), "192.0.2.9 2001:db8::9", ""),
]


@pytest.mark.parametrize("wish", [Wish(iface=("eth1",)), Wish()])
@pytest.mark.parametrize(("held", "routes", "taken", "lacks"), HALVES)
def test_of_two_families_one_is_followed_while_the_other_is_waited_for(
    wish: Wish, held: tuple[str, ...], routes: tuple[int, ...], taken: str, lacks: str
) -> None:
    facts = HostFacts((interface(3, "eth1", *held),), tuple(DefaultRoute(version, 3) for version in routes))
    choice = choose(facts, wish, DUAL, {}, HAD)
    assert f"{choice.uplink.address} {choice.uplink.address6}" == taken
    assert f"{choice.uplink.public_ip} {choice.uplink.public_ipv6}" == taken
    assert lacks in choice.lacks
    assert bool(lacks) == bool(choice.lacks)
    if lacks and "fe80" not in lacks:
        with pytest.raises(NoUplinkError):
            choose(facts, wish, DUAL, {})


@pytest.mark.parametrize("lost", [(), (4,), (6,)])
def test_a_default_route_that_is_gone_is_said_and_the_addresses_are_followed(lost: tuple[int, ...]) -> None:
    """A router's word has ended: the IPv6 default route is gone, and IPv4 gets another address meanwhile."""
    routes = tuple(DefaultRoute(version, 3) for version in DUAL if version not in lost)
    facts = HostFacts((interface(3, "eth1", "192.0.2.9/24", "2001:db8::1/64"),), routes)
    choice = choose(facts, Wish(), DUAL, {}, HAD)
    assert (choice.uplink.address, choice.uplink.address6) == (IPAddress("192.0.2.9"), IPAddress("2001:db8::1"))
    said = "".join(f"default route: there is none for IPv{version}; --iface names an interface" for version in lost)
    assert choice.lacks == said


def test_where_nothing_is_left_of_both_families_nothing_is_followed() -> None:
    for held, routes in ((("fe80::1/64",), (4, 6)), ((), (4, 6)), (("192.0.2.9/24", "2001:db8::9/64"), ())):
        facts = HostFacts((interface(3, "eth1", *held),), tuple(DefaultRoute(version, 3) for version in routes))
        with pytest.raises(NoUplinkError):
            choose(facts, Wish(), DUAL, {}, HAD)


@pytest.mark.parametrize(("flags", "taken"), [("dynamic temporary", "2001:db8::1"), ("dynamic", "2001:db8::77")])
@pytest.mark.parametrize("in_use", [None, "2001:db8::1"])
def test_an_address_of_a_day_is_not_what_peers_are_told(flags: str, taken: str, in_use: str | None) -> None:
    """With use_tempaddr 2 the kernel says that it would send from one: another each day."""
    target = IPAddress("2001:db8:9::1")
    answer = RouteAnswer("eth1", 3, IPAddress("2001:db8::77"))
    facts = HostFacts((interface(3, "eth1", f"2001:db8::77/64 {flags}", "2001:db8::1/64 dynamic", "fe80::1/64"),))
    before = None if in_use is None else Uplink("eth1", 3, 1500, address6=IPAddress(in_use))
    assert shown(choose(facts, Wish(can_reach=target), IPV6, {target: answer}, before)) == f"eth1 {taken}"


# (what eth0 has, what eth1 has, what is taken where eth1 is in use with 192.0.2.1 and 2001:db8::1, what that lacks)
CANDIDATES = [
    (("10.0.0.1/24",), ("192.0.2.1/24", "2001:db8::1/64"), "eth1 192.0.2.1 2001:db8::1", ""),
    (("2001:db8:1::1/64",), ("192.0.2.1/24", "2001:db8::1/64"), "eth1 192.0.2.1 2001:db8::1", ""),
    (("10.0.0.1/24", "fe80::2/64"), ("192.0.2.9/24", "2001:db8::9/64"), "eth1 192.0.2.9 2001:db8::9", ""),
    (("10.0.0.1/24",), ("2001:db8::1/64",), "eth1 192.0.2.1 2001:db8::1", "eth1 has no usable IPv4 address"),
    (("10.0.0.1/24",), (), "eth0 10.0.0.1 2001:db8::1", "eth0 has no usable IPv6 address"),
    (("10.0.0.1/24", "2001:db8:1::1/64"), ("192.0.2.1/24", "2001:db8::1/64"), "eth0 10.0.0.1 2001:db8:1::1", ""),
]


@pytest.mark.parametrize("wish", [Wish(iface=("eth0", "eth1")), Wish(iface=("eth0",), iface_regex=("^eth1$",))])
@pytest.mark.parametrize(("first", "second", "taken", "lacks"), CANDIDATES)
def test_a_candidate_that_has_one_family_takes_no_place_of_one_that_has_both(
    wish: Wish, first: tuple[str, ...], second: tuple[str, ...], taken: str, lacks: str
) -> None:
    facts = HostFacts((interface(2, "eth0", *first), interface(3, "eth1", *second)))
    choice = choose(facts, wish, DUAL, {}, HAD)
    assert shown(choice) == taken
    assert lacks in choice.lacks
    assert bool(lacks) == bool(choice.lacks)


def test_an_advertised_address_whose_interface_has_one_family_moves_no_uplink() -> None:
    """Looked at once more, the choice is the same one."""
    facts = HostFacts(
        (interface(2, "eth0", "10.0.0.1/24"), interface(3, "eth1", "192.0.2.1/24", "2001:db8::1/64")),
        (DefaultRoute(4, 3), DefaultRoute(6, 3)),
    )
    first = pick(Wish(public_ip=IPAddress("10.0.0.1")), DUAL, facts)
    assert shown(first) == "eth1 192.0.2.1 2001:db8::1"
    assert choose(facts, Wish(public_ip=IPAddress("10.0.0.1")), DUAL, {}, first.uplink) == first


def test_loopback_is_usable_only_by_its_address() -> None:
    assert "lo has no usable IPv4 address" in refusal(Wish(iface=("lo",)))
    assert shown(pick(Wish(iface=("127.0.0.1",)))) == "lo 127.0.0.1"


def test_a_private_address_is_global_in_this_sense() -> None:
    facts = HostFacts((interface(1, "eth0", "169.254.1.1/16", "10.0.0.1/24"),))
    assert shown(pick(Wish(iface=("eth0",)), facts=facts)) == "eth0 10.0.0.1"


def test_an_interface_without_the_family_falls_out_and_the_next_is_tried() -> None:
    bare = interface(9, "bare")
    facts = HostFacts((*HOST.interfaces, bare))
    choice = pick(Wish(iface=("bare", "eth1")), facts=facts)
    assert shown(choice) == "eth1 192.0.2.1"
    assert choice.reasons[0] == "--iface bare: bare has no usable IPv4 address"


def test_an_interface_without_mtu_falls_out() -> None:
    facts = HostFacts((interface(1, "eth0", "10.0.0.1/24", mtu=0),))
    assert refusal(Wish(iface=("eth0",)), facts=facts).startswith("no interface fits; --iface eth0: eth0 has MTU 0; ")


@pytest.mark.parametrize(("mtu", "used"), [(1280, 1280), (65_535, 65_535), (65_536, 65_535), (100_000, 65_535)])
@pytest.mark.parametrize("backend", ["vxlan", "udp", "ipip", "host-gw", "alloc", "wireguard"])
def test_an_mtu_that_no_ip_packet_has_is_not_gone_by(backend: str, mtu: int, used: int) -> None:
    """Loopback, where the host's address is routed to it: udp made of 65,536 what no datagram can carry."""
    uplink = pick(Wish(iface=("lo",)), facts=HostFacts((interface(1, "lo", "192.0.2.1/32", mtu=mtu),))).uplink
    assert uplink.mtu == used
    config, made = parse(f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "{backend}"}}}}')
    inner = made.mtu(Local(config, uplink))
    assert as_mtu(str(inner)) == inner <= used - made.overhead(4)


def test_an_interface_that_is_down_is_taken_and_told() -> None:
    facts = HostFacts((interface(1, "eth0", "10.0.0.1/24", up=False),))
    assert pick(Wish(iface=("eth0",)), facts=facts).reasons == ("--iface eth0: eth0, 10.0.0.1, MTU 1500; it is down",)


def test_an_address_of_a_family_that_the_network_has_not() -> None:
    assert refusal(Wish(iface=("2001:db8::1",))).startswith("no interface fits; --iface 2001:db8::1: the network has no IPv6; ")


def test_only_the_families_of_the_network_are_told() -> None:
    uplink = pick(Wish(iface=("eth1",), public_ipv6=IPAddress("2001:db8::99"))).uplink
    assert (uplink.address6, uplink.public_ipv6) == (None, None)


# ------------------------------------------------------------------------------------------------- what stays, what comes last

OVERLAY = (IPNetwork("192.168.0.0/17"), IPNetwork("fd05::/48"))


def stays(wish: Wish, prefer: Uplink | None, *interfaces: Interface, ours: frozenset[str] = frozenset()) -> str:
    facts = HostFacts(tuple(interfaces), (DefaultRoute(4, interfaces[0].index),))
    return shown(choose(facts, wish, IPV4, {}, prefer, OVERLAY, ours))


def at(address: str, name: str = "eth1", index: int = 3) -> Uplink:
    return Uplink(name, index, 1500, IPAddress(address))


@pytest.mark.parametrize("wish", [Wish(iface=("eth1",)), Wish(iface_regex=(r"^192\.0\.2",)), Wish()])
def test_the_address_in_use_stays_while_its_interface_has_it(wish: Wish) -> None:
    both = interface(3, "eth1", "192.0.2.9/24", "192.0.2.1/24")
    assert stays(wish, None, both) == "eth1 192.0.2.9"
    assert stays(wish, at("192.0.2.1"), both) == "eth1 192.0.2.1"
    assert stays(wish, at("192.0.2.1"), interface(3, "eth1", "192.0.2.9/24")) == "eth1 192.0.2.9"
    assert stays(wish, at("192.0.2.1"), interface(3, "eth1", "192.0.2.9/24", "192.0.2.1/24 deprecated")) == "eth1 192.0.2.9"


def test_what_was_asked_for_by_address_or_told_to_peers_is_no_matter_of_staying() -> None:
    both = interface(3, "eth1", "192.0.2.1/24", "192.0.2.9/24")
    assert stays(Wish(iface=("192.0.2.9",)), at("192.0.2.1"), both) == "eth1 192.0.2.9"
    assert stays(Wish(public_ip=IPAddress("192.0.2.9")), at("192.0.2.1"), both) == "eth1 192.0.2.9"


def test_by_a_pattern_the_interface_in_use_stays_though_it_was_made_anew() -> None:
    other, anew = interface(4, "eth2", "192.0.2.8/24"), interface(9, "eth1", "192.0.2.1/24")
    assert stays(Wish(iface_regex=("^eth",)), at("192.0.2.1"), other, anew) == "eth1 192.0.2.1"
    assert stays(Wish(iface_regex=("^192",)), at("192.0.2.1"), other, anew) == "eth1 192.0.2.1"
    assert stays(Wish(iface_regex=("^192",)), None, other, anew) == "eth2 192.0.2.8"


@pytest.mark.parametrize("virtual", ["192.0.2.100/32", "192.0.2.100/32 dynamic"])
@pytest.mark.parametrize("own", ["192.0.2.1/24", "192.0.2.1/24 dynamic"])
def test_an_address_of_one_host_comes_last_but_will_do(virtual: str, own: str) -> None:
    assert stays(Wish(iface=("eth1",)), None, interface(3, "eth1", virtual, own)) == "eth1 192.0.2.1"
    assert stays(Wish(iface=("eth1",)), None, interface(3, "eth1", virtual)) == "eth1 192.0.2.100"


def test_a_pattern_never_finds_an_address_inside_the_overlay() -> None:
    docker0, eth1 = interface(5, "docker0", "192.168.20.1/24"), interface(9, "eth1", "192.168.200.1/24")
    wish = Wish(iface_regex=(r"^192\.168\.",))
    assert stays(wish, None, docker0, eth1) == "eth1 192.168.200.1"
    with pytest.raises(NoUplinkError, match="matches no address and no name"):
        stays(wish, at("192.168.20.1"), docker0)
    with pytest.raises(NoUplinkError, match="docker0 has no usable IPv4 address outside the overlay's networks"):
        stays(Wish(iface_regex=("docker",)), None, docker0)


def test_a_host_whose_own_network_lies_inside_the_overlay_is_told_so() -> None:
    """Its interface was named, or is where the default route leaves: there is no other."""
    inside = interface(3, "eth1", "192.168.20.7/24")
    facts = HostFacts((inside,), (DefaultRoute(4, 3),))
    for wish in (Wish(), Wish(iface=("eth1",)), Wish(iface=("192.168.20.7",))):
        choice = choose(facts, wish, IPV4, {}, None, OVERLAY)
        assert choice.reasons[-1].endswith("192.168.20.7 lies inside the overlay's own network")
    both = interface(3, "eth1", "192.168.20.7/24", "192.0.2.1/24 dynamic")
    assert stays(Wish(iface=("eth1",)), at("192.168.20.7"), both) == "eth1 192.0.2.1"


def test_our_own_devices_are_never_taken() -> None:
    flannel, eth1 = interface(5, "flannel.1", "192.0.2.9/24"), interface(9, "eth1", "192.0.2.1/24")
    ours = frozenset({"flannel.1"})
    assert stays(Wish(iface=("flannel.1", "eth1")), None, flannel, eth1, ours=ours) == "eth1 192.0.2.1"
    assert stays(Wish(iface_regex=("9",)), None, flannel, interface(9, "eth9", "192.0.2.1/24"), ours=ours) == "eth9 192.0.2.1"
    with pytest.raises(NoUplinkError, match=r"--iface flannel.1: it is one of our own devices; there is no interface at all"):
        stays(Wish(iface=("flannel.1",)), None, flannel, ours=ours)


def test_the_name_that_ip_shows_gets_a_hint() -> None:
    assert "--iface eth1@if7: no such interface; its name is eth1, " in refusal(Wish(iface=("eth1@if7",)))
    assert "--iface eth7@if7: no such interface; there is" in refusal(Wish(iface=("eth7@if7",)))


# ------------------------------------------------------------------------------------------------------------ default route


def test_default_routes_that_cannot_be_used() -> None:
    assert "there is none for IPv4" in refusal(facts=HostFacts(HOST.interfaces))
    assert "several next hops" in refusal(facts=HostFacts(HOST.interfaces, (DefaultRoute(4, 0),)))
    assert "different interfaces" in refusal(families=DUAL)
    assert "(index 77) is not there" in refusal(facts=HostFacts(HOST.interfaces, (DefaultRoute(4, 77),)))


def test_dual_default_routes_by_one_interface() -> None:
    facts = HostFacts(HOST.interfaces, (DefaultRoute(6, 3), DefaultRoute(4, 3), DefaultRoute(4, 2)))
    assert shown(pick(families=DUAL, facts=facts)) == "eth1 192.0.2.1 2001:db8::1"


def test_can_reach_fills_in_what_the_kernel_does_not_say() -> None:
    assert shown(pick(Wish(can_reach=IPAddress("198.51.100.1")), DUAL, a=RouteAnswer("eth1", 3))) == "eth1 192.0.2.1 2001:db8::1"
