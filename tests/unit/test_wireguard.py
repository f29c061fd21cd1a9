"""wireguard: what a host publishes and asks of the kernel, as an operator would read it. flannel-compat 4.4, 9.5."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from backends.wireguard import WireguardBackend
from flannelpy import plugins
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError, MalformedError
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.objects import HostState, WireguardPeer
from flannelpy.core.plan import plan, text
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import KeyPair, clamped, key_bytes, key_text


def key(name: str) -> str:
    return key_text(clamped(Random(name).randbytes(32)))


PRIVATE = Random("private").randbytes(32)
KEYS = KeyPair(Secret(PRIVATE), key("a"))
B = key("b")
PSK = key("psk")

V4 = {"Network": "10.5.0.0/16"}
V6 = {"EnableIPv6": True, "IPv6Network": "fd05::/48"}
ONLY6 = {"EnableIPv4": False, **V6}
A_UPLINK = Uplink("eth1", 3, 1500, *(IPAddress(text) for text in ("192.0.2.1", "2001:db8::1", "192.0.2.1", "2001:db8::1")))


def situation(config: dict[str, object] = V4, uplink: Uplink = A_UPLINK, **options: object) -> tuple[WireguardBackend, Local]:
    """Host A: 192.0.2.1 and 2001:db8::1 on eth1, lease 10.5.72.0/24 and fd05:0:0:72::/64."""
    asked, backend = plugins.parse(json.dumps({**config, "Backend": {"Type": "wireguard", **options}}))
    assert isinstance(backend, WireguardBackend)
    subnet = IPNetwork("10.5.72.0/24") if asked.v4 else IPNetwork("0.0.0.0/0")
    lease = Lease(subnet, LeaseAttrs(IPAddress("192.0.2.1")), IPNetwork("fd05:0:0:72::/64") if asked.v6 else None)
    return backend, Local(asked, uplink, lease, keys=KEYS)


def peer(*, v4: bool = True, v6: bool = False, **more: object) -> Lease:
    """Host B: lease 10.5.9.0/24 and fd05:0:0:9::/64, at 192.0.2.2 and 2001:db8::2."""
    told: dict[str, object] = {
        "public_ip": IPAddress("192.0.2.2") if v4 else NO_ADDRESS,
        "public_ipv6": IPAddress("2001:db8::2") if v6 else None,
        "backend_type": "wireguard",
        "backend_data": {"PublicKey": B, "Port": 51820} if v4 else None,
        "backend_v6_data": {"PublicKey": B, "Port": 51821} if v6 else None,
    }
    attrs = LeaseAttrs(**(told | more))  # type: ignore[arg-type]
    return Lease(IPNetwork("10.5.9.0/24" if v4 else "0.0.0.0/0"), attrs, IPNetwork("fd05:0:0:9::/64") if v6 else None)


def lines(state: HostState) -> list[str]:
    return [f"{item.noun} {item}" for item in state]


def test_a_lease_says_key_and_port_byte_for_byte() -> None:
    backend, local = situation()
    expected = (
        '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"wireguard",'
        f'"BackendData":{{"PublicKey":"{KEYS.public}","Port":51820}}}}'
    )
    assert backend.attrs(local).to_json() == expected


@pytest.mark.parametrize(
    ("config", "mode", "ports"),
    [
        (V4, "separate", (51820, None)),
        (V4 | V6, "separate", (51820, 51821)),
        (ONLY6, "separate", (None, 51821)),
        (V4 | V6, "auto", (51820, 51820)),
        (V4 | V6, "ipv6", (51820, 51820)),
        (ONLY6, "ipv6", (None, 51820)),
        (V4, "ipv4", (51820, None)),
    ],
    ids=str,
)
def test_the_ports_that_peers_are_told_are_those_that_are_listened_at(
    config: dict[str, object], mode: str, ports: tuple[int | None, int | None]
) -> None:
    backend, local = situation(config, Mode=mode)
    attrs = backend.attrs(local)
    assert tuple(data and data["Port"] for data in (attrs.backend_data, attrs.backend_v6_data)) == ports
    listening = {item.listen_port for item in backend.host(local) if item.noun == "wg"}  # type: ignore[union-attr]
    assert listening == {port for port in ports if port}


def test_the_host_of_ipv4_is_flannels() -> None:
    backend, local = situation()
    assert lines(backend.host(local)) == [
        "link flannel-wg mtu 1420 up type wireguard",
        "wg flannel-wg listen-port 51820 private-key (not shown)",
        "addr 10.5.72.0/32 dev flannel-wg",
        "route 10.5.0.0/16 dev flannel-wg scope link",
    ]
    assert backend.mtu(local) == 1420


def test_the_host_of_both_families_has_two_devices_in_mode_separate_and_one_in_the_others() -> None:
    backend, local = situation(V4 | V6)
    assert lines(backend.host(local)) == [
        "link flannel-wg mtu 1420 up type wireguard",
        "wg flannel-wg listen-port 51820 private-key (not shown)",
        "link flannel-wg-v6 mtu 1420 up type wireguard",
        "wg flannel-wg-v6 listen-port 51821 private-key (not shown)",
        "addr 10.5.72.0/32 dev flannel-wg",
        "route 10.5.0.0/16 dev flannel-wg scope link",
        "addr fd05:0:0:72::/128 dev flannel-wg-v6",
        "route fd05::/48 dev flannel-wg-v6",
    ]
    backend, local = situation(V4 | V6, Mode="auto")
    assert lines(backend.host(local)) == [
        "link flannel-wg mtu 1420 up type wireguard",
        "wg flannel-wg listen-port 51820 private-key (not shown)",
        "addr 10.5.72.0/32 dev flannel-wg",
        "route 10.5.0.0/16 dev flannel-wg scope link",
        "addr fd05:0:0:72::/128 dev flannel-wg",
        "route fd05::/48 dev flannel-wg",
    ]


def test_a_host_of_ipv6_only() -> None:
    backend, local = situation(ONLY6)
    assert lines(backend.host(local))[0] == "link flannel-wg-v6 mtu 1420 up type wireguard"
    assert lines(backend.path(peer(v4=False, v6=True), local).state) == [
        f"wgpeer flannel-wg-v6 peer {B} endpoint [2001:db8::2]:51821 allowed-ips fd05:0:0:9::/64"
    ]


def test_every_option_reaches_the_kernel() -> None:
    options = {"listenport": 4500, "PSK": PSK, "mtu": 1400, "PersistentKeepaliveInterval": 25, "Mode": "separate"}
    backend, local = situation(**options)
    assert lines(backend.host(local))[:2] == [
        "link flannel-wg mtu 1320 up type wireguard",
        "wg flannel-wg listen-port 4500 private-key (not shown)",
    ]
    (made,) = backend.path(peer(), local).state
    assert isinstance(made, WireguardPeer)
    assert str(made) == (
        f"flannel-wg peer {B} endpoint 192.0.2.2:51820 allowed-ips 10.5.9.0/24 persistent-keepalive 25 preshared-key (not shown)"
    )
    assert made.preshared_key.reveal() == key_bytes(PSK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"PSK": "short"}, "Backend.PSK (not shown): expected 32 bytes in base64 (44 letters, the last a =)"),
        ({"PSK": PSK + "="}, "Backend.PSK (not shown): expected 32 bytes in base64 (44 letters, the last a =)"),
        ({"PSK": 7}, "Backend.PSK (not shown): expected a string"),
        ({"ListenPort": 65536}, "Backend.ListenPort 65536: expected a whole number, 0 to 65535"),
        ({"ListenPort": "51820"}, 'Backend.ListenPort "51820": expected a whole number, 0 to 65535'),
        ({"ListenPortV6": -1}, "Backend.ListenPortV6 -1: expected a whole number, 0 to 65535"),
        ({"Mode": "both"}, 'Backend.Mode "both": expected separate, auto, ipv4 or ipv6'),
        ({"Mode": 4}, "Backend.Mode 4: expected separate, auto, ipv4 or ipv6"),
        ({"PersistentKeepaliveInterval": 70000}, "Backend.PersistentKeepaliveInterval 70000: expected a whole number, 0 to 65535"),
        ({"MTU": True}, "Backend.MTU true: expected a whole number, 0 to 65535"),
        ({"ListenPort": 51821}, "Backend.ListenPortV6 51821: expected another port than ListenPort"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_in_one_line(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        situation(V4 | V6, **options)
    assert str(raised.value) == said


@pytest.mark.parametrize(("config", "mode", "name"), [(V4, "ipv6", "EnableIPv6"), (ONLY6, "ipv4", "EnableIPv4")], ids=str)
def test_a_mode_of_a_family_that_is_off(config: dict[str, object], mode: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^Backend.Mode {mode}: expected {name} true, which it is not$"):
        situation(config, Mode=mode)


@pytest.mark.parametrize(("config", "mtu", "least"), [(V4, 147, 68), (V4 | V6, 1359, 1280)], ids=str)
def test_an_underlay_that_is_too_narrow(config: dict[str, object], mtu: int, least: int) -> None:
    backend, local = situation(config, MTU=mtu)
    with pytest.raises(ConfigError, match=f"MTU {mtu} of the underlay leaves {mtu - 80} bytes .*: at least {least} are needed"):
        backend.mtu(local)
    backend, local = situation(config, MTU=mtu + 1)
    assert backend.mtu(local) == least


def test_peers_of_both_families() -> None:
    backend, local = situation(V4 | V6)
    assert lines(backend.path(peer(v6=True), local).state) == [
        f"wgpeer flannel-wg peer {B} endpoint 192.0.2.2:51820 allowed-ips 10.5.9.0/24",
        f"wgpeer flannel-wg-v6 peer {B} endpoint [2001:db8::2]:51821 allowed-ips fd05:0:0:9::/64",
    ]
    assert len(backend.path(peer(), local).state) == 1  # of a dual-stack network, a lease of IPv4 only


@pytest.mark.parametrize(("data", "port"), [({}, 51900), ({"Port": 0}, 51900), ({"Port": None}, 51900), ({"port": 7}, 7)], ids=str)
def test_the_port_is_the_peers_or_where_it_says_none_our_own(data: dict[str, object], port: int) -> None:
    backend, local = situation(ListenPort=51900)
    (made,) = backend.path(peer(backend_data={"PublicKey": B, **data}), local).state
    assert f"endpoint 192.0.2.2:{port} " in str(made)


@pytest.mark.parametrize(
    ("mode", "ours6", "theirs", "theirs6", "endpoint"),
    [
        ("ipv4", "2001:db8::1", "10.0.0.2", "2001:db8::2", "10.0.0.2:51820"),
        ("ipv6", "2001:db8::1", "198.51.100.2", "fd00::2", "[fd00::2]:51820"),
        ("auto", "2001:db8::1", "198.51.100.2", "2001:db8::2", "198.51.100.2:51820"),
        ("auto", "2001:db8::1", "10.0.0.2", "2001:db8::2", "[2001:db8::2]:51820"),
        ("auto", "fd00::1", "10.0.0.2", "2001:db8::2", "10.0.0.2:51820"),
        ("auto", "2001:db8::1", "10.0.0.2", "fd00::2", "10.0.0.2:51820"),
        ("auto", None, "10.0.0.2", "2001:db8::2", "10.0.0.2:51820"),
        ("auto", "2001:db8::1", "10.0.0.2", None, None),
    ],
)
def test_where_one_tunnel_for_both_goes(
    mode: str, ours6: str | None, theirs: str, theirs6: str | None, endpoint: str | None
) -> None:
    uplink = replace(A_UPLINK, public_ipv6=IPAddress(ours6) if ours6 else None)
    backend, local = situation(V4 | V6, uplink, Mode=mode)
    lease = peer(v6=True, public_ip=IPAddress(theirs), public_ipv6=IPAddress(theirs6) if theirs6 else None)
    expected = endpoint or f"{theirs}:51820"
    assert lines(backend.path(lease, local).state) == [
        f"wgpeer flannel-wg peer {B} endpoint {expected} allowed-ips 10.5.9.0/24,fd05:0:0:9::/64"
    ]


BROKEN = [
    None,
    "text",
    {},
    {"PublicKey": None},
    {"PublicKey": 7},
    {"PublicKey": "short"},
    {"PublicKey": key_text(bytes(32))},
    {"PublicKey": B + "\n"},
    {"PublicKey": B[:-2] + "B="},
    {"PublicKey": "\u00e9" * 44},
]


@pytest.mark.parametrize("data", BROKEN, ids=str)
def test_a_peer_without_a_key_is_left_out_in_one_line(data: object) -> None:
    backend, local = situation()
    with pytest.raises(MalformedError, match=r"^BackendData\.PublicKey .{1,62}: expected a public key, 32 bytes in base64$"):
        backend.path(peer(backend_data=data), local)
    assert backend.identities(peer(backend_data=data).attrs) == {}


@pytest.mark.parametrize("port", ["51820", -1, 65536, True, 1.5, [1], 10**4000])
def test_a_peer_at_no_port_is_left_out(port: object) -> None:
    backend, local = situation()
    with pytest.raises(MalformedError, match=r"^BackendData\.Port .{1,60}: expected a UDP port, 0 to 65535$"):
        backend.path(peer(backend_data={"PublicKey": B, "Port": port}), local)


def test_a_peer_with_our_key_or_no_address_is_left_out() -> None:
    backend, local = situation(V4 | V6)
    with pytest.raises(MalformedError, match="is our own: two hosts cannot share it"):
        backend.path(peer(backend_data={"PublicKey": KEYS.public}), local)
    with pytest.raises(MalformedError, match=r"^PublicIP is missing: expected where to send 10\.5\.9\.0/24$"):
        backend.path(peer(public_ip=NO_ADDRESS), local)
    with pytest.raises(MalformedError, match=r"^PublicIPv6 is missing: expected where to send fd05:0:0:9::/64$"):
        backend.path(peer(v6=True, public_ipv6=None), local)


def test_one_tunnel_has_one_key() -> None:
    backend, local = situation(V4 | V6, Mode="auto")
    with pytest.raises(MalformedError, match=r"^BackendV6Data\.PublicKey: expected that of BackendData, for there is one tunnel$"):
        backend.path(peer(v6=True, backend_v6_data={"PublicKey": key("c")}), local)


def test_a_key_is_an_identity() -> None:
    backend, _local = situation(V4 | V6)
    assert backend.identities(peer(v6=True).attrs) == {"flannel-wg": B, "flannel-wg-v6": B}


def test_without_a_key_nothing_is_said() -> None:
    backend, local = situation()
    for say in (backend.attrs, backend.host):
        with pytest.raises(BackendError, match="no key yet"):
            say(replace(local, keys=None))


def test_another_key_of_a_peer_is_in_before_the_old_one_goes() -> None:
    backend, local = situation()
    host = backend.host(local)
    new = key("b2")
    before, after = (
        host | backend.path(peer(), local).state,
        host | backend.path(peer(backend_data={"PublicKey": new}), local).state,
    )
    assert text(plan(after, before)) == "\n".join(
        [
            f"wgpeer add flannel-wg peer {new} endpoint 192.0.2.2:51820 allowed-ips 10.5.9.0/24",
            f"wgpeer del flannel-wg peer {B} endpoint 192.0.2.2:51820 allowed-ips 10.5.9.0/24",
        ]
    )


keys = st.sampled_from(["PublicKey", "publickey", "Port", "x"])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50) | st.sampled_from([B, 51820, "A" * 43 + "="])
)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner))
told = anything | st.fixed_dictionaries({"PublicKey": st.just(B)}, optional={"Port": scalars | st.integers(0, 65_535)})


@given(told, told, st.sampled_from(["separate", "auto", "ipv4", "ipv6"]))
def test_whatever_a_lease_says_is_a_peer_or_one_line(data: object, data6: object, mode: str) -> None:
    backend, local = situation(V4 | V6, Mode=mode)
    lease = peer(v6=True, backend_data=data, backend_v6_data=data6)
    assert set(backend.identities(lease.attrs).values()) <= {B}
    try:
        made, said = backend.path(lease, local).state, ""
    except MalformedError as error:
        made, said = HostState(), str(error)
    assert said.isprintable()
    assert len(said) < 200
    assert said or len(made)
    for item in made:
        assert isinstance(item, WireguardPeer)
        assert item.public_key == B
        assert item.endpoint is not None
        assert 0 < item.endpoint[1] < 65_536
        assert set(item.allowed_ips) <= {lease.subnet, lease.subnet6}


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32).filter(any))
def test_no_secret_is_in_what_is_printed(private: bytes, psk: bytes) -> None:
    config = NetworkConfig.parse(json.dumps({**V4, "Backend": {"Type": "wireguard", "PSK": key_text(psk)}}))
    backend = plugins.load(config)
    local = Local(config, A_UPLINK, peer(), keys=KeyPair(Secret(private), key("a")))
    state = backend.host(local) | backend.path(replace(peer(), subnet=IPNetwork("10.5.8.0/24")), local).state
    said = "".join(
        [text(plan(state, HostState())), repr(state), repr(local), str(config.to_dict()), backend.attrs(local).to_json()]
    )
    for secret in (private, psk):
        assert key_text(secret) not in said
        assert repr(secret)[2:-1] not in said


@given(st.binary(max_size=40))
def test_a_key_is_32_bytes_in_their_one_spelling(data: bytes) -> None:
    written = key_text(data)
    if len(data) == 32:
        assert key_bytes(written) == data
    else:
        with pytest.raises(ValueError, match="expected 32 bytes in base64"):
            key_bytes(written)


PEER = WireguardPeer("flannel-wg", B, (IPAddress("192.0.2.2"), 51820), (IPNetwork("10.5.9.0/24"),))


@pytest.mark.parametrize(
    ("changes", "satisfied"),
    [
        ({}, True),
        ({"endpoint": (IPAddress("203.0.113.9"), 4444)}, True),
        ({"endpoint": (IPAddress("2001:db8::9"), 51820)}, True),
        ({"endpoint": None}, False),
        ({"allowed_ips": ()}, False),
        ({"keepalive_s": 25}, False),
        ({"preshared_key": Secret(bytes(range(32)))}, False),
        ({"dev": "flannel-wg-v6"}, False),
    ],
    ids=str,
)
def test_a_peer_may_be_anywhere_and_nothing_else_may_differ(changes: dict[str, object], satisfied: bool) -> None:
    assert PEER.satisfied_by(replace(PEER, **changes)) is satisfied  # type: ignore[arg-type]
