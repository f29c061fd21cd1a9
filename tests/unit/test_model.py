"""Are keys and values read and written as flannel does? flannel-compat 4 and 13."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import MalformedError
from flannelpy.core.model import Lease, LeaseAttrs, compact_json, parse_subnet_key, subnet_key

V4_NETS = st.builds(lambda value, length: IPNetwork((value, length), version=4).cidr, st.integers(0, 2**32 - 1), st.integers(0, 31))
V6_NETS = st.builds(
    lambda value, length: IPNetwork((value, length), version=6).cidr, st.integers(0, 2**128 - 1), st.integers(0, 127)
)
V4 = st.integers(0, 2**32 - 1).map(lambda value: IPAddress(value, 4))
V6 = st.integers(0, 2**128 - 1).map(lambda value: IPAddress(value, 6))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def refused_key(name: str) -> str:
    with pytest.raises(MalformedError) as caught:
        parse_subnet_key(name)
    return str(caught.value)


def refused_value(text: str | bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        LeaseAttrs.from_json(text)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- keys


def test_conformance_ipv4_key_there_and_back() -> None:
    assert parse_subnet_key("10.12.13.0-24") == (IPNetwork("10.12.13.0/24"), None)
    assert subnet_key(IPNetwork("10.12.13.0/24")) == "10.12.13.0-24"


def test_conformance_dual_key_there_and_back() -> None:
    name = "10.12.13.0-24&fd00:12:13::-56"
    subnets = parse_subnet_key(name)
    assert subnets == (IPNetwork("10.12.13.0/24"), IPNetwork("fd00:12:13::/56"))
    assert subnet_key(*subnets) == name


@pytest.mark.parametrize(
    "name",
    [
        "10",
        "10.12.13.0",
        "10.12.13-24",
        "10.12.13.300-24",
        "10.12.13.0-24hi",
        "&2001::-56",
        "10.12.13.0-24&:12:13:-56",
        "10.12.13.0-24&20011::-56",
        "10.12.13.0-24&2001-56",
        "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-56hi",
        "255.255.255.255-32",
        "10.12.13.0-33",
        "10.12.13.0-24&2001::-129",
        "10.12.13.0-24&2001::-128",
        "10.12.13.0-24&FD00::-64",
        "010.12.13.0-24",
        "10.12.13.0-24&",
        "10.12.13.0-24\n",
        "10.12.13.0/24",
        "",
    ],
)
def test_conformance_invalid_keys(name: str) -> None:
    message = refused_key(name)
    assert message.startswith(repr(name))
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", ["10.12.13.0-08", "10.12.13.0-24&fd00::-064", "10.12.13.0-24&fd00:0::-64", "10.12.13.0-２4", "１0.12.13.0-24"]
)
def test_a_key_in_another_spelling_is_refused_for_it_would_be_two_keys_in_one(name: str) -> None:
    assert "expected" in refused_key(name) or "not IPv4" in refused_key(name)


@pytest.mark.parametrize("name", ["10.1.206.0-25", "10.1.210.0-31", "0.0.0.0-0&fd00:5:0:1::-64", "10.12.13.0-24&::-64"])
def test_conformance_odd_keys_that_real_nodes_accept(name: str) -> None:
    assert subnet_key(*parse_subnet_key(name)) == name


def test_conformance_host_bits_in_a_key_are_kept() -> None:
    subnet, _ = parse_subnet_key("10.1.205.7-24")
    assert str(subnet) == "10.1.205.7/24"


@given(V4_NETS, st.none() | V6_NETS)
def test_every_key_there_and_back(subnet: IPNetwork, subnet6: IPNetwork | None) -> None:
    assert parse_subnet_key(subnet_key(subnet, subnet6)) == (subnet, subnet6)


KEYISH = st.from_regex(r"\d{1,3}(\.\d{1,3}){3}-\d{1,3}(&[a-f0-9:]{1,12}-\d{1,4})?")


@given(st.text(max_size=40) | KEYISH | st.text("0123456789.-&:abcf/", max_size=30))
@settings(max_examples=400)
@example("255.255.255.255-32")
@example("\ud800")
def test_conformance_key_fuzz(name: str) -> None:
    try:
        subnets = parse_subnet_key(name)
    except MalformedError as error:
        check_one_line(str(error))
    else:
        assert subnet_key(*subnets) == name


# -------------------------------------------------------------------------------------------------------- values

VXLAN = {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}
EXAMPLES = [
    ('{"PublicIP":"1.2.3.4","PublicIPv6":null}', LeaseAttrs(IPAddress("1.2.3.4"))),
    (
        '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
        LeaseAttrs(IPAddress("192.168.64.3"), backend_type="host-gw"),
    ),
    (
        '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"ipip"}',
        LeaseAttrs(IPAddress("192.168.64.3"), backend_type="ipip"),
    ),
    (
        '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
        LeaseAttrs(IPAddress("192.168.64.3"), backend_type="vxlan", backend_data=VXLAN),
    ),
    (
        '{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"3a:00:00:00:00:01"}}',
        LeaseAttrs(IPAddress("192.168.64.3"), IPAddress("2001:db8::3"), "vxlan", VXLAN, {"VNI": 1, "VtepMAC": "3a:00:00:00:00:01"}),
    ),
    (
        '{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"wireguard",'
        '"BackendData":{"PublicKey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","Port":51820}}',
        LeaseAttrs(
            IPAddress("1.2.3.4"),
            backend_type="wireguard",
            backend_data={"PublicKey": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "Port": 51820},
        ),
    ),
    (
        '{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension","BackendData":""}',
        LeaseAttrs(IPAddress("1.2.3.4"), backend_type="extension", backend_data=""),
    ),
    (
        '{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension","BackendData":"a \\u003c b \\u0026\\u0026 c \\u003e d"}',
        LeaseAttrs(IPAddress("1.2.3.4"), backend_type="extension", backend_data="a < b && c > d"),
    ),
    ('{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3"}', LeaseAttrs(IPAddress("0.0.0.0"), IPAddress("2001:db8::3"))),
]


@pytest.mark.parametrize(("text", "attrs"), EXAMPLES)
def test_conformance_values_byte_for_byte(text: str, attrs: LeaseAttrs) -> None:
    assert attrs.to_json() == text
    assert LeaseAttrs.from_json(text) == attrs
    assert LeaseAttrs.from_json(text.encode()) == attrs


@pytest.mark.parametrize(
    ("text", "attrs"),
    [
        ('{"publicip": "1.2.3.4", "BACKENDTYPE": "udp"}', LeaseAttrs(IPAddress("1.2.3.4"), backend_type="udp")),
        ('{"PublicIP":"1.2.3.4","publicIP":"5.6.7.8"}', LeaseAttrs(IPAddress("5.6.7.8"))),
        ('{"publicip":"5.6.7.8","PublicIP":"1.2.3.4"}', LeaseAttrs(IPAddress("1.2.3.4"))),
        ('{"PublicIP":"9.9.9.9","publicIP":"5.6.7.8","PublicIP":"1.2.3.4"}', LeaseAttrs(IPAddress("1.2.3.4"))),
        ('{"PublicIP":"1.2.3.4","PublicIP":"5.6.7.8"}', LeaseAttrs(IPAddress("5.6.7.8"))),
        ('{"PublicIP":"1.2.3.4","Unknown":[{}]}', LeaseAttrs(IPAddress("1.2.3.4"))),
        ("{}", LeaseAttrs(IPAddress("0.0.0.0"))),
        ('{"PublicIP":"1.2.3.4","BackendType":null,"BackendData":null}', LeaseAttrs(IPAddress("1.2.3.4"))),
        (b'{"PublicIP":"1.2.3.4","x":"\xff"}', LeaseAttrs(IPAddress("1.2.3.4"))),
    ],
)
def test_conformance_a_readers_tolerance(text: str | bytes, attrs: LeaseAttrs) -> None:
    assert LeaseAttrs.from_json(text) == attrs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"PublicIP":null}', "PublicIP null: expected an IPv4 address"),
        ('{"publicip":null}', "PublicIP null: expected an IPv4 address"),
        ('{"PublicIP":"2001:db8::1"}', 'PublicIP "2001:db8::1": expected an IPv4 address'),
        ('{"PublicIP":"1.2.3"}', 'PublicIP "1.2.3": expected an IPv4 address'),
        ('{"PublicIP":"1.2.3.4\\n"}', 'PublicIP "1.2.3.4\\n": expected an IPv4 address'),
        ('{"PublicIP":16909060}', "PublicIP 16909060: expected an IPv4 address"),
        ('{"PublicIP":"1.2.3.4","PublicIPv6":"1.2.3.4"}', 'PublicIPv6 "1.2.3.4": expected an IPv6 address'),
        ('{"PublicIP":"1.2.3.4","BackendType":7}', "BackendType 7: expected a string"),
        ("[]", "expected a JSON object, got []"),
        ('{"PublicIP":"1.2.3.4","x":NaN}', "not JSON: NaN is not a number"),
        ('{"PublicIP":"1.2.3.4","x":-1e999}', "not JSON: number -1e999 is too large"),
    ],
)
def test_conformance_values_that_real_nodes_refuse(text: str, message: str) -> None:
    assert refused_value(text) == message


@given(V4, st.none() | V6, st.sampled_from(["", "vxlan", "x-y"]), JSON, JSON)
@settings(max_examples=300)
def test_every_value_there_and_back(public_ip: IPAddress, v6: IPAddress | None, kind: str, data: Any, data6: Any) -> None:
    attrs = LeaseAttrs(public_ip, v6, kind, data, data6)
    text = attrs.to_json()
    assert LeaseAttrs.from_json(text) == attrs
    assert LeaseAttrs.from_json(text.encode()).to_json() == text


@given(JSON | st.text(), st.sampled_from(["&", "<", ">", "\u2028", "\u2029", ""]))
def test_what_is_escaped_is_still_the_same_json(value: Any, more: str) -> None:
    text = compact_json([value, more])
    assert json.loads(text) == [value, more]
    assert not set(text) & set("&<>\u2028\u2029")


def check_one_line(message: str) -> None:
    assert "\n" not in message
    message.encode()  # a log must be able to take it: no lone surrogates


FIELDS = st.sampled_from(["PublicIP", "publicip", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "x"])


@given(
    st.binary(max_size=60) | st.text(max_size=60) | st.dictionaries(FIELDS, JSON | st.just("1.2.3.4"), max_size=5).map(json.dumps)
)
@settings(max_examples=500)
@example("[" * 100_000)
@example('{"PublicIP":' + "[" * 985 + "]" * 985 + "}")
@example('{"BackendType":' + '{"a":' * 985 + "1" + "}" * 985 + "}")
@example('{"BackendData":' + "[" * 60 + "]" * 60 + "}")
@example('{"BackendData":' + "9" * 5000 + "}")
@example('{"BackendData":' + "9" * 4000 + "}")
@example('{"BackendData":-0.0, "BackendV6Data": 1e400}')
@example('{"BackendData":"\\ud800", "\\udfff": "\\ud83d\\ude00", "BackendV6Data": {"\\udfff": 1}}')
@example(b'{"BackendData":"\xed\xa0\x80"}')
@example('{"BackendData":"\\u0000\\u2028"}')
@example("\ufeff{}")
@example("{}".encode("utf-16"))
@example('{"BackendType":"\\ud800"}')
def test_conformance_value_fuzz(text: str | bytes) -> None:
    try:
        attrs = LeaseAttrs.from_json(text)
    except MalformedError as error:
        check_one_line(str(error))
        return
    written = attrs.to_json()
    assert LeaseAttrs.from_json(written.encode()) == attrs
    assert LeaseAttrs.from_json(written).to_json() == written


def test_a_string_full_of_brackets_is_not_deep() -> None:
    data = "[{" * 500
    assert LeaseAttrs.from_json(LeaseAttrs(IPAddress("1.2.3.4"), backend_data=data).to_json()).backend_data == data


# --------------------------------------------------------------------------------------------- leases and the view


def test_a_lease_is_known_by_its_key_and_speaks_for_itself() -> None:
    lease = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1")), IPNetwork("fd00:5::/64"), etcd_lease=7)
    assert lease.key == "10.5.72.0-24&fd00:5::-64"
    assert str(lease) == "10.5.72.0/24&fd00:5::/64 at 192.0.2.1"
    assert not lease.reserved
    assert Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1"))).reserved


def test_a_renewal_has_the_same_content_and_an_edit_has_not() -> None:
    lease = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1")), None, 7, 10, 11)
    assert lease.same_content(Lease(lease.subnet, lease.attrs, None, 8, 10, 12))
    assert not lease.same_content(Lease(lease.subnet, LeaseAttrs(IPAddress("192.0.2.2")), None, 7, 10, 12))


# ------------------------------------------------------------------------------------------------------ addresses


def test_conformance_addresses_ipv4() -> None:
    assert str(IPAddress("1.2.3.4")) == "1.2.3.4"
    assert int(IPAddress("1.2.3.4")) == 0x01020304
    assert IPNetwork("10.5.0.0/16").last + 1 == int(IPAddress("10.6.0.0"))


def test_conformance_addresses_ipv6_in_canonical_text() -> None:
    for text in ("fc00:0:0:1::", "fd00:12:13::", "::1", "2001:db8:0:1:1:1:1:1", "2001:db8::1:0:0:1"):
        assert str(IPAddress(text)) == text
    assert str(IPAddress("FC00:0000:0000:0001:0:0:0:0")) == "fc00:0:0:1::"


@pytest.mark.parametrize(
    ("subnet", "subnet6", "at", "at6", "said"),
    [
        ("10.5.9.0/24", None, "192.0.2.9", None, "10.5.9.0/24 at 192.0.2.9"),
        ("10.5.9.0/24", "fd00:5::/64", "192.0.2.9", "2001:db8::9", "10.5.9.0/24&fd00:5::/64 at 192.0.2.9"),
        ("0.0.0.0/0", "fd00:5::/64", "0.0.0.0", "2001:db8::9", "fd00:5::/64 at 2001:db8::9"),
        ("0.0.0.0/0", "fd00:5::/64", "192.0.2.9", None, "fd00:5::/64 at 192.0.2.9"),
    ],
)
def test_a_lease_is_told_by_what_it_has(subnet: str, subnet6: str | None, at: str, at6: str | None, said: str) -> None:
    attrs = LeaseAttrs(IPAddress(at), None if at6 is None else IPAddress(at6))
    assert str(Lease(IPNetwork(subnet), attrs, None if subnet6 is None else IPNetwork(subnet6))) == said
