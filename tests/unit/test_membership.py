"""Which leases are peers: each judged alone, the work proportional to the change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.claims import overlapping
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import MalformedError
from flannelpy.core.host_facts import HostFacts, Interface, InterfaceAddress
from flannelpy.core.membership import Membership
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key
from flannelpy.core.underlay import Underlay

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
VXLAN = frozenset({"vxlan"})


def lease(subnet: str, at: str = "192.0.2.2", *, born: int = 5, backend: str = "vxlan", data: object = None) -> Lease:
    attrs = LeaseAttrs(IPAddress(at), backend_type=backend, backend_data=data)
    return Lease(IPNetwork(subnet), attrs, etcd_lease=1, create_revision=born, mod_revision=born)


OWN = lease("10.5.72.0/24", "192.0.2.1")


def cluster(*leases: Lease) -> Membership:
    membership = Membership(CONFIG, VXLAN, OWN)
    membership.replace((OWN, *leases))
    return membership


def test_a_new_peer_is_one_change() -> None:
    peer = lease("10.5.9.0/24")
    assert cluster().put(peer).peers == {"10.5.9.0-24": peer}


def test_a_pure_renewal_changes_nothing() -> None:
    membership = cluster(lease("10.5.9.0/24"))
    renewed = Lease(IPNetwork("10.5.9.0/24"), lease("10.5.9.0/24").attrs, etcd_lease=2, create_revision=5, mod_revision=99)
    assert membership.put(renewed).peers == {}


def test_our_own_lease_is_no_peer_and_nothing_to_report() -> None:
    membership = Membership(CONFIG, VXLAN)
    membership.put(OWN)
    changes = membership.set_own(OWN)
    assert changes.peers == {"10.5.72.0-24": None}
    assert not changes.refused.get("10.5.72.0-24")
    assert membership.peers == {}


def test_a_second_listing_compares_values_in_full_and_never_removes_ourselves() -> None:
    """field-problems F5: attribute changes across a gap, and Removed for our own lease."""
    membership = cluster(lease("10.5.9.0/24", data={"VtepMAC": "aa"}))
    moved = lease("10.5.9.0/24", data={"VtepMAC": "bb"})
    assert membership.replace((OWN, moved)).peers == {"10.5.9.0-24": moved}


def test_a_listing_without_a_peer_removes_it() -> None:
    assert cluster(lease("10.5.9.0/24")).replace((OWN,)).peers == {"10.5.9.0-24": None}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lease("10.6.9.0/24"), "10.6.9.0/24 at 192.0.2.2: lies outside the network 10.5.0.0/16"),
        (lease("10.5.9.7/24"), "10.5.9.7/24 at 192.0.2.2: 10.5.9.7/24 has host bits: expected 10.5.9.0/24"),
        (lease("10.5.9.0/24", "127.0.0.1"), "10.5.9.0/24 at 127.0.0.1: PublicIP is not the address of a host"),
        (lease("10.5.9.0/24", "0.0.0.0"), "10.5.9.0/24 at 0.0.0.0: PublicIP is not the address of a host"),
        (lease("10.5.9.0/24", "255.255.255.255"), "10.5.9.0/24 at 255.255.255.255: PublicIP is not the address of a host"),
        (lease("10.5.9.0/24", backend="host-gw"), "10.5.9.0/24 at 192.0.2.2: its backend is host-gw, ours is vxlan"),
        (lease("10.5.9.0/24", backend=""), "10.5.9.0/24 at 192.0.2.2: its backend is none, ours is vxlan"),
        (lease("10.5.0.0/16", born=3), "10.5.0.0/16 at 192.0.2.2: takes more than a quarter of the network 10.5.0.0/16"),
        (lease("10.0.0.0/8", born=3), "10.0.0.0/8 at 192.0.2.2: lies outside the network 10.5.0.0/16"),
    ],
)
def test_a_lease_that_cannot_be_used_is_left_out_with_a_reason(bad: Lease, why: str) -> None:
    good = lease("10.5.10.0/24", "192.0.2.9")
    membership = cluster(good)
    changes = membership.put(bad)
    assert changes.refused == {bad.key: why}
    assert membership.peers == {"10.5.10.0-24": good}


@pytest.mark.parametrize("twin", [lease("10.5.9.0/24", "192.0.2.1"), lease("10.5.72.128/25", born=3)])
def test_a_lease_that_collides_with_ours_is_left_out_in_silence_because_the_rules_of_leasing_tell(twin: Lease) -> None:
    changes = cluster().put(twin)
    assert changes.peers == {twin.key: None}
    assert not changes.refused[twin.key]


def test_a_lease_that_is_left_out_itself_shuts_out_nobody() -> None:
    oldest, middle, youngest = lease("10.5.8.0/25", born=3), lease("10.5.8.0/22", born=4), lease("10.5.10.0/24", born=9)
    membership = cluster(youngest, middle, oldest)
    assert membership.peers == {oldest.key: oldest, youngest.key: youngest}
    assert membership.remove(oldest.key).peers == {oldest.key: None, middle.key: middle, youngest.key: None}


def test_of_overlapping_leases_the_older_is_programmed_and_the_younger_comes_back_after_it() -> None:
    young, old = lease("10.5.8.0/24", "192.0.2.3", born=9), lease("10.5.8.0/22", "192.0.2.2", born=4)
    membership = cluster(young)
    changes = membership.put(old)
    assert changes.peers == {"10.5.8.0-22": old, "10.5.8.0-24": None}
    assert changes.refused == {"10.5.8.0-24": "10.5.8.0/24 at 192.0.2.3: overlaps the older lease 10.5.8.0/22 at 192.0.2.2"}
    changes = membership.remove("10.5.8.0-22")
    assert changes.peers == {"10.5.8.0-22": None, "10.5.8.0-24": young}
    assert changes.refused == {"10.5.8.0-24": None}


def test_removing_what_was_never_there_is_no_news() -> None:
    assert cluster().remove("10.5.9.0-24").peers == {}


def test_a_younger_key_for_the_same_addresses_takes_nothing_and_leaves_nothing() -> None:
    """Host bits, an IPv6 half, a part of it: and what comes after the key is gone finds the older one where it was."""
    honest = lease("10.5.9.0/24")
    for name in ("10.5.9.5-24", "10.5.9.0-24&fd00:1::-64", "10.5.9.0-25", "10.5.9.128-25", "10.5.9.200-31", "10.5.8.0-22"):
        subnet, subnet6 = parse_subnet_key(name)
        rogue = Lease(subnet, lease("10.5.9.0/24", "192.0.2.66").attrs, subnet6, 1, 9, 9)
        membership = cluster(honest)
        assert membership.put(rogue).peers == {name: None}
        assert membership.remove(name).peers == {}
        later = lease("10.5.9.0/25", "192.0.2.66", born=10)
        assert membership.put(later).peers == {later.key: None}
        assert membership.peers == {honest.key: honest}


DUAL = '"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/32"'


@pytest.mark.parametrize(
    ("network", "key", "why"),
    [
        ('"Network": "10.5.0.0/16"', "10.5.9.0-24&fd00:1::-64", "fd00:1::/64 is IPv6, which the network has none of"),
        ('"Network": "10.5.0.0/16"', "0.0.0.0-0&fd00:1::-64", "fd00:1::/64 is IPv6, which the network has none of"),
        ('"Network": "10.5.0.0/16"', "10.5.9.0-24&::-0", "::/0 is IPv6, which the network has none of"),
        ('"Network": "10.5.0.0/16"', "0.0.0.0-0&::-0", "::/0 is IPv6, which the network has none of"),
        (DUAL, "10.5.9.0-24&::-0", "lies outside the network fd00::/32"),
        (DUAL, "0.0.0.0-0&::-0", "lies outside the network fd00::/32"),
        (
            '"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/32"',
            "10.5.9.0-24&fd00:0:1::-64",
            "10.5.9.0/24 is IPv4, which the network has none of",
        ),
    ],
)
def test_a_half_that_the_network_lacks_or_that_is_everything_is_refused(network: str, key: str, why: str) -> None:
    membership = Membership(NetworkConfig.parse(f'{{{network}, "Backend": {{"Type": "vxlan"}}}}'), VXLAN)
    rogue = Lease(*reversed_halves(key), 1, 9, 9)
    membership.put(rogue)
    assert membership.peers == {}
    assert membership.refused == {key: f"{rogue}: {why}"}


def reversed_halves(key: str) -> tuple[IPNetwork, LeaseAttrs, IPNetwork | None]:
    subnet, subnet6 = parse_subnet_key(key)
    return subnet, LeaseAttrs(IPAddress("192.0.2.66"), IPAddress("2001:db8::66"), "vxlan"), subnet6


def nic(name: str, index: int, *nets: str) -> Interface:
    held = tuple(InterfaceAddress(IPNetwork(net).ip, IPNetwork(net).prefixlen) for net in nets)
    return Interface(name, index, 1500, True, held)


FACTS = HostFacts(
    (nic("eth0", 1, "10.0.2.1/24"), nic("eth1", 2, "192.168.90.1/24", "fd90::1/64"), nic("docker0", 3, "10.5.72.1/24"))
)
BOTH = NetworkConfig.parse(
    '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48", "Backend": {"Type": "vxlan"}}'
)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.168.90.2", ""),
        ("192.168.90.255", "PublicIP 192.168.90.255 is the broadcast address of 192.168.90.0/24 on eth1"),
        ("192.168.90.0", "PublicIP 192.168.90.0 is the network's own address in 192.168.90.0/24 on eth1"),
        ("10.0.2.1", "PublicIP 10.0.2.1 is this host's own, on eth0"),
        ("10.0.2.255", "PublicIP 10.0.2.255 is the broadcast address of 10.0.2.0/24 on eth0"),
        ("10.5.72.1", "PublicIP 10.5.72.1 is this host's own, on docker0"),
        ("10.5.9.7", "PublicIP 10.5.9.7 lies inside the network 10.5.0.0/16"),
        ("10.5.200.7", "PublicIP 10.5.200.7 lies inside the network 10.5.0.0/16"),
        ("169.254.169.254", "PublicIP 169.254.169.254 is link-local, and this host's uplink is not"),
        ("224.0.0.1", "PublicIP is not the address of a host"),
        ("198.51.100.7", ""),
        ("fd90::2", ""),
        ("fd90::1", "PublicIPv6 fd90::1 is this host's own, on eth1"),
        ("fd90::", "PublicIPv6 fd90:: is the network's own address in fd90::/64 on eth1"),
        ("fd05::9", "PublicIPv6 fd05::9 lies inside the network fd05::/48"),
        ("::", "PublicIPv6 is not the address of a host"),
        ("::1", "PublicIPv6 is not the address of a host"),
        ("::ffff:192.0.2.2", "PublicIPv6 is not the address of a host"),
        ("ff02::1", "PublicIPv6 is not the address of a host"),
        ("fe80::1", "PublicIPv6 fe80::1 is link-local, and this host's uplink is not"),
    ],
)
def test_an_address_that_can_be_no_peers(address: str, why: str) -> None:
    membership = Membership()
    underlay = Underlay.of(FACTS, frozenset(), [IPNetwork("10.5.72.0/24")], "eth1")
    membership.configure(BOTH, VXLAN, IPAddress("192.168.90.1"), underlay)
    at = IPAddress(address)
    v4, v6 = (at, IPAddress("fd90::2")) if at.version == 4 else (IPAddress("192.168.90.2"), at)
    peer = Lease(IPNetwork("10.5.9.0/24"), LeaseAttrs(v4, v6, "vxlan"), IPNetwork("fd05:0:0:9::/64"), 1, 5, 5)
    membership.put(peer)
    assert membership.refused == ({peer.key: f"{peer}: {why}"} if why else {})
    assert membership.peers == ({} if why else {peer.key: peer})


@pytest.mark.parametrize(
    ("subnet", "why"),
    [
        ("192.168.90.254/31", "would take 192.168.90.0/24 on eth1 into the overlay"),
        ("192.168.90.66/31", "would take 192.168.90.0/24 on eth1 into the overlay"),
        ("192.168.80.0/20", "would take 192.168.90.0/24 on eth1 into the overlay"),
        ("192.168.7.8/31", "would take 192.168.7.9, etcd into the overlay"),
        ("192.168.7.0/24", "would take 192.168.7.9, etcd into the overlay"),
        ("192.168.8.0/30", "would take this host's own 192.168.8.1 on eth2 into the overlay"),
        ("192.168.8.128/25", ""),
        ("192.168.91.0/24", ""),
    ],
)
def test_a_lease_over_what_this_host_cannot_do_without(subnet: str, why: str) -> None:
    config = NetworkConfig.parse('{"Network": "192.168.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}')
    facts = HostFacts((nic("eth1", 1, "192.168.90.1/24"), nic("eth2", 2, "192.168.8.1/24")))
    membership = Membership()
    underlay = Underlay.of(facts, frozenset(), (), "eth1", [(IPAddress("192.168.7.9"), "etcd")])
    membership.configure(config, VXLAN, IPAddress("192.168.90.1"), underlay)
    peer = lease(subnet, "192.168.90.2")  # inside Network, on the uplink's own link
    membership.put(peer)
    assert membership.refused == ({peer.key: f"{peer}: {why}"} if why else {})


@given(st.integers(8, 30), st.integers(0, 2**32 - 1), st.integers(8, 30), st.integers(0, 2**32 - 1))
def test_nothing_that_leads_to_a_peer_goes_into_the_overlay(link: int, at: int, length: int, seed: int) -> None:
    """Whatever the host's link and Network are to each other: where a lease is usable, no usable lease covers its PublicIP."""
    network = IPNetwork("10.0.0.0/8" if seed % 2 else "10.77.0.0/16")
    net = IPNetwork((0x0A4D0000 | at & 0xFFFF, link), version=4)
    own = IPNetwork((net.first + 1, link), version=4)
    facts = HostFacts((Interface("eth1", 2, 1500, True, (InterfaceAddress(own.ip, link),)),))
    membership = Membership()
    config = NetworkConfig.parse(f'{{"Network": "{network}", "SubnetLen": 24, "Backend": {{"Type": "vxlan"}}}}')
    membership.configure(config, VXLAN, own.ip, Underlay.of(facts, frozenset(), (), "eth1"))
    public = net.first + 2 + seed % max(1, net.size - 3)
    subnet = IPNetwork((public >> (32 - length) << (32 - length), length), version=4)
    membership.put(lease(str(subnet), str(IPAddress(public, 4)), born=1))
    membership.put(lease(str(subnet), "198.51.100.7", born=2))
    membership.put(lease("10.77.200.0/24", str(IPAddress(public, 4)), born=3))
    for peer in membership.peers.values():
        assert not any(peer.public_ip in other.subnet for other in membership.peers.values())


