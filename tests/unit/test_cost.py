"""What a change of the network config costs, as an operator reads it before it is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from netaddr import IPNetwork

from flannelpy.commands import cost, netconfig
from flannelpy.commands.netconfig import Examined


def config(network: str = "10.5.0.0/16", *, kind: str = "vxlan", top: dict[str, Any] | None = None, **options: Any) -> Examined:
    return netconfig.examine(json.dumps({"Network": network, **(top or {}), "Backend": {"Type": kind, **options}}))


def said_of(old: Examined | None, new: Examined | None) -> list[str]:
    return [str(each) for each in cost.of(old, new)]


DOCKER = "restart Docker there, its containers get other addresses"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (config(), config()),
        (config(), config(top={"EnableNFTables": True})),
        (config(DirectRouting=True), config()),
        (config(top={"SubnetMin": "10.5.8.0", "SubnetMax": "10.5.20.0"}), config()),
        (None, config()),
    ],
)
def test_what_agents_follow_without_a_lost_packet_costs_nothing(old: Examined | None, new: Examined) -> None:
    assert said_of(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            config(),
            config("10.9.0.0/16"),
            [f"Network 10.5.0.0/16 -> 10.9.0.0/16: every host gets another subnet; {DOCKER}"],
        ),
        (
            config(),
            config(top={"SubnetLen": 26}),
            [f"SubnetLen 24 -> 26: every host gets another subnet; {DOCKER}"],
        ),
        (
            config(),
            config(top={"SubnetMax": "10.5.99.0"}),
            [f"subnets are from 10.5.1.0 to 10.5.99.0: a host whose subnet is none of these gets another subnet; {DOCKER}"],
        ),
        (
            config(),
            config(top={"EnableIPv6": True, "IPv6Network": "fd00:5::/48"}),
            [
                "IPv6 is turned on: every host takes another lease, with both subnets; restart Docker on each",
                "MTU 1450 -> 1430 where the link has 1500: containers keep the old one until they are made anew; "
                "they may send packets that are too large, and are told so by ICMP",
            ],
        ),
        (
            config(),
            config(VNI=7),
            [
                "Backend.VNI default -> 7: the device is made anew on each host, packets are lost for up to a second; "
                "packets between hosts that have it already and those that have not are lost meanwhile"
            ],
        ),
        (
            config(),
            config(MTU=1400),
            [
                "MTU 1450 -> 1400 where the link has 1500: containers keep the old one until they are made anew; "
                "they may send packets that are too large, and are told so by ICMP"
            ],
        ),
        (config(), None, ["agents cannot use it: each stays with the config before, and none can start anew, until it is mended"]),
    ],
)
def test_what_a_change_costs(old: Examined, new: Examined | None, told: list[str]) -> None:
    assert said_of(old, new) == told


def test_another_type_may_cost_packets_and_another_mtu() -> None:
    told = said_of(config(), config(kind="host-gw"))
    assert [line.partition(":")[0] for line in told] == ["Type vxlan -> host-gw", "MTU 1450 -> 1500 where the link has 1500"]


def test_a_secret_is_not_shown() -> None:
    told = said_of(config(PSK="hunter2"), config(PSK="hunter3"))
    assert told
    assert not any("hunter" in line for line in told)


OWN = ((IPNetwork("192.168.50.0/24"), "eth1"), (IPNetwork("10.0.2.0/24"), "eth0"), (IPNetwork("fd00:9::/64"), "eth1"))


@pytest.mark.parametrize(
    ("network", "interfaces"),
    [
        ("10.5.0.0/16", []),
        ("192.168.0.0/16", ["eth1"]),
        ("10.0.0.0/16", ["eth0"]),
        ("10.0.2.64/26", ["eth0"]),
        ("192.168.51.0/24", []),
    ],
)
def test_a_network_that_this_host_is_in_is_named(network: str, interfaces: list[str]) -> None:
    told = cost.overlaps(config(network).config, OWN)
    assert [line.partition("this host's ")[2].partition(":")[0] for line in told] == interfaces
    assert all(line.startswith(f"Network {network} overlaps ") for line in told)


def test_the_host_is_asked_without_loopback_and_our_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def ip(*words: str) -> list[dict[str, Any]]:
        if words == ("addr",):
            return [
                {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
                {
                    "ifname": "eth1",
                    "addr_info": [{"local": "192.168.50.11", "prefixlen": 24}, {"local": "fe80::1", "prefixlen": 64}],
                },
                {"ifname": "flannel.1", "addr_info": [{"local": "10.5.9.0", "prefixlen": 32}]},
                {"ifname": "docker0", "addr_info": [{"local": "10.5.9.1", "prefixlen": 24}]},
                {"ifname": "odd", "addr_info": [{"local": None}]},
            ]
        return [
            {"dst": "192.168.50.0/24", "dev": "eth1"},
            {"dst": "10.77.0.0/24", "dev": "eth2"},
            {"dst": "default", "dev": "ppp0"},
        ]

    monkeypatch.setattr(cost, "_ip", ip)
    assert cost.own_networks(IPNetwork("10.5.9.0/24")) == (
        (IPNetwork("192.168.50.0/24"), "eth1"),
        (IPNetwork("10.77.0.0/24"), "eth2"),
    )


def test_without_ip_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert cost.own_networks() == ()


@pytest.mark.parametrize(
    ("before", "after", "loses"),
    [
        ("vxlan", "host-gw", False),
        ("udp", "vxlan", False),
        ("vxlan", "alloc", True),
        ("extension", "vxlan", True),
        ("ipip", "udp", True),
    ],
)
def test_a_type_that_stands_beside_the_old_one_costs_no_packet(before: str, after: str, loses: bool) -> None:
    told = [line for line in said_of(config(kind=before), config(kind=after)) if line.startswith("Type ")]
    assert [("packets are lost" in line, "loses no packet" in line) for line in told] == [(loses, not loses)]
    between = cost.meanwhile(config(kind=before), config(kind=after))
    assert [f"{before} stays beside {after}" in line for line in between] == [True] * (not loses)


def test_where_nothing_stands_beside_anything_there_is_no_meanwhile() -> None:
    for before, after in ((config(), config()), (None, config()), (config(), None), (config(), config("10.9.0.0/16", kind="udp"))):
        assert cost.meanwhile(before, after) == []


@pytest.mark.parametrize(
    ("old", "new", "harmless"),
    [
        (config(), config(kind="host-gw"), True),
        (config(), config(MTU=1400), True),
        (config(), config(MTU=1400, DirectRouting=True), True),
        (config(), config(kind="wireguard", MTU=1300), True),
        (config(), config(MTU=1400, VNI=7), False),
        (config(), config("10.9.0.0/16", kind="host-gw"), False),
        (config(kind="udp"), config(kind="alloc"), False),
        (config(), config(top={"SubnetLen": 26}), False),
        (config(), None, False),
    ],
)
def test_what_loses_no_packet_and_no_address_is_harmless(old: Examined, new: Examined | None, harmless: bool) -> None:
    assert all(each.harmless for each in cost.of(old, new)) == harmless


def test_with_other_subnets_another_type_costs_packets() -> None:
    told = said_of(config(), config("10.9.0.0/16", kind="host-gw"))
    assert [line for line in told if line.startswith("Type vxlan -> host-gw: packets are lost")]
