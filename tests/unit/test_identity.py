"""Which MAC our device gets: what the peers hold stays true."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.agent.identity import copied, random_mac, stable_macs
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Link
from flannelpy.host.machine import foreign
from flannelpy.host.state import State

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
BACKEND = plugins.load(CONFIG)
TOLD, KEPT, FOUND = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
DEVICE = HostState.of(Link("flannel.1", "vxlan", 1450, FOUND))


def test_first_what_was_kept_then_what_the_device_has_then_a_new_one() -> None:
    assert stable_macs(["flannel.1"], {"flannel.1": KEPT}, DEVICE) == {"flannel.1": KEPT}
    assert stable_macs(["flannel.1"], {}, DEVICE) == {"flannel.1": FOUND}
    assert stable_macs(["flannel.1"], {}, HostState())["flannel.1"] not in (KEPT, FOUND, TOLD)


def test_a_mac_is_never_taken_from_a_lease() -> None:
    """Three boxes that first shared one address shared one lease, too; each would have taken the same MAC out of it."""
    made = {stable_macs(["flannel.1"], {}, HostState())["flannel.1"] for _ in range(3)}
    assert len(made) == 3


def lease(number: int, mac: str, born: int) -> Lease:
    attrs = LeaseAttrs(IPAddress(f"192.0.2.{number}"), None, "vxlan", {"VNI": 1, "VtepMAC": mac})
    return Lease(IPNetwork(f"10.5.{number}.0/24"), attrs, etcd_lease=1, create_revision=born, mod_revision=born)


@pytest.mark.parametrize(
    ("other", "copy"),
    [
        (lease(9, KEPT, born=3), True),
        (lease(9, KEPT, born=8), False),  # the other one is younger, and draws a new one itself
        (lease(9, FOUND, born=3), False),
        (lease(9, KEPT, born=3).depart(), False),
        (lease(9, "nonsense", born=3), False),
    ],
)
def test_who_has_our_mac_and_is_older_makes_us_draw_a_new_one(other: Lease, copy: bool) -> None:
    found = copied(BACKEND, lease(1, KEPT, born=5), {"flannel.1": KEPT}, [other, lease(1, KEPT, born=5)])
    assert found == ({"flannel.1": other} if copy else {})


HERE, MAC_A, MAC_B, LO = "b0f1", "52:54:00:00:00:0a", "52:54:00:00:00:0b", "00:00:00:00:00:00"


@pytest.mark.parametrize(
    ("state", "here", "mac", "address", "ours"),
    [
        (State("/p", machine=HERE, uplink_mac=MAC_A, address="192.0.2.1"), HERE, MAC_A, "192.0.2.1", True),
        (State("/p", machine=HERE, uplink_mac=MAC_A, address="192.0.2.1"), HERE, MAC_A, "192.0.2.9", True),  # renumbered
        (State("/p", machine=HERE, uplink_mac=MAC_A, address="192.0.2.1"), HERE, MAC_B, "192.0.2.1", True),  # another card
        (State("/p", machine=HERE, uplink_mac=MAC_A, address="192.0.2.1"), HERE, MAC_B, "192.0.2.9", False),  # a cloned image
        (State("/p", machine="c0de", uplink_mac=MAC_A, address="192.0.2.1"), HERE, MAC_A, "192.0.2.1", False),  # a copied directory
        (State("/p", machine=HERE, uplink_mac=MAC_A, address="192.0.2.1"), HERE, LO, "10.77.0.1", True),  # by way of lo now
        (State("/p", machine=HERE, uplink_mac=LO, address="10.77.0.1"), HERE, MAC_A, "192.0.2.1", True),  # and back
        (State("/p", machine="c0de", uplink_mac=LO, address="10.77.0.1"), HERE, LO, "10.77.0.1", False),
        (State("/p"), HERE, MAC_A, "192.0.2.1", True),  # an older version's, which said nothing
        (State("/p", address="192.0.2.1"), HERE, MAC_A, "192.0.2.9", False),
    ],
)
def test_whose_a_state_directory_is(state: State, here: str, mac: str, address: str, ours: bool) -> None:
    assert (foreign(state, here, mac, address) == "") is ours


def test_a_new_one_is_random_local_and_unicast() -> None:
    made = {random_mac() for _ in range(100)}
    assert len(made) == 100
    assert all(int(mac[:2], 16) & 3 == 2 for mac in made)
