"""Which leases are peers: each judged alone, the work proportional to the change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.config import NetworkConfig
from flannelpy.core.membership import Membership
from flannelpy.core.model import Lease, LeaseAttrs

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


nets = st.builds(lambda first, length: str(IPNetwork(f"10.5.{first}.0/{length}").cidr), st.integers(0, 15), st.integers(20, 26))
leases = st.builds(lambda net, host, born: lease(net, f"192.0.2.{host}", born=born), nets, st.integers(2, 9), st.integers(1, 9))


@given(st.lists(st.one_of(leases, nets.map(lambda net: net.replace("/", "-"))), max_size=30))
def test_walking_through_events_ends_where_a_fresh_listing_does(events: list[Lease | str]) -> None:
    walked, programmed = Membership(CONFIG, VXLAN, OWN), {}
    for event in events:
        changes = walked.remove(event) if isinstance(event, str) else walked.put(event)
        for key, peer in changes.peers.items():
            if peer is None:
                programmed.pop(key, None)
            else:
                programmed[key] = peer
    fresh = Membership(CONFIG, VXLAN, OWN)
    fresh.replace(walked.leases.values())
    assert programmed == walked.peers == fresh.peers
    kept = [peer.subnet for peer in programmed.values()]
    assert not any(a != b and a.first <= b.last and b.first <= a.last for a in kept for b in kept)


def test_a_reservation_that_waits_for_its_host_is_no_peer_and_nothing_to_report() -> None:
    waits = Lease(IPNetwork("10.5.9.0/24"), LeaseAttrs(IPAddress("192.0.2.9")), create_revision=5, mod_revision=5)
    changes = cluster().put(waits)
    assert changes.peers == {"10.5.9.0-24": None}
    assert not changes.refused.get("10.5.9.0-24")
    leased = lease("10.5.9.0/24", "192.0.2.9", backend="")
    assert cluster().put(leased).refused["10.5.9.0-24"] == "10.5.9.0/24 at 192.0.2.9: its backend is none, ours is vxlan"
