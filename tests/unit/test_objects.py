"""Objects of the kernel: what each lives on, what a vxlan device can change in place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import Address, FdbEntry, Fou, HostState, Ipip, Link, Neighbour, NftTable, Object, Route, Sysctl, Vxlan

VXLAN = Vxlan(1, "eth1", IPAddress("192.0.2.1"))
LINK = Link("flannel.1", "vxlan", 1450, "02:00:00:00:00:01", detail=VXLAN)

LIVES_ON: list[tuple[Object, str | None]] = [
    (LINK, "flannel.1"),
    (Address(IPNetwork("10.5.72.0/32"), "flannel.1"), "flannel.1"),
    (Sysctl("net/ipv6/conf/flannel.1/accept_ra", "0"), "flannel.1"),
    (Sysctl("net/ipv4/ip_forward", "1"), None),
    (Neighbour(IPAddress("10.5.9.0"), "02:00:00:00:00:09", "flannel.1"), "flannel.1"),
    (FdbEntry("02:00:00:00:00:09", IPAddress("192.0.2.9"), "flannel.1"), "flannel.1"),
    (Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.9"), "eth1"), "eth1"),
    (Route(IPNetwork("10.5.0.0/16"), kind="blackhole"), None),
    (Fou(8285), None),
    (NftTable("flannelpy", ""), None),
]


@pytest.mark.parametrize(("item", "device"), LIVES_ON, ids=lambda value: str(value))
def test_each_object_knows_the_device_that_it_vanishes_with(item: Object, device: str | None) -> None:
    assert item.lives_on == device


@pytest.mark.parametrize("item", [item for item, _device in LIVES_ON], ids=str)
def test_an_object_is_satisfied_by_its_like_and_by_no_other(item: Object) -> None:
    assert item.satisfied_by(replace(item))
    assert not any(item.satisfied_by(other) for other, _device in LIVES_ON if other is not item)


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({"dev": "eth2"}, False),
        ({"local": IPAddress("192.0.2.2")}, False),
        ({"learning": True}, False),
        ({"local": IPAddress("2001:db8::1")}, True),
        ({"vni": 2}, True),
        ({"port": 4789}, True),
        ({"gbp": True}, True),
    ],
    ids=str,
)
def test_what_of_a_vxlan_device_makes_it_another_one(changes: dict[str, object], anew: bool) -> None:
    changed = replace(LINK, detail=replace(VXLAN, **changes))  # type: ignore[arg-type]
    assert changed.must_be_remade(LINK) is anew


def test_a_device_of_another_kind_is_another_one() -> None:
    ipip = Link("flannel.1", "ipip", 1450, detail=Ipip(IPAddress("192.0.2.1"), 8285))
    assert LINK.must_be_remade(replace(LINK, detail=None))
    assert LINK.must_be_remade(ipip)
    assert ipip.must_be_remade(replace(ipip, detail=Ipip(IPAddress("192.0.2.2"), 8285)))
    assert not LINK.must_be_remade(replace(LINK, mtu=1400, mac="02:00:00:00:00:02", up=False))


def test_that_an_observation_may_lack_something_is_not_part_of_its_value() -> None:
    whole = HostState.of(LINK)
    partial = HostState(whole.objects, incomplete=True)
    assert partial == whole
    assert (whole.incomplete, partial.incomplete, (whole | HostState()).incomplete) == (False, True, False)
