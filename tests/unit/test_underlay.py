"""What of a host must stay outside of the overlay, whatever is leased, and how is a route made that leaves it out?"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork, IPSet

from flannelpy.core.host_facts import DefaultRoute, HostFacts, Interface, InterfaceAddress
from flannelpy.core.objects import HostState, Link, Route
from flannelpy.core.underlay import Shield, Underlay

NETWORK = IPNetwork("192.168.0.0/16")


def nic(name: str, index: int, *nets: str) -> Interface:
    held = tuple(InterfaceAddress(IPNetwork(net).ip, IPNetwork(net).prefixlen) for net in nets)
    return Interface(name, index, 1500, True, held)


def shield(*nics: Interface, others: tuple[tuple[str, str], ...] = (), via: str | None = None) -> Shield:
    defaults = () if via is None else (DefaultRoute(4, 2, IPAddress(via)),)
    known = [(IPAddress(address), what) for address, what in others]
    return Shield.of(Underlay.of(HostFacts(nics, defaults), frozenset({"flannel.1"}), (), "eth1", known), [NETWORK])


def test_the_hosts_networks_are_all_but_ours() -> None:
    nics = (nic("lo", 1, "127.0.0.1/8"), nic("eth1", 2, "192.168.90.1/24"), nic("docker0", 3, "10.5.9.1/24"))
    facts = HostFacts((*nics, nic("flannel.1", 4, "10.5.9.0/32"), nic("veth1", 5, "169.254.1.1/32", "fe80::1/64")))
    found = Underlay.of(facts, frozenset({"flannel.1"}), [IPNetwork("10.5.9.0/24")]).networks
    assert [(str(net), name) for net, name in found] == [("192.168.90.0/24", "eth1")]
    assert ("10.5.9.0/24", "docker0") in [(str(net), name) for net, name in Underlay.of(facts, frozenset()).networks]


@pytest.mark.parametrize("subnet", ["192.168.90.0/24", "192.168.0.0/16"])
def test_the_uplink_is_no_bridge_of_a_subnet(subnet: str) -> None:
    facts = HostFacts((nic("eth1", 2, "192.168.90.1/24"), nic("docker0", 3, "192.168.90.129/25")))
    found = Underlay.of(facts, frozenset(), [IPNetwork(subnet)], "eth1").networks
    assert [(str(net), name) for net, name in found] == [("192.168.90.0/24", "eth1")]


@pytest.mark.parametrize(("name", "bridge"), [("docker0", True), ("cni0", True), ("eth2", False), ("eth1", False)])
@pytest.mark.parametrize("length", [16, 23])
def test_a_bridge_that_was_made_too_wide_is_a_bridge_all_the_same(name: str, bridge: bool, length: int) -> None:
    """Of another interface that is a network which the host needs."""
    facts = HostFacts((nic(name, 2, f"10.5.9.1/{length}"),))
    found = Underlay.of(facts, frozenset(), [IPNetwork("10.5.9.0/24")], "eth1")
    assert [one.bridge for one in found.own] == [bridge]
    assert bool(found.networks) != bridge


def test_what_is_not_to_be_leased_to_this_host() -> None:
    facts = HostFacts((nic("eth1", 2, "192.168.90.1/24"),), (DefaultRoute(4, 2, IPAddress("192.168.1.1")),))
    found = Underlay.of(facts, frozenset(), (), "eth1", [(IPAddress("192.168.7.9"), "etcd")])
    assert [str(net) for net in found.avoided] == ["192.168.90.0/24", "192.168.1.1/32", "192.168.7.9/32"]


def test_what_a_route_may_not_cover() -> None:
    here = shield(
        nic("eth0", 1, "10.0.2.1/24", "192.168.3.3/32"),
        nic("eth1", 2, "192.168.90.1/24"),
        others=(("192.168.7.9", "etcd"), ("192.168.90.254", "etcd"), ("8.8.8.8", "the resolver")),
        via="192.168.90.253",
    )
    covered = {
        "192.168.90.254/31": "192.168.90.0/24 on eth1",
        "192.168.0.0/17": "192.168.90.0/24 on eth1",
        "192.168.3.0/24": "this host's own 192.168.3.3 on eth0",
        "192.168.7.8/30": "192.168.7.9, etcd",
        "192.168.91.0/24": "",
        "8.8.8.0/24": "",  # outside Network: no route of ours leads there
    }
    assert {net: here.covered(IPNetwork(net)) for net in covered} == covered


def test_the_host_s_route_is_made_of_what_is_left() -> None:
    here = shield(nic("eth1", 2, "192.168.90.1/24"))
    device = Link("flannel0", "tun", 1472)
    carved = here.carved(HostState.of(device, Route(NETWORK, dev="flannel0"), Route(IPNetwork("10.5.0.0/16"), dev="flannel0")))
    assert [f"{item.noun} {item}" for item in carved] == [
        "link flannel0 mtu 1472 up type tun",
        "route 192.168.0.0/18 dev flannel0",
        "route 192.168.64.0/20 dev flannel0",
        "route 192.168.80.0/21 dev flannel0",
        "route 192.168.88.0/23 dev flannel0",
        "route 192.168.91.0/24 dev flannel0",
        "route 192.168.92.0/22 dev flannel0",
        "route 192.168.96.0/19 dev flannel0",
        "route 192.168.128.0/17 dev flannel0",
        "route 10.5.0.0/16 dev flannel0",
    ]
    assert list(here.crossing(carved)) == []


blocks = st.builds(
    lambda low, length: IPNetwork((0xC0A80000 | low, length), version=4).cidr, st.integers(0, 2**16 - 1), st.integers(16, 32)
)
addresses = st.integers(0, 2**16 - 1).map(lambda low: (IPAddress(0xC0A80000 | low, 4), "etcd"))


@given(blocks, st.lists(addresses, max_size=6), st.one_of(st.none(), blocks))
def test_carving_leaves_everything_else_and_nothing_of_it(
    net: IPNetwork, others: list[tuple[IPAddress, str]], link: IPNetwork | None
) -> None:
    nics = () if link is None else (nic("eth1", 2, f"{link.network}/{link.prefixlen}"),)
    here = Shield.of(Underlay.of(HostFacts(nics), frozenset(), (), "eth1", others), [NETWORK])
    kept = IPSet([address for address, _ in others] + ([] if link is None else [link if link.prefixlen > 16 else link.network]))
    parts = list(here.carve(net))
    assert IPSet(parts) == IPSet([net]) - kept
    assert parts == sorted(parts)
    assert not any(here.covered(part) for part in parts)
    assert bool(here.covered(net)) == bool(IPSet([net]) & kept)


def test_a_link_wider_than_network_is_no_place_for_peers_inside_network() -> None:
    facts = HostFacts((nic("eth1", 2, "192.168.0.1/15"),))
    here = Shield.of(Underlay.of(facts, frozenset(), (), "eth1"), [NETWORK])
    assert here.unfit(IPAddress("192.169.0.2")) == ""
    assert here.unfit(IPAddress("192.168.0.2")) == "192.168.0.2 lies inside the network 192.168.0.0/16"
    assert here.covered(IPNetwork("192.168.90.0/24")) == ""


def test_where_the_uplink_is_link_local_peers_may_be() -> None:
    here = shield(nic("eth1", 2, "169.254.3.3/16", "fe80::3/64"))
    assert here.unfit(IPAddress("169.254.3.4")) == ""
    assert here.unfit(IPAddress("fe80::4")) == ""
    assert here.unfit(IPAddress("169.254.3.3")) == "169.254.3.3 is this host's own, on eth1"


@pytest.mark.parametrize("duplicate", [False, True])
def test_what_another_host_has_is_not_this_hosts_own(duplicate: bool) -> None:
    eth1 = nic("eth1", 2, "2001:db8::1/64", "2001:db8::9/64")
    held = [replace(one, duplicate=duplicate and str(one.address) == "2001:db8::9") for one in eth1.addresses]
    here = shield(replace(eth1, addresses=tuple(held)))
    assert here.unfit(IPAddress("2001:db8::9")) == ("" if duplicate else "2001:db8::9 is this host's own, on eth1")
    assert here.unfit(IPAddress("2001:db8::1")) == "2001:db8::1 is this host's own, on eth1"


def test_where_nothing_is_known_of_the_host_no_address_is_refused_for_it() -> None:
    here = Shield.of(Underlay(), [NETWORK])
    assert here.unfit(IPAddress("192.168.1.1")) == ""
    assert here.unfit(IPAddress("127.0.0.1")) == "is not the address of a host"
