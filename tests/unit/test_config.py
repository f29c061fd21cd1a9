"""Is the network config read, refused and derived as flannel does? flannel-compat 3 and 13."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.core.config import NetworkConfig, Pool
from flannelpy.core.errors import ConfigError


def v4(text: str) -> Pool:
    pool = NetworkConfig.parse(text).v4
    assert pool is not None
    return pool


def v6(text: str) -> Pool:
    pool = NetworkConfig.parse(text).v6
    assert pool is not None
    return pool


def v4_network(network: str, **more: object) -> str:
    return json.dumps({"Network": network, **more})


def v6_network(network: str, **more: object) -> str:
    return json.dumps({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": network, **more})


def refused(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig.parse(text)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- flannel's own cases


def test_conformance_config_defaults_with_a_lower_case_key() -> None:
    config = NetworkConfig.parse('{ "network": "10.3.0.0/16" }')
    pool = config.v4
    assert pool is not None
    assert (str(pool.network), str(pool.first), str(pool.last), pool.length) == ("10.3.0.0/16", "10.3.1.0", "10.3.255.0", 24)
    assert config.v6 is None
    assert config.backend_type == "udp"
    assert not config.backend_given
    assert not config.enable_nftables


def test_conformance_config_defaults_ipv6_alone_with_lower_camel_keys() -> None:
    config = NetworkConfig.parse('{ "enableIPv6": true, "enableIPv4": false, "ipv6Network": "fc00::/48" }')
    pool = config.v6
    assert pool is not None
    assert (str(pool.first), str(pool.last), pool.length) == ("fc00:0:0:1::", "fc00:0:0:ffff::", 64)
    assert config.v4 is None
    assert config.families == (6,)


def test_conformance_config_ipv4_overrides() -> None:
    pool = v4('{"Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28}')
    assert (str(pool.first), str(pool.last), pool.length) == ("10.3.5.0", "10.3.8.0", 28)


def test_conformance_config_ipv6_overrides() -> None:
    pool = v6(v6_network("fc00::/48", IPv6SubnetMin="fc00:0:0:1::", IPv6SubnetMax="fc00:0:0:f::", IPv6SubnetLen=64))
    assert (str(pool.first), str(pool.last), pool.length) == ("fc00:0:0:1::", "fc00:0:0:f::", 64)


# ------------------------------------------------------------------------------------------- derivation, 3.2 and 3.3


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ("10.0.0.0/22", 24, "10.0.1.0", "10.0.3.0"),
        ("10.0.0.0/23", 25, "10.0.0.128", "10.0.1.128"),
        ("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12"),
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.1.3/16", 24, "10.5.1.0", "10.5.255.0"),
        ("128.0.0.0/5", 24, "128.0.1.0", "135.255.255.0"),
    ],
)
def test_conformance_derivation_ipv4(network: str, length: int, first: str, last: str) -> None:
    pool = v4(v4_network(network))
    assert (pool.length, str(pool.first), str(pool.last)) == (length, first, last)


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ("fc00::/124", 126, "fc00::4", "fc00::c"),
        ("fc00:1:2:3::1/48", 64, "fc00:1:2:1::", "fc00:1:2:ffff::"),
    ],
)
def test_conformance_derivation_ipv6(network: str, length: int, first: str, last: str) -> None:
    pool = v6(v6_network(network))
    assert (pool.length, str(pool.first), str(pool.last)) == (length, first, last)


@pytest.mark.parametrize(
    "text",
    [
        v4_network("10.0.0.0/29"),
        v4_network("10.0.0.0/28", SubnetLen=29),
        v4_network("10.0.0.0/28", SubnetLen=31),
        v4_network("10.0.0.0/16", SubnetLen=17),
        v4_network("10.0.0.0/16", SubnetLen=31),
        v4_network("10.0.0.0/16", SubnetLen=-1),
        v4_network("10.0.0.0/16", SubnetLen=24.0),
        v4_network("10.0.0.0/16", SubnetLen="24"),
        v4_network("10.0.0.0/16", SubnetLen=True),
        v4_network("10.0.0.0/16", SubnetLen=2**64),
        v4_network("10.0.0.0/16", SubnetMin="10.1.0.0"),
        v4_network("10.0.0.0/16", SubnetMax="11.0.0.0"),
        v4_network("10.0.0.0/16", SubnetMin="10.0.1.1"),
        v4_network("10.0.0.0/16", SubnetMax="10.0.1.128"),
        v4_network("10.0.0.0/16", SubnetMin="10.0.9.0", SubnetMax="10.0.8.0"),
        v4_network("10.0.0.0/16", SubnetMin=""),
        v4_network("10.0.0.0/16", SubnetMin=None),
        v4_network("0.0.0.0/0"),
        v4_network("10.0.0.0"),
        v4_network("10.0.0.0/33"),
        v4_network("10.0.0/16"),
        v4_network("10.0.0.0/255.255.0.0"),
        v4_network("10.0.0.0/ 16"),
        v4_network("fc00::/48"),
        v4_network(""),
        '{"Network": null}',
        '{"Network": 10}',
        "{}",
        v6_network("fc00::/125"),
        v6_network("fc00::/48", IPv6SubnetLen=127),
        v6_network("fc00::/48", IPv6SubnetLen=49),
        v6_network("10.0.0.0/16"),
        v6_network("::ffff:10.0.0.0"),
        v6_network("fc00::/48", IPv6SubnetMin="fc00:0:0:1::1"),
        v6_network("fc00::/48", IPv6SubnetMax="fc01::"),
        '{"EnableIPv4": false}',
        '{"EnableIPv4": false, "Network": "10.5.0.0/16"}',
        '{"Network": "10.5.0.0/16", "EnableIPv6": true}',
        '{"Network": "10.5.0.0/16", "EnableIPv6": "yes"}',
        v4_network("10.5.0.0/16", Backend="vxlan"),
        v4_network("10.5.0.0/16", Backend={}),
        v4_network("10.5.0.0/16", Backend=None),
        v4_network("10.5.0.0/16", Backend={"Type": None}),
        v4_network("10.5.0.0/16", Backend={"Type": 7}),
        v4_network("10.5.0.0/16", Backend={"Type": ""}),
        "[]",
        "null",
        "",
        "{",
    ],
)
def test_conformance_refused(text: str) -> None:
    message = refused(text)
    assert "\n" not in message
    assert "expected" in message or " to " in message


def test_conformance_the_first_block_may_be_asked_for() -> None:
    assert v4(v4_network("10.5.0.0/16", SubnetMin="10.5.0.0")).count == 256


def test_conformance_unset_bounds() -> None:
    pool = v4(v4_network("10.5.0.0/16", SubnetMin="0.0.0.0", SubnetMax="0.0.0.0", SubnetLen=0))
    assert (str(pool.first), str(pool.last), pool.length) == ("10.5.1.0", "10.5.255.0", 24)
    pool = v6(v6_network("fc00::/48", IPv6SubnetMin=None, IPv6SubnetMax="::"))
    assert (str(pool.first), str(pool.last)) == ("fc00:0:0:1::", "fc00:0:0:ffff::")


def test_conformance_keys_in_any_case_the_last_spelling_counts() -> None:
    assert str(v4('{"NETWORK": "10.1.0.0/16", "network": "10.3.0.0/16", "Network": "10.2.0.0/16"}').network) == "10.2.0.0/16"
    assert str(v4('{"Network": "10.1.0.0/16", "NETWORK": "10.3.0.0/16"}').network) == "10.3.0.0/16"
    assert str(v4('{"Network": "10.1.0.0/16", "NETWORK": "10.3.0.0/16", "Network": "10.2.0.0/16"}').network) == "10.2.0.0/16"
    assert (
        NetworkConfig.parse('{"Network": "10.2.0.0/16", "Backend": {"Type": "vxlan", "type": "host-gw"}}').backend_type == "host-gw"
    )


@given(st.permutations(["Network", "NETWORK", "network", "nETwork"]), st.integers(1, 4))
def test_conformance_of_any_spellings_in_any_order_the_last_counts(spellings: list[str], count: int) -> None:
    members = ", ".join(f'"{name}": "10.{at}.0.0/16"' for at, name in enumerate(spellings[:count], 1))
    assert str(v4(f"{{{members}}}").network) == f"10.{count}.0.0/16"


def test_conformance_of_duplicate_keys_the_last_counts_and_unknown_ones_are_passed_over() -> None:
    assert str(v4('{"Network": "10.1.0.0/16", "Unknown": [1], "Network": "10.2.0.0/16"}').network) == "10.2.0.0/16"


def test_conformance_backend_type_in_any_case() -> None:
    config = NetworkConfig.parse(v4_network("10.5.0.0/16", Backend={"tYPE": "VXLAN", "VNI": 7, "Port": 4789}))
    assert config.backend_type == "vxlan"
    assert dict(config.backend_options) == {"VNI": 7, "Port": 4789}
    assert config.backend_given


def test_a_refusal_names_key_value_and_what_was_expected() -> None:
    assert refused(v4_network("10.1.0.0/16", SubnetLen=17)) == (
        "SubnetLen 17 leaves 2 subnets in 10.1.0.0/16, at least 4 are needed (18 to 30)"
    )
    assert "SubnetMin 10.0.9.0 is above SubnetMax 10.0.8.0" in refused(
        v4_network("10.0.0.0/16", SubnetMin="10.0.9.0", SubnetMax="10.0.8.0")
    )


def test_ipv4_off_is_not_validated() -> None:
    assert NetworkConfig.parse(v6_network("fc00::/48", Network="nonsense", SubnetLen=99)).v4 is None


def test_blocks_are_numbered_from_first_to_last() -> None:
    pool = v4(v4_network("10.0.0.0/23"))
    assert [str(pool.block(number)) for number in range(pool.count)] == ["10.0.0.128/25", "10.0.1.0/25", "10.0.1.128/25"]


def test_conformance_compatibility_of_a_subnet() -> None:
    pool = v4(v4_network("10.5.0.0/16", SubnetMin="10.5.10.0", SubnetMax="10.5.20.0"))
    fitting = [
        net for net in ("10.5.9.0/24", "10.5.10.0/24", "10.5.20.0/24", "10.5.21.0/24", "10.5.15.0/25") if pool.fits(IPNetwork(net))
    ]
    assert fitting == ["10.5.10.0/24", "10.5.20.0/24"]
    assert not pool.fits(IPNetwork("::a05:a00/120"))


# ------------------------------------------------------------------------------------------------- whatever comes


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["10.5.0.0/16", "fc00::/48", "0.0.0.0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
IPV6_KEYS = ["IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"]
IPV4_KEYS = ["Network", "NETWORK", "SubnetLen", "SubnetMin", "SubnetMax"]
KEYS = st.sampled_from([*IPV4_KEYS, *IPV6_KEYS, "EnableIPv4", "EnableIPv6", "EnableNFTables", "Backend", "Type", "x"])
ADDRESSES = st.ip_addresses().map(str) | st.sampled_from(["0.0.0.0", "::", "10.5.0.0", "fc00::"])
NETWORKS = st.builds(lambda address, length: f"{address}/{length}", ADDRESSES, st.integers(0, 129))
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "Network": NETWORKS | VALUES,
        "SubnetLen": st.integers(-1, 40) | VALUES,
        "SubnetMin": ADDRESSES | VALUES,
        "SubnetMax": ADDRESSES | VALUES,
        "EnableIPv4": st.booleans(),
        "EnableIPv6": st.booleans() | VALUES,
        "IPv6Network": NETWORKS | VALUES,
        "IPv6SubnetLen": st.integers(-1, 140),
        "IPv6SubnetMin": ADDRESSES | VALUES,
        "IPv6SubnetMax": ADDRESSES,
        "Backend": VALUES | st.dictionaries(KEYS, VALUES, max_size=3),
    },
)


def check_one_line(message: str) -> None:
    assert "\n" not in message
    message.encode()  # a log must be able to take it: no lone surrogates


def check_any(text: str | bytes) -> None:
    try:
        config = NetworkConfig.parse(text)
    except ConfigError as error:
        check_one_line(str(error))
        return
    for pool in (config.v4, config.v6):
        if pool is not None:
            assert pool.count >= 1
            assert pool.fits(pool.block(0))
            assert pool.fits(pool.block(pool.count - 1))
            assert pool.block(pool.count - 1) in pool.network
    json.dumps(config.to_dict(), allow_nan=False).encode()
    again = NetworkConfig.parse(json.dumps(config.to_dict()))
    assert (again.v4, again.v6, again.backend_type) == (config.v4, config.v6, config.backend_type)


@given(st.dictionaries(KEYS, VALUES, max_size=6) | LIKELY | VALUES)
@settings(max_examples=400, deadline=None)
@example({"Network": "10.5.0.0/16", "SubnetMin": "\ud800"})
@example({"Network": "10.5.0.0/16", "Backend": {"Type": "\ud800"}})
@example({"Network": "1\n/16"})
def test_conformance_config_fuzz_any_json(value: Any) -> None:
    check_any(json.dumps(value))


@given(st.binary(max_size=60) | st.text(max_size=60))
@example(b'{"Network": "\xff"}')
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example('{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "x": ' + "[" * 985 + "]" * 985 + "}}")
@example('{"Network": ' + "[" * 985 + "]" * 985 + "}")
@example('{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "x": NaN, "y": 1e999}}')
@example("1" * 5000)
@example('{"Network": "10.5.0.0/16", "SubnetLen": ' + "9" * 5000 + "}")
@example('{"Network": "10.5.0.0/16", "SubnetLen": NaN}')
@example('{"Network": "10.5.0.0/16", "SubnetLen": Infinity}')
@example('{"Network": "10.5.0.0/' + "9" * 5000 + '"}')
@example('{"Network": "\\ud800"}')
@example('{"\\ud800": 1, "Network": "10.5.0.0/16"}')
@example('\ufeff{"Network": "10.5.0.0/16"}')
@example('{"Network": "１0.5.0.0/16"}')
def test_conformance_config_fuzz_any_bytes(text: str | bytes) -> None:
    check_any(text)


@pytest.mark.parametrize(
    ("network", "use"),
    [
        ("0.5.0.0/16", "0.0.0.0/8 (this network)"),
        ("0.0.0.0/1", "0.0.0.0/8 (this network)"),
        ("127.5.0.0/16", "127.0.0.0/8 (loopback)"),
        ("64.0.0.0/2", "127.0.0.0/8 (loopback)"),
        ("169.254.0.0/20", "169.254.0.0/16 (link-local)"),
        ("168.0.0.0/5", "169.254.0.0/16 (link-local)"),
        ("224.0.0.0/16", "224.0.0.0/3 (multicast and reserved)"),
        ("240.0.0.0/16", "224.0.0.0/3 (multicast and reserved)"),
    ],
)
def test_a_network_that_hosts_need_for_themselves_is_refused(network: str, use: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig.parse(json.dumps({"Network": network}))
    assert str(caught.value) == f"Network {network} overlaps {use}: expected an IPv4 network like 10.5.0.0/16"


@pytest.mark.parametrize(
    ("network", "use"),
    [("::/64", "::/128 (unspecified)"), ("fe80::/48", "fe80::/10 (link-local)"), ("ff05::/48", "ff00::/8 (multicast)")],
)
def test_the_same_for_ipv6(network: str, use: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig.parse(json.dumps({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": network}))
    assert str(caught.value) == f"IPv6Network {network} overlaps {use}: expected an IPv6 network like fc00::/48"


@pytest.mark.parametrize(
    "network", ["1.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "126.0.0.0/8", "128.0.0.0/8", "172.16.0.0/12", "223.0.0.0/8"]
)
def test_every_other_network_is_taken(network: str) -> None:
    assert NetworkConfig.parse(json.dumps({"Network": network})).networks == (IPNetwork(network),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        (
            '{"Network": "10.5.0.0/16", \\"SubnetLen\\": 24}',
            "line 1, column 28: expected a name in double quotes (a backslash before a",
        ),
        ("{'Network': 1}", "line 1, column 2: expected a name in double quotes (names and strings stand in double quotes)"),
        ('{"Network": "10.5.0.0/16",}', "line 1, column 27: expected a name in double quotes (a comma too many before it?)"),
        ('{"Network": "10.5.0.0/16"\n"SubnetLen": 24}', "line 2, column 1: expected a comma, or the end of the list or object;"),
        ('{"Network" "10.5.0.0/16"}', "line 1, column 12: expected a colon;"),
        ('{\n  # ours\n  "Network": "10.5.0.0/16"}', "line 2, column 3: expected a name in double quotes (JSON has no comments)"),
        ('{"Network": "10.5.0.0/16"} // ours', "line 1, column 28: expected the end of the text (JSON has no comments)"),
        ('{"EnableIPv6": True}', "line 1, column 16: expected a value (true is written in small letters)"),
        ('{"Network": }', "line 1, column 13: expected a value;"),
        ('{"Network": "10.5.0.0/16', "line 1, column 13: the string that begins here has no end;"),
        ('{"Network": "10.5.0.0/16"', "line 1, column 26: expected a comma, or the end of the list or object (the text ends here)"),
        ('\ufeff{"Network": "10.5.0.0/16"}', "line 1, column 1: expected a value (a byte order mark; save the file without one);"),
        ("{\u201cNetwork\u201d: 1}", "line 1, column 2: expected a name in double quotes (these are typographic quotes)"),
        ('{"Network": "10.5\n"}', "line 1, column 18: a line break or another control character inside a string;"),
        ('{"Network": "10.5\\.0"}', "line 1, column 18: a backslash that begins no escape;"),
    ],
)
def test_what_is_no_json_is_told_in_the_words_of_who_wrote_it(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig.parse(text)
    assert str(caught.value).startswith(f"not JSON: {said}")


@given(st.text("{}[]\",:\\ \n'#/TN1a", max_size=30))
def test_python_does_not_speak(text: str) -> None:
    said = ""
    try:
        NetworkConfig.parse(text)
    except ConfigError as error:
        said = str(error)
    assert [word for word in ("Expecting", "something else", "\n") if word in said] == []
