"""Which MAC our device gets: what the peers hold stays true."""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.agent.identity import random_mac, stable_macs
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Link

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
BACKEND = plugins.load(CONFIG)
TOLD, KEPT, FOUND = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
LEASE = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1"), None, "vxlan", {"VtepMAC": TOLD}))
DEVICE = HostState.of(Link("flannel.1", "vxlan", 1450, FOUND))


def test_what_the_registry_tells_the_peers_comes_first() -> None:
    assert stable_macs(BACKEND, CONFIG, LEASE, {"flannel.1": KEPT}, DEVICE) == {"flannel.1": TOLD}


def test_then_what_was_kept_then_what_the_device_has() -> None:
    assert stable_macs(BACKEND, CONFIG, None, {"flannel.1": KEPT}, DEVICE) == {"flannel.1": KEPT}
    assert stable_macs(BACKEND, CONFIG, None, {}, DEVICE) == {"flannel.1": FOUND}


def test_a_new_one_is_random_local_and_unicast() -> None:
    made = {random_mac() for _ in range(100)}
    assert len(made) == 100
    assert all(int(mac[:2], 16) & 3 == 2 for mac in made)


def test_a_published_mac_that_cannot_be_is_passed_over() -> None:
    broken = Lease(LEASE.subnet, LeaseAttrs(LEASE.public_ip, None, "vxlan", {"VtepMAC": "nonsense"}))
    assert stable_macs(BACKEND, CONFIG, broken, {}, DEVICE) == {"flannel.1": FOUND}
