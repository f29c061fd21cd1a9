"""Keys and values of a cluster as bytes, and the URLs of its etcd."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import UsageError
from flannelpy.core.model import Lease, LeaseAttrs, subnet_key
from flannelpy.registry import Deleted, Malformed, Put
from flannelpy.registry.etcd.endpoints import parse_endpoint, parse_endpoints
from flannelpy.registry.etcd.records import Keys, decode_delete, decode_put


def decode(name: str, value: bytes) -> Put | Malformed:
    return decode_put(name, value, etcd_lease=7, create_revision=3, mod_revision=9)


@pytest.mark.parametrize(
    ("prefix", "config"),
    [
        ("/coreos.com/network", "/coreos.com/network/config"),
        ("/coreos.com/network/", "/coreos.com/network/config"),
        ("//coreos.com//network//", "/coreos.com/network/config"),
        ("coreos.com/network", "coreos.com/network/config"),
        ("/a/./b/../c", "/a/c/config"),
        ("/", "/config"),
        ("", "config"),
    ],
)
def test_a_prefix_is_joined_as_flannel_joins_it(prefix: str, config: str) -> None:
    keys = Keys.under(prefix)
    assert keys.config.decode() == config
    assert keys.subnets.decode() == config.removesuffix("config") + "subnets/"
    assert keys.lease("10.5.1.0-24") == keys.subnets + b"10.5.1.0-24"


@pytest.mark.parametrize("junk", ["/p/subnets", "/p/subnets-oops", "/p/subnetsX/10.5.1.0-24", "/p/config"])
def test_the_range_of_leases_holds_nothing_beside_them(junk: str) -> None:
    keys = Keys.under("/p")
    assert not keys.subnets <= junk.encode() < keys.end
    assert keys.subnets <= keys.lease("255.255.255.0-24&ffff::-64") < keys.end


@given(st.binary(min_size=301, max_size=400), st.binary(min_size=301, max_size=400))
def test_a_name_without_end_is_known_by_a_short_one_of_its_own(one: bytes, other: bytes) -> None:
    keys = Keys.under("/p")
    names = [keys.name(keys.subnets + name) for name in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert len(name) < 500
        assert isinstance(decode(name, b"{}"), Malformed)
        assert decode_delete(name, 3) == Deleted(name, 3)


@pytest.mark.parametrize(("room", "fits"), [(64 << 10, True), ((64 << 10) + 1, False)])
def test_a_value_without_end_is_no_lease(room: int, fits: bool) -> None:
    text = '{"PublicIP":"192.0.2.1","BackendData":"%s"}'
    value = (text % ("x" * (room - len(text) + 2))).encode()
    assert len(value) == room
    read = decode("10.5.1.0-24", value)
    assert isinstance(read, Put) == fits
    if isinstance(read, Malformed):
        assert read.why == "value of '10.5.1.0-24': 65,537 bytes; expected at most 65,536"


def test_a_key_and_a_value_are_a_lease() -> None:
    attrs = LeaseAttrs(IPAddress("192.0.2.1"), backend_type="host-gw")
    lease = Lease(IPNetwork("10.5.1.0/24"), attrs, None, etcd_lease=7, create_revision=3, mod_revision=9)
    assert decode("10.5.1.0-24", attrs.to_json().encode()) == Put(lease)


def test_what_cannot_be_read_says_why_and_where() -> None:
    assert decode("10.5.1.0", b"{}") == Malformed(
        "10.5.1.0", "'10.5.1.0' is not a subnet key: expected a form like 10.5.72.0-24 or 10.5.72.0-24&fd00::-64", 9
    )
    assert decode("10.5.1.0-24", b'{"PublicIP":7}') == Malformed(
        "10.5.1.0-24", "value of '10.5.1.0-24': PublicIP 7: expected an IPv4 address", 9
    )


@given(st.binary(max_size=40))
@example(b"\xff\xfe{}")
@example(b"[" * 40)
@example(b"1e999")
def test_conformance_no_value_breaks_the_reader(value: bytes) -> None:
    assert isinstance(decode("10.5.1.0-24", value), Put | Malformed)


@given(st.binary(max_size=40))
@example(b"255.255.255.255-32")
@example(b"10.5.1.0-99")
@example(b"10.5.1.0-24&:::-64")
def test_conformance_no_key_breaks_the_reader(key: bytes) -> None:
    keys = Keys.under("/p")
    name = keys.name(keys.subnets + key)
    assert isinstance(decode(name, b'{"PublicIP":"192.0.2.1"}'), Put | Malformed)
    assert isinstance(decode_delete(name, 4), Deleted)


@given(st.integers(0, 2**32 - 1), st.integers(0, 31), st.none() | st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 127)))
def test_every_lease_key_is_read_back(address: int, length: int, other: tuple[int, int] | None) -> None:
    subnet = IPNetwork((address, length), version=4)
    subnet6 = None if other is None else IPNetwork(other, version=6)
    name = subnet_key(subnet, subnet6)
    read = decode(name, b'{"PublicIP":"192.0.2.1"}')
    assert isinstance(read, Put)
    assert (read.lease.subnet, read.lease.subnet6, read.lease.key) == (subnet, subnet6, name)
    assert decode_delete(name, 4) == Deleted(name, 4)


# --------------------------------------------------------------------------------------------------------- URLs


def test_endpoints_are_read_in_order_and_made_canonical() -> None:
    assert parse_endpoints(" http://127.0.0.1:4001, https://etcd.example:2379/ ,HTTP://[2001:DB8::1]:2379,http://etcd ") == (
        "http://127.0.0.1:4001",
        "https://etcd.example:2379",
        "http://[2001:db8::1]:2379",
        "http://etcd:2379",
    )


def test_an_ipv6_literal_is_a_target_in_brackets() -> None:
    address = parse_endpoint("https://[2001:db8::1]:2379")
    assert (address.host, address.target, address.tls) == ("2001:db8::1", "[2001:db8::1]:2379", True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("etcd:2379", "--etcd-endpoints 'etcd:2379': expected http:// or https:// before the host"),
        ("unix:///run/etcd", "--etcd-endpoints 'unix:///run/etcd': expected http:// or https:// before the host"),
        ("http://", "--etcd-endpoints 'http://': expected a host after http://"),
        ("http://etcd:99999", "--etcd-endpoints 'http://etcd:99999': Port out of range 0-65535; expected a form like http://"),
        ("http://[::1:2379", "--etcd-endpoints 'http://[::1:2379': Invalid IPv6 URL; expected a form like"),
        ("http://etcd:2379/v3", "--etcd-endpoints 'http://etcd:2379/v3': expected nothing after the port"),
        ("http://u:secret@etcd:2379", "--etcd-endpoints: a user name in the URL; expected it in --etcd-username"),
        (" , ", "--etcd-endpoints ' , ': expected one URL or more"),
    ],
)
def test_a_malformed_url_is_one_line_that_says_what_was_expected(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_endpoints(text)
    assert str(caught.value).startswith(complaint)
    assert "secret" not in str(caught.value)