def test_of_two_leases_with_one_mac_the_older_has_it_and_the_younger_comes_back_after_it() -> None:
    membership = Membership()
    membership.configure(CONFIG, VXLAN, None, None, lambda attrs: {"flannel.1": attrs.backend_data["VtepMAC"]})
    old, young = lease("10.5.9.0/24", born=3, data={"VtepMAC": "aa"}), lease("10.5.10.0/24", born=4, data={"VtepMAC": "aa"})
    membership.put(young)
    assert membership.put(old).peers == {old.key: old, young.key: None}
    assert membership.refused == {young.key: f"{young}: has the identity aa of the older lease {old}"}
    drawn = lease("10.5.10.0/24", born=4, data={"VtepMAC": "bb"})
    assert membership.put(drawn).peers == {young.key: drawn}
    membership.put(young)
    assert membership.remove(old.key).peers == {old.key: None, young.key: young}


nets = st.builds(lambda first, length: f"10.5.{first}.0-{length}", st.integers(0, 15), st.integers(20, 26))
halves6 = st.builds(lambda first, length: f"fd05:0:0:{first}::-{length}", st.integers(1, 15), st.integers(60, 66))
names = st.one_of(nets, st.builds("{}&{}".format, nets, halves6), halves6.map("0.0.0.0-0&{}".format))
hosts = st.sampled_from(("192.0.2.1", "192.0.2.2", "192.0.2.3", "255.255.255.255", "10.5.3.3"))


