"""What of a host cuts its containers off? Each judgement both ways."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.host_diagnosis import (
    Overlay,
    bridges_astray,
    dotted,
    filtered,
    mtus_too_large,
    not_forwarding,
    setting_names,
    strict,
)
from flannelpy.core.host_facts import Interface, InterfaceAddress

OVERLAY = Overlay((IPNetwork("10.5.0.0/16"),), (IPNetwork("10.5.7.0/24"),), 1450, frozenset({"flannel.1"}))
ON = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def bridge(name: str, *addresses: str, mtu: int = 1450, running: bool = True) -> Interface:
    held = tuple(InterfaceAddress(IPNetwork(each).ip, IPNetwork(each).prefixlen) for each in addresses)
    return Interface(name, 9, mtu, True, held, running=running)


@pytest.mark.parametrize(
    ("settings", "families", "off"),
    [
        ({}, [4, 6], []),
        ({"net/ipv4/ip_forward": "0"}, [4, 6], ["net/ipv4/ip_forward"]),
        ({"net/ipv4/ip_forward": "0"}, [6], []),
        ({"net/ipv6/conf/all/forwarding": "0"}, [4], []),
        ({"net/ipv6/conf/all/forwarding": "0"}, [4, 6], ["net/ipv6/conf/all/forwarding"]),
        ({"net/ipv4/conf/flannel.1/forwarding": "0"}, [4], ["net/ipv4/conf/flannel.1/forwarding"]),
        ({"net/ipv4/conf/flannel.1/forwarding": "0", "net/ipv4/ip_forward": "0"}, [4], ["net/ipv4/ip_forward"]),
    ],
)
def test_what_is_not_forwarded_is_told_with_its_command(settings: dict[str, str], families: list[int], off: list[str]) -> None:
    wrong = not_forwarding(ON | settings, families, ["flannel.1"])
    assert list(wrong) == off
    for name, text in wrong.items():
        assert text.endswith(f"sysctl -w {dotted(name)}=1")


def test_a_setting_that_cannot_be_read_is_no_fault() -> None:
    assert not_forwarding({}, [4, 6], ["flannel.1"]) == {}


@pytest.mark.parametrize(
    ("whole", "own", "setting"),
    [
        ("0", "0", ""),
        ("2", "1", ""),
        ("1", "2", ""),
        ("1", "0", "net/ipv4/conf/all/rp_filter"),
        ("0", "1", "net/ipv4/conf/eth1/rp_filter"),
        ("1", "1", "net/ipv4/conf/all/rp_filter"),
        ("", "", ""),
    ],
)
def test_the_larger_of_two_settings_says_how_a_reverse_path_is_filtered(whole: str, own: str, setting: str) -> None:
    assert strict({"net/ipv4/conf/all/rp_filter": whole, "net/ipv4/conf/eth1/rp_filter": own}, "eth1") == setting


def test_a_device_with_a_dot_is_named_as_sysctl_takes_it() -> None:
    text = filtered("flannel.1", "net/ipv4/conf/all/rp_filter", "10.5.9.1")
    assert text.endswith("sysctl -w net.ipv4.conf.flannel/1.rp_filter=2")
    assert "net.ipv4.conf.all.rp_filter is 1" in text


def test_only_what_a_family_needs_is_asked_for() -> None:
    assert setting_names([6], ["eth1"]) == ["net/ipv6/conf/all/forwarding"]
    assert setting_names([4, 6], ["eth1"]) == [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/eth1/forwarding",
        "net/ipv4/conf/eth1/rp_filter",
    ]


@pytest.mark.parametrize(
    ("bridges", "stale", "elsewhere"),
    [
        ([], [], []),
        ([bridge("docker0", "10.5.7.1/24")], [], []),
        ([bridge("docker0")], [], []),
        ([bridge("docker0", "10.5.8.1/24")], ["docker0"], []),
        ([bridge("docker0", "10.5.7.1/16")], ["docker0"], []),
        ([bridge("docker0", "10.5.7.1/23"), bridge("cni0", "10.5.7.129/25")], ["docker0"], []),
        ([bridge("docker0", "fd00:5::1/64")], [], ["docker0"]),
        ([bridge("cni0", "10.5.8.1/24")], ["cni0"], []),
        ([bridge("docker0", "172.17.0.1/16")], [], ["docker0"]),
        ([bridge("cni0", "172.17.0.1/16")], [], []),
        ([bridge("docker0", "172.17.0.1/16"), bridge("cni0", "10.5.7.1/24")], [], []),
        ([bridge("docker0", "10.5.8.1/24"), bridge("cni0", "10.5.7.1/24")], ["docker0"], []),
        ([bridge("docker0", "172.17.0.1/16"), bridge("flannel.1", "10.5.7.0/32")], [], ["docker0"]),
        ([bridge("docker0", "10.5.7.1/24", "fe80::1/64")], [], []),
        ([bridge("eth0", "10.5.8.1/24")], [], []),
        ([bridge("eth0", "10.5.8.1/24", "10.5.7.9/24"), bridge("br-1234", "10.5.9.1/24")], [], []),
        ([bridge("eth0", "10.5.8.1/24"), bridge("docker0", "10.5.9.1/24")], ["docker0"], []),
    ],
)
def test_a_bridge_belongs_into_this_hosts_subnet(bridges: list[Interface], stale: list[str], elsewhere: list[str]) -> None:
    wrong, others = bridges_astray(bridges, OVERLAY)
    assert (list(wrong), list(others)) == (stale, elsewhere)


def test_a_bridge_of_another_subnet_is_told_with_both() -> None:
    wrong, _ = bridges_astray([bridge("docker0", "10.5.8.1/24")], OVERLAY)
    assert wrong == {"docker0": "docker0 has 10.5.8.1/24, this host's subnet is 10.5.7.0/24: systemctl restart docker"}


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (bridge("docker0", "10.5.7.1/24", mtu=1450), False),
        (bridge("docker0", "10.5.7.1/24", mtu=1400), False),
        (bridge("docker0", "10.5.7.1/24", mtu=1451), True),
        (bridge("docker0", "10.5.7.1/24", mtu=1500), True),
        (bridge("docker0", "10.5.7.1/24", mtu=1500, running=False), False),
        (bridge("docker0", "172.17.0.1/16", mtu=1500), False),
    ],
)
def test_a_bridge_promises_no_more_than_the_overlay_carries(one: Interface, told: bool) -> None:
    wrong = mtus_too_large([one], OVERLAY)
    assert bool(wrong) == told
    if told:
        assert f"docker0 has MTU {one.mtu}, the overlay 1450: ip link set docker0 mtu 1450" in wrong["docker0"]


def test_an_address_of_the_other_family_is_in_no_subnet() -> None:
    assert not OVERLAY.serves(bridge("docker0", "fd00::1/64"))
    assert OVERLAY.serves(bridge("docker0", "fd00::1/64", "10.5.7.1/24"))
    assert IPAddress("10.5.7.1") in OVERLAY.leased[0]
