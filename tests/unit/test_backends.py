"""What each backend publishes and asks of the kernel, as an operator would read it. flannel-compat 4.4, 9, Appendix B."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.core.backend import Backend, Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError, MalformedError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState

A_MAC, B_MAC = "aa:aa:aa:aa:aa:aa", "ba:bb:bb:bb:bb:bb"


def situation(options: str = '{"Type": "vxlan"}', **more: object) -> tuple[Backend, Local]:
    """Host A of Appendix B: 192.0.2.1 on eth1, lease 10.5.72.0/24."""
    config = NetworkConfig.parse(f'{{"Network": "10.5.0.0/16", "Backend": {options}}}')
    uplink = Uplink("eth1", 3, 1500, IPAddress("192.0.2.1"), public_ip=IPAddress(str(more.pop("public_ip", "192.0.2.1"))))
    lease = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(uplink.public_ip or IPAddress(0)))
    backend = plugins.load(config)
    macs = {device: A_MAC for device, has_mac in backend.devices(config).items() if has_mac}
    return backend, Local(config, uplink, lease, macs, **more)  # type: ignore[arg-type]


def peer(backend_type: str = "vxlan", data: object = None, at: str = "192.0.2.2") -> Lease:
    return Lease(IPNetwork("10.5.9.0/24"), LeaseAttrs(IPAddress(at), backend_type=backend_type, backend_data=data))


def lines(state: HostState) -> list[str]:
    return [f"{item.noun} {item}" for item in state]


def test_vxlan_publishes_vni_and_mac_byte_for_byte() -> None:
    backend, local = situation()
    expected = f'{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{A_MAC}"}}}}'
    assert backend.attrs(local).to_json() == expected


def test_vxlan_host_is_appendix_b() -> None:
    backend, local = situation()
    assert lines(backend.host(local)) == [
        f"link flannel.1 address {A_MAC} mtu 1450 up type vxlan id 1 dev eth1 local 192.0.2.1 dstport 8472 nolearning",
        "addr 10.5.72.0/32 dev flannel.1",
        "sysctl net/ipv6/conf/flannel.1/accept_ra=0",
    ]
    assert backend.mtu(local) == 1450


def test_vxlan_peer_is_three_entries_and_its_route_comes_last() -> None:
    backend, local = situation()
    assert lines(backend.path(peer(data={"VNI": 1, "VtepMAC": B_MAC}), local).state) == [
        f"neigh 10.5.9.0 lladdr {B_MAC} dev flannel.1 nud permanent",
        f"fdb {B_MAC} dst 192.0.2.2 dev flannel.1 self permanent",
        "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink",
    ]


@pytest.mark.parametrize("vni", [7, "1", 0, -1, 1.5, True, [1], {}, 10**4000])
def test_a_vxlan_peer_of_another_vni_is_left_out(vni: object) -> None:
    backend, local = situation()
    with pytest.raises(MalformedError, match=r"^BackendData\.VNI .{1,60}: expected ours, 1$"):
        backend.path(peer(data={"VNI": vni, "VtepMAC": B_MAC}), local)


@pytest.mark.parametrize("data", [{}, {"VNI": None}, {"VNI": 1}, {"vni": 1}])
def test_a_vxlan_peer_of_an_older_flannel_names_no_vni(data: dict[str, object]) -> None:
    backend, local = situation()
    assert len(backend.path(peer(data={**data, "VtepMAC": B_MAC}), local).state) == 3
    other, local = situation('{"Type": "vxlan", "VNI": 5}')
    assert len(other.path(peer(data={**data, "VNI": 5, "VtepMAC": B_MAC}), local).state) == 3


def test_vxlan_every_option_reaches_the_device() -> None:
    options = '{"type": "VXLAN", "vni": 7, "Port": 4789, "MTU": 1400, "GBP": true, "Learning": true}'
    backend, local = situation(options)
    assert lines(backend.host(local))[0] == (
        f"link flannel.7 address {A_MAC} mtu 1350 up type vxlan id 7 dev eth1 local 192.0.2.1 dstport 4789 learning gbp"
    )


def test_vxlan_direct_routing_only_where_the_peer_is_reached_without_a_gateway() -> None:
    backend, local = situation('{"Type": "vxlan", "DirectRouting": true}', on_link={IPAddress("192.0.2.2"): "eth1"})
    data = {"VtepMAC": B_MAC}
    assert lines(backend.path(peer(data=data), local).state) == ["route 10.5.9.0/24 via 192.0.2.2 dev eth1"]
    assert len(backend.path(peer(data=data, at="198.51.100.2"), local).state) == 3


def test_vxlan_sends_from_the_interface_even_where_another_address_is_published() -> None:
    """field-problems F3: with a source that is not its own the kernel sends nothing."""
    backend, local = situation(public_ip="203.0.113.7")
    assert '"PublicIP":"203.0.113.7"' in backend.attrs(local).to_json()
    assert "local 192.0.2.1 " in lines(backend.host(local))[0]


@pytest.mark.parametrize("mac", ["AA-BB-CC-DD-EE-0F", "aabb.ccdd.ee0f", "aa:bb:cc:dd:ee:0f"])
def test_vxlan_takes_every_form_of_mac_that_go_takes(mac: str) -> None:
    backend, local = situation()
    assert "fdb aa:bb:cc:dd:ee:0f dst" in lines(backend.path(peer(data={"VtepMAC": mac}), local).state)[1]


@pytest.mark.parametrize(
    "data",
    [None, 7, [], {}, {"VtepMAC": None}, {"VtepMAC": "hi"}, {"VtepMAC": "00:00:00:00:00:00"}, {"VtepMAC": "01:00:5e:00:00:01"}],
)
def test_vxlan_refuses_a_peer_without_a_usable_mac(data: object) -> None:
    backend, local = situation()
    with pytest.raises(MalformedError, match="VtepMAC"):
        backend.path(peer(data=data), local)


def test_vxlan_dual_stack_has_a_device_and_a_mac_for_each_family() -> None:
    text = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}'
    config = NetworkConfig.parse(text)
    backend = plugins.load(config)
    v6 = IPAddress("2001:db8::1")
    uplink = Uplink("eth1", 3, 1500, IPAddress("192.0.2.1"), v6, IPAddress("192.0.2.1"), v6)
    own = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1"), v6), IPNetwork("fd00:5:0:72::/64"))
    local = Local(config, uplink, own, {"flannel.1": A_MAC, "flannel-v6.1": "aa:aa:aa:aa:aa:a6"})
    assert lines(backend.host(local))[3:5] == [
        "link flannel-v6.1 address aa:aa:aa:aa:aa:a6 mtu 1430 up type vxlan id 1 dev eth1 local 2001:db8::1 "
        "dstport 8472 nolearning",
        "addr fd00:5:0:72::/128 dev flannel-v6.1",
    ]
    assert backend.mtu(local) == 1430
    theirs = Lease(
        IPNetwork("10.5.9.0/24"),
        LeaseAttrs(IPAddress("192.0.2.2"), IPAddress("2001:db8::2"), "vxlan", {"VtepMAC": B_MAC}, {"VtepMAC": "ba:bb:bb:bb:bb:b6"}),
        IPNetwork("fd00:5:0:9::/64"),
    )
    assert lines(backend.path(theirs, local).state) == [
        f"neigh 10.5.9.0 lladdr {B_MAC} dev flannel.1 nud permanent",
        f"fdb {B_MAC} dst 192.0.2.2 dev flannel.1 self permanent",
        "neigh fd00:5:0:9:: lladdr ba:bb:bb:bb:bb:b6 dev flannel-v6.1 nud permanent",
        "fdb ba:bb:bb:bb:bb:b6 dst 2001:db8::2 dev flannel-v6.1 self permanent",
        "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink",
        "route fd00:5:0:9::/64 via fd00:5:0:9:: dev flannel-v6.1 onlink",
    ]
    # A peer that has no IPv6 yet gets its IPv4 half (field-problems F9).
    assert len(backend.path(peer(data={"VtepMAC": B_MAC}), local).state) == 3


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ('{"Type": "vxlan", "VNI": 16777216}', "Backend.VNI 16777216: expected a whole number, 0 to 16777215"),
        ('{"Type": "vxlan", "VNI": "1"}', 'Backend.VNI "1": expected a whole number, 0 to 16777215'),
        ('{"Type": "vxlan", "Port": 70000}', "Backend.Port 70000: expected a whole number, 0 to 65535"),
        ('{"Type": "vxlan", "GBP": 1}', "Backend.GBP 1: expected true or false"),
    ],
)
def test_vxlan_wrong_options_are_named(options: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        situation(options)
    assert str(caught.value) == line


def test_host_gw_is_one_route_a_peer() -> None:
    backend, local = situation('{"Type": "host-gw"}')
    assert backend.attrs(local).to_json() == '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}'
    assert lines(backend.host(local)) == []
    assert lines(backend.path(peer("host-gw"), local).state) == ["route 10.5.9.0/24 via 192.0.2.2 dev eth1"]
    assert backend.mtu(local) == 1500


def test_host_gw_behind_nat_is_refused_with_a_reason() -> None:
    backend, local = situation('{"Type": "host-gw"}', public_ip="203.0.113.7")
    with pytest.raises(ConfigError, match="behind NAT"):
        backend.attrs(local)


def test_alloc_publishes_an_address_and_touches_nothing() -> None:
    backend, local = situation('{"Type": "alloc"}')
    assert backend.attrs(local).to_json() == '{"PublicIP":"192.0.2.1","PublicIPv6":null}'
    assert lines(backend.host(local)) == lines(backend.path(peer(""), local).state) == []
    assert backend.mtu(local) == 1500


@pytest.mark.parametrize("kind", ["alloc", "ALLOC"])
def test_alloc_leases_both_halves_of_a_dual_stack_network(kind: str) -> None:
    dual = f'{{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {{"Type": "{kind}"}}}}'
    config, backend = plugins.parse(dual)
    assert config.families == (4, 6)
    uplink = Uplink("eth1", 3, 1500, IPAddress("192.0.2.1"), IPAddress("2001:db8::1"), IPAddress("192.0.2.1"))
    own = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1")), IPNetwork("fd00:5:0:72::/64"))
    local = Local(config, uplink, own)
    assert backend.attrs(local).to_json() == '{"PublicIP":"192.0.2.1","PublicIPv6":null}'
    assert lines(backend.host(local)) == []
    assert backend.mtu(local) == 1500


def test_udp_publishes_no_type_and_takes_the_whole_network() -> None:
    backend, local = situation('{"Type": "udp"}')
    assert backend.attrs(local).to_json() == '{"PublicIP":"192.0.2.1","PublicIPv6":null}'
    assert lines(backend.host(local)) == [
        "link flannel0 mtu 1472 up type tun",
        "addr 10.5.72.0/32 dev flannel0",
        "sysctl net/ipv4/conf/flannel0/accept_local=1",
        "route 10.5.0.0/16 dev flannel0",
    ]


def test_an_unknown_type_lists_what_is_installed() -> None:
    with pytest.raises(
        BackendError, match=r"'carrier-pigeon': nobody provides it; installed are alloc, .*, udp, vxlan, wireguard$"
    ):
        plugins.load(NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "carrier-pigeon"}}'))