def made(name: str, host: str, born: int, mac: str) -> Lease:
    subnet, subnet6 = parse_subnet_key(name)
    return Lease(subnet, LeaseAttrs(IPAddress(host), IPAddress("2001:db8::9"), "vxlan", mac), subnet6, 1, born, born)


def spelled(name: str) -> bool:
    try:
        parse_subnet_key(name)
    except MalformedError:
        return False
    return True


leases = st.builds(made, names.filter(spelled), hosts, st.integers(1, 9), st.sampled_from("abcdefg"))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from((CONFIG, BOTH)), st.lists(st.one_of(leases, names), max_size=30))
def test_walking_through_events_ends_where_a_fresh_listing_does(config: NetworkConfig, events: list[Lease | str]) -> None:
    facts = HostFacts((nic("eth1", 2, "192.0.2.1/24"),))
    conditions = (
        config,
        VXLAN,
        IPAddress("192.0.2.1"),
        Underlay.of(facts, frozenset(), (), "eth1"),
        lambda attrs: {"dev": attrs.backend_data},
    )
    walked, programmed, refused = Membership(), dict[str, Lease](), dict[str, str]()
    walked.configure(*conditions)
    walked.set_own(OWN)
    for event in events:
        changes = walked.remove(event) if isinstance(event, str) else walked.put(event)
        for key, peer in changes.peers.items():
            if peer is None:
                programmed.pop(key, None)
            else:
                programmed[key] = peer
        for key, why in changes.refused.items():
            if why is None:
                refused.pop(key, None)
            else:
                refused[key] = why
    fresh = Membership()
    fresh.set_own(OWN)
    fresh.replace(walked.leases.values())
    fresh.configure(*conditions)
    assert programmed == walked.peers == fresh.peers
    assert refused == walked.refused
    assert {key: _kind(why) for key, why in refused.items()} == {key: _kind(why) for key, why in fresh.refused.items()}
    kept = list(programmed.values())
    assert not any(one is not other and overlapping(one, other) for one in kept for other in kept)
    assert len({peer.attrs.backend_data for peer in kept}) == len(kept)
    assert not any(peer.subnet.cidr != peer.subnet for peer in kept if peer.subnet.prefixlen)


