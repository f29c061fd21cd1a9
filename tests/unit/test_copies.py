"""Is a peer that has our identity seen at once, and is nothing worked out anew for the thousands that have their own?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.agent.carriage import Carriage
from flannelpy.agent.copies import Copies
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.view import Cursor
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.uplink import Uplink

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
MINE, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
UPLINK = Uplink("eth1", 2, 1500, IPAddress("192.0.2.1"), IPAddress("192.0.2.1"))


def lease(number: int, mac: str, born: int) -> Lease:
    attrs = LeaseAttrs(IPAddress(f"192.0.2.{number % 200 + 2}"), None, "vxlan", {"VNI": 1, "VtepMAC": mac})
    subnet = IPNetwork((0x0A050000 + (number << 8), 24), version=4)
    return Lease(subnet, attrs, etcd_lease=1, create_revision=born, mod_revision=born)


OWN = lease(1, MINE, born=100)


class Cluster:
    """Peers, and one who follows them."""

    def __init__(self, *leases: Lease) -> None:
        self.peers = {each.key: each for each in leases}
        self.woken = 0
        self.copies = Copies(cast("HostKeys", None), self._cursor, self._wake)

    def _cursor(self, wake: Callable[[], None]) -> Cursor:
        self.cursor = Cursor(self.peers, wake)
        return self.cursor

    def _wake(self) -> None:
        self.woken += 1

    def put(self, each: Lease) -> None:
        self.peers[each.key] = each
        self.cursor.note({each.key: each})

    def macs(self, carriage: Carriage, own: Lease = OWN) -> Carriage:
        return asyncio.run(self.copies.differ(carriage, own))


@pytest.fixture
def carriage() -> Carriage:
    return Carriage("", CONFIG, plugins.load(CONFIG), UPLINK, 1450, {"flannel.1": MINE})


def test_the_first_comparison_is_with_all(carriage: Carriage) -> None:
    assert Cluster(lease(9, MINE, born=3)).macs(carriage).macs["flannel.1"] != MINE
    assert Cluster(lease(9, THEIRS, born=3), lease(8, MINE, born=300)).macs(carriage) is carriage


def test_thousands_with_an_identity_of_their_own_wake_nobody(carriage: Carriage) -> None:
    cluster = Cluster()
    cluster.macs(carriage)
    for number in range(2, 250):
        cluster.put(lease(number, THEIRS, born=number))  # older ones and younger ones
    cluster.put(lease(250, MINE, born=300))  # it is younger, and draws another itself
    cluster.cursor.note({"10.5.9.0-24": None})
    assert cluster.woken == 0
    assert cluster.macs(carriage) is carriage


@pytest.mark.parametrize("number", [2, 77, 99])
def test_an_older_one_with_ours_wakes_and_is_differed_from(carriage: Carriage, number: int) -> None:
    cluster = Cluster(lease(3, THEIRS, born=5))
    cluster.macs(carriage)
    cluster.put(lease(number, MINE, born=number))
    assert cluster.woken == 1
    changed = cluster.macs(carriage)
    assert changed.macs["flannel.1"] not in (MINE, THEIRS)
    assert cluster.macs(changed) is changed


def test_who_was_younger_may_be_older_than_a_lease_made_anew(carriage: Carriage) -> None:
    cluster = Cluster()
    cluster.macs(carriage)
    cluster.put(lease(9, MINE, born=200))
    assert cluster.woken == 0
    assert cluster.macs(carriage, lease(1, MINE, born=300)).macs["flannel.1"] != MINE
