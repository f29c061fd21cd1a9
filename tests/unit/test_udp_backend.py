"""What the udp backend publishes and programs, and which options it takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from backends.udp import Udp, tun
from backends.udp.protocol import Guard
from flannelpy.core.backend import Backend, Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import Sysctl
from flannelpy.plugins import lease_only, load, parse

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
UPLINK = Uplink("eth1", 3, 1500, address=IPAddress("192.0.2.1"), public_ip=IPAddress("198.51.100.1"))


def lease(subnet: str, public_ip: str) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(public_ip)))


LOCAL = Local(CONFIG, UPLINK, lease("10.5.72.0/24", "198.51.100.1"))


def test_it_is_what_a_config_without_backend_gets() -> None:
    backend: Backend = load(CONFIG)
    assert type(backend) is Udp
    assert (backend.name, backend.families, backend.accepts, backend.wants_on_link) == ("udp", (4,), None, False)
    assert (backend.port, backend.guard) == (8285, "default")


def test_the_value_has_no_backend_type() -> None:
    assert Udp().attrs(LOCAL).to_json() == '{"PublicIP":"198.51.100.1","PublicIPv6":null}'


def test_the_host_holds_device_address_and_network_route() -> None:
    state = Udp().host(LOCAL)
    assert sorted(f"{item.noun} {item}" for item in state) == [
        "addr 10.5.72.0/32 dev flannel0",
        "link flannel0 mtu 1472 up type tun",
        "route 10.5.0.0/16 dev flannel0",
        "sysctl net/ipv4/conf/flannel0/accept_local=1",
    ]
    assert not any(getattr(item, "link_scope", False) for item in state)
    assert Udp().devices(CONFIG) == {"flannel0": False}


@pytest.mark.parametrize("guard", ["default", "strict"])
def test_where_inner_sources_are_checked_our_own_is_the_workers(guard: Guard) -> None:
    assert "net/ipv4/conf/flannel0/accept_local=1" in map(str, Udp(guard=guard).host(LOCAL))


@pytest.mark.parametrize("guard", ["peers", "off"])
def test_where_inner_sources_are_not_checked_none_may_be_our_own(guard: Guard) -> None:
    assert "net/ipv4/conf/flannel0/accept_local=0" in map(str, Udp(guard=guard).host(LOCAL))
    assert not any(isinstance(item, Sysctl) for item in Udp(guard=guard, engine="kernel").host(LOCAL))


def test_a_peer_is_nothing_to_the_kernel() -> None:
    assert len(Udp().path(lease("10.5.9.0/24", "192.0.2.2"), LOCAL).state) == 0


def test_mtu_and_overhead() -> None:
    assert Udp().mtu(LOCAL) == 1472
    assert Udp().overhead(4) == 28
    assert Udp().mtu(Local(CONFIG, Uplink("eth1", 3, 96))) == 68
    with pytest.raises(ConfigError, match="interface eth1: MTU 95 is too small for udp, expected 96 or more"):
        Udp().mtu(Local(CONFIG, Uplink("eth1", 3, 95)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (8285, "default")),
        ({"Port": 9000}, (9000, "default")),
        ({"Guard": "default"}, (8285, "default")),
        ({"Guard": "strict"}, (8285, "strict")),
        ({"port": 1, "Guard": "off", "Engine": "auto", "VNI": 3}, (1, "off")),
        ({"Port": None, "Guard": None}, (8285, "default")),
        ({"PORT": 65535, "GUARD": "peers"}, (65535, "peers")),
    ],
)
def test_options(options: Mapping[str, Any], expected: tuple[int, str]) -> None:
    made = Udp.from_options(options)
    assert (made.port, made.guard) == expected


@pytest.mark.parametrize("port", [0, 65536, -1, "8285", True, 8285.0, [], {}])
def test_a_port_that_cannot_be(port: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend.Port .*: expected a whole number, 1 to 65535$"):
        Udp.from_options({"Port": port})


def test_workers() -> None:
    for options, workers in (({}, 1), ({"Workers": None}, 1), ({"workers": 4}, 4), ({"WORKERS": 64}, 64)):
        assert Udp.from_options(options).workers == workers
    asked = Udp(9000, "peers", "auto", 4)
    for refusal in ("", "no fou"):
        assert isinstance(chosen := asked.choose(refusal).backend, Udp)
        assert chosen.workers == 4


@pytest.mark.parametrize("workers", [0, 65, -1, "4", True, 2.0, [], {}])
def test_workers_that_cannot_be(workers: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend.Workers .*: expected a whole number, 1 to 64$"):
        Udp.from_options({"Workers": workers})


@pytest.mark.parametrize("guard", ["Strict", "inner", "", 1, False, [], {}])
def test_a_guard_that_cannot_be(guard: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend.Guard .*: expected default, strict, peers or off$"):
        Udp.from_options({"Guard": guard})


# ----------------------------------------------------------------------------------------------------------- dual stack

DUAL = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "%s"}}'
ONLY6 = '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "%s"}}'


UDP_WORDS = "udp carries IPv4 only: its IPv6 subnets are no more than leased"


@pytest.mark.parametrize(("kind", "words"), [("udp", UDP_WORDS), ("alloc", "")])
def test_both_halves_of_a_dual_stack_lease_are_handed_out(kind: str, words: str) -> None:
    """As flannel does; the value is the one of an IPv4 network."""
    config, backend = parse(DUAL % kind)
    assert lease_only(config, backend) == {6: words}
    both = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("198.51.100.1")), subnet6=IPNetwork("fd00:5:0:72::/64"))
    local = Local(config, UPLINK, both)
    assert backend.attrs(local).to_json() == '{"PublicIP":"198.51.100.1","PublicIPv6":null}'
    assert not any("fd00" in str(item) for item in backend.host(local) | backend.path(both, local).state)


@pytest.mark.parametrize("kind", ["udp", "alloc"])
def test_a_network_of_ipv6_only_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"^Backend.Type {kind}: it does not carry IPv6, which the config turns on$"):
        parse(ONLY6 % kind)


def test_what_is_carried_is_not_warned_of() -> None:
    for text in ('{"Network": "10.5.0.0/16"}', DUAL % "vxlan", ONLY6 % "vxlan"):
        assert lease_only(*parse(text)) == {}


# ------------------------------------------------------------------------------------------------------- without a device


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOENT, "/dev/net/tun: not there, and udp needs it: modprobe tun; in a container also hand the device in"),
        (errno.ENODEV, "/dev/net/tun: the kernel has no TUN driver loaded, and udp needs it: modprobe tun"),
        (errno.EACCES, "/dev/net/tun: not permitted: expected to run as root"),
        (errno.EMFILE, "/dev/net/tun: Too many open files"),
    ],
)
def test_without_tun_the_remedy_is_told(code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BackendError) as caught:
        tun.open_tun("flannel0")
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
@pytest.mark.parametrize("queues", [1, 4])
def test_another_device_in_its_place_is_a_line(device: str, queues: int, offload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun, "CLONE", device)
    before = descriptors()
    with pytest.raises(BackendError, match=r"^TUN device flannel0: Inappropriate ioctl for device$"):
        tun.open_tun("flannel0", offload, tun.possible_queues(queues))
    assert descriptors() == before