def _kind(why: str) -> str:
    """Without which one of several older leases is named."""
    return "behind an older one" if " the older lease " in why else why


def test_a_reservation_that_waits_for_its_host_is_no_peer_and_nothing_to_report() -> None:
    waits = Lease(IPNetwork("10.5.9.0/24"), LeaseAttrs(IPAddress("192.0.2.9")), create_revision=5, mod_revision=5)
    changes = cluster().put(waits)
    assert changes.peers == {"10.5.9.0-24": None}
    assert not changes.refused.get("10.5.9.0-24")
    leased = lease("10.5.9.0/24", "192.0.2.9", backend="")
    assert cluster().put(leased).refused["10.5.9.0-24"] == "10.5.9.0/24 at 192.0.2.9: its backend is none, ours is vxlan"


def test_an_address_of_ours_that_comes_has_only_its_own_leases_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge that somebody makes among thousands of peers."""
    membership, identity = Membership(), lambda _attrs: {}
    conditions = (CONFIG, VXLAN, IPAddress("192.0.2.1"))
    before = HostFacts((nic("eth1", 1, "192.0.2.1/24"),))
    membership.configure(*conditions, Underlay.of(before, frozenset(), (), "eth1"), identity)
    membership.replace([lease(f"10.5.{at}.0/24", f"198.51.100.{at}", born=at) for at in range(1, 200)])
    assert len(membership.peers) == 199
    judged: list[str] = []
    fault = membership._fault
    monkeypatch.setattr(membership, "_fault", lambda lease: judged.append(lease.key) or fault(lease))
    after = HostFacts((*before.interfaces, nic("br0", 2, "198.51.100.7/30")))
    changes = membership.configure(*conditions, Underlay.of(after, frozenset(), (), "eth1"), identity)
    assert set(judged) == {f"10.5.{at}.0-24" for at in (4, 7)}
    assert changes.peers == {"10.5.4.0-24": None, "10.5.7.0-24": None}
    changes = membership.configure(*conditions, Underlay.of(before, frozenset(), (), "eth1"), identity)
    assert set(changes.peers) == {"10.5.4.0-24", "10.5.7.0-24"}
    assert len(membership.peers) == 199
