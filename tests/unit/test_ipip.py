"""ipip: options, what a lease publishes, what the kernel holds, and the device in netlink's words. With a kernel: tests/kernels."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from backends.ipip import IpipBackend
from flannelpy import plugins
from flannelpy.core.backend import Guard, GuardedPort, Local, SourceRule, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Ipip, Link
from flannelpy.core.plan import plan, text
from flannelpy.kernel.drivers.ipip import IpipDriver
from flannelpy.kernel.messages import attributes

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "ipip"}}')
US, PEER = IPAddress("192.0.2.1"), IPAddress("192.0.2.2")
OWN = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(US))
LINK = "flannel.ipip mtu 1480 up type ipip local 192.0.2.1 remote any ttl inherit nopmtudisc"


def local(mtu: int = 1500, public: IPAddress | None = US, on_link: Mapping[IPAddress, str] | None = None) -> Local:
    return Local(CONFIG, Uplink("eth1", 2, mtu, US, public_ip=public), OWN, on_link=on_link or {})


def peer(subnet: str = "10.5.9.0/24", at: IPAddress = PEER) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(at, backend_type="ipip"))


def lines(state: HostState) -> list[str]:
    return [f"{item.noun} {item}" for item in state]


def test_what_is_published_byte_for_byte() -> None:
    backend = plugins.load(CONFIG)
    assert backend.name == "ipip"
    assert backend.attrs(local()).to_json() == '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipip"}'
    assert '"PublicIP":"203.0.113.1"' in backend.attrs(local(public=IPAddress("203.0.113.1"))).to_json()
    with pytest.raises(ConfigError, match="has no IPv4 address: expected one, for ipip"):
        backend.attrs(local(public=None))


def test_the_host_is_a_device_and_an_address() -> None:
    for public in (US, IPAddress("203.0.113.1")):  # behind NAT packets still leave with the interface's own address
        assert lines(IpipBackend().host(local(public=public))) == [f"link {LINK}", "addr 10.5.72.0/32 dev flannel.ipip"]


def test_a_peer_is_one_route() -> None:
    assert lines(IpipBackend().path(peer(), local()).state) == ["route 10.5.9.0/24 via 192.0.2.2 dev flannel.ipip onlink"]
    assert lines(IpipBackend().path(peer(at=NO_ADDRESS), local()).state) == []
    assert lines(IpipBackend().path(peer("0.0.0.0/0"), local()).state) == []


def test_direct_routing_only_where_asked_for_and_without_a_gateway() -> None:
    near = {PEER: "eth1"}
    direct = IpipBackend.from_options({"directrouting": True})
    assert direct.wants_on_link
    assert lines(direct.path(peer(), local(on_link=near)).state) == ["route 10.5.9.0/24 via 192.0.2.2 dev eth1"]
    assert lines(direct.path(peer(), local()).state) == ["route 10.5.9.0/24 via 192.0.2.2 dev flannel.ipip onlink"]
    assert not IpipBackend().wants_on_link
    tunnelled = IpipBackend().path(peer(), local(on_link=near))
    assert lines(tunnelled.state) == ["route 10.5.9.0/24 via 192.0.2.2 dev flannel.ipip onlink"]


@given(st.integers(0, 70_000))
def test_the_mtu_is_the_uplinks_less_a_header_or_refused(mtu: int) -> None:
    if mtu >= 88:
        assert IpipBackend().mtu(local(mtu)) == mtu - 20
    else:
        with pytest.raises(ConfigError, match=f"MTU {mtu} is too small for ipip, expected 88 or more"):
            IpipBackend().mtu(local(mtu))


@pytest.mark.parametrize(("given", "rule"), [(None, "default"), ("default", "default"), ("strict", "strict"), ("peers", "peers")])
def test_protocol_4_is_guarded(given: str | None, rule: SourceRule) -> None:
    backend = IpipBackend.from_options({} if given is None else {"Guard": given})
    assert backend.guarded == Guard(GuardedPort("ipip", 4, inner=0, datagram=False), rule)


def test_the_guard_can_be_switched_off_and_its_word_is_one_of_four() -> None:
    assert IpipBackend.from_options({"Guard": "off"}).guarded is None
    with pytest.raises(ConfigError, match=r"^Backend\.Guard \"no\": expected default, strict, peers or off$"):
        IpipBackend.from_options({"Guard": "no"})
    with pytest.raises(ConfigError, match=r"^Backend\.DirectRouting 1: expected true or false$"):
        IpipBackend.from_options({"DirectRouting": 1})


def test_ipv6_is_only_leased() -> None:
    both = '{"Network":"10.5.0.0/16","IPv6Network":"fd05::/48","EnableIPv6":true,"Backend":{"Type":"ipip"}}'
    assert "no more than leased" in IpipBackend.lease_only[6]
    assert plugins.parse(both)[1].name == "ipip"
    with pytest.raises(ConfigError, match="ipip"):
        plugins.parse('{"EnableIPv4":false,"IPv6Network":"fd05::/48","EnableIPv6":true,"Backend":{"Type":"ipip"}}')


# -------------------------------------------------------------------------------------------------------- the device


def within(octets: bytes, start: int = 0) -> dict[int, bytes]:
    return dict(attributes(octets, start, len(octets)))


def data_of(link: Link) -> dict[int, bytes]:
    """IFLA_INFO_DATA of the message that makes it."""
    assert isinstance(link.detail, Ipip)
    message = IpipDriver().create(1, link, link.detail, 0)
    info = within(message, 32)[18]
    return within(within(info)[2])


def test_the_device_is_flannels() -> None:
    """LOCAL, TTL 0, TOS 0, PMTUDISC 0, no encapsulation (flannel-compat, appendix A)."""
    found = data_of(Link("flannel.ipip", "ipip", 1480, detail=Ipip(US, ttl=0)))
    assert found == {2: US.packed, 3: bytes(4), 4: b"\0", 5: b"\0", 10: b"\0"}


@given(st.integers(0, 65_535), st.integers(0, 255), st.integers(0, 2**32 - 1), st.booleans())
def test_a_device_reads_as_it_was_made(port: int, ttl: int, address: int, checksum: bool) -> None:
    made = Ipip(IPAddress(address, 4), port, ttl, checksum=checksum and port > 0)
    assert IpipDriver().read(data_of(Link("x", "ipip", 1480, detail=made)), lambda index: "") == made


NONE = dict.fromkeys((15, 16, 17, 18), bytes(2))  # no encapsulation, as the kernel says it
PLAIN = {2: US.packed, 3: bytes(4), 4: b"\0", 5: b"\0", 10: b"\0", 20: bytes(4), **NONE}


@pytest.mark.parametrize("protocol", [b"\0", b"\4"])
def test_a_device_of_either_flavour_is_taken_over(protocol: bytes) -> None:
    assert IpipDriver().read({**PLAIN, 9: protocol}, lambda index: "") == Ipip(US, ttl=0)


@pytest.mark.parametrize(
    "strange",
    [
        {3: PEER.packed},
        {5: b"\1"},
        {10: b"\1"},
        {4: b"\x40"},
        {1: b"\2\0\0\0"},
        {15: b"\2\0"},
        {19: b""},
        {20: b"\1\0\0\0"},
        {2: b""},
    ],
)
def test_any_other_device_is_made_anew(strange: dict[int, bytes]) -> None:
    """Bound to a peer, with a TOS, path MTU discovery or fixed TTL alone, a lower device, GUE, a mark, external mode."""
    assert IpipDriver().read({**PLAIN, **strange}, lambda index: "") is None


@given(st.integers(1, 65_535), st.integers(0, 255), st.booleans())
def test_a_change_says_all_again(port: int, ttl: int, checksum: bool) -> None:
    """What is left out the kernel takes for zero, and for no encapsulation."""
    detail = Ipip(US, port, ttl, checksum)
    message = IpipDriver().change(1, detail, 0, 7)
    assert int.from_bytes(message[20:24], sys.byteorder) == 7
    assert within(within(within(message, 32)[18])[2]) == data_of(Link("x", "ipip", 1472, detail=detail))


def test_a_wrong_local_address_is_repaired() -> None:
    wanted = IpipBackend().host(local())
    before = HostState.of(Link("flannel.ipip", "ipip", 1480, detail=Ipip(PEER, ttl=0)))
    assert text(plan(wanted, before)).splitlines() == [f"link remake {LINK}", "addr add 10.5.72.0/32 dev flannel.ipip"]


def test_the_two_backends_of_this_kind_do_not_have_one_device() -> None:
    assert Ipip(US, ttl=0).fixed != Ipip(US, 8285).fixed
