"""WireGuard's messages, byte for byte as pyroute2 makes them, and what the kernel's say."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork
from pyroute2.netlink.generic.wireguard import wgmsg

from flannelpy.core.objects import WireguardDevice, WireguardPeer
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import key_text
from flannelpy.kernel import messages, wireguard
from flannelpy.kernel.messages import attribute

SEQUENCE, FAMILY, INDEX = 7, 27, 5
KEY, PSK = bytes(range(32)), bytes(range(100, 132))
PEER = WireguardPeer("flannel-wg", key_text(KEY), (IPAddress("192.0.2.9"), 51820), (IPNetwork("10.5.9.0/24"),))

addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda value: IPAddress(value, 4)),
    st.integers(0, 2**128 - 1).map(lambda value: IPAddress(value, 6)),
)


def nets(version: int, bits: int) -> st.SearchStrategy[IPNetwork]:
    values = st.tuples(st.integers(0, 2**bits - 1), st.integers(1, bits))
    return values.map(lambda value: IPNetwork(value, version=version).cidr)


peers = st.builds(
    WireguardPeer,
    st.just("flannel-wg"),
    st.binary(min_size=32, max_size=32).map(key_text),
    st.one_of(st.none(), st.tuples(addresses, st.integers(1, 65_535))),
    st.lists(st.one_of(nets(4, 32), nets(6, 128)), max_size=5, unique=True).map(tuple),
    st.integers(0, 65_535),
    st.one_of(st.just(b""), st.binary(min_size=32, max_size=32).filter(any)).map(Secret),
)


def library(attributes: list[object]) -> bytes:
    """pyroute2's encoding of a WG_CMD_SET_DEVICE."""
    message = wgmsg()
    message["cmd"], message["version"] = 1, 1
    message["attrs"] = attributes
    message["header"] = {"type": FAMILY, "flags": messages.REQUEST | messages.ACK, "sequence_number": SEQUENCE, "pid": 0}
    message.encode()
    return bytes(message.data)


def by_library(item: WireguardPeer) -> dict[str, object]:
    found: list[object] = [["WGPEER_A_PUBLIC_KEY", item.public_key]]
    if item.endpoint is not None:
        found.append(["WGPEER_A_ENDPOINT", {"addr": str(IPAddress(item.endpoint[0])), "port": item.endpoint[1]}])
    found.append(["WGPEER_A_PRESHARED_KEY", key_text(item.preshared_key.reveal() or bytes(32))])
    found.append(["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", item.keepalive_s])
    found.append(["WGPEER_A_FLAGS", 2])
    allowed = [
        {
            "attrs": [
                ["WGALLOWEDIP_A_FAMILY", messages.FAMILY[net.version]],
                ["WGALLOWEDIP_A_IPADDR", net.ip.packed],
                ["WGALLOWEDIP_A_CIDR_MASK", net.prefixlen],
            ]
        }
        for net in item.allowed_ips
    ]
    found.append(["WGPEER_A_ALLOWEDIPS", allowed])
    return {"attrs": found}


def ours(*items: WireguardPeer) -> bytes:
    return wireguard.set_peers(SEQUENCE, FAMILY, INDEX, [wireguard.peer(item) for item in items])


@given(st.lists(peers, min_size=1, max_size=4))
def test_peers_are_told_as_the_library_tells_them(items: list[WireguardPeer]) -> None:
    expected = library([["WGDEVICE_A_IFINDEX", INDEX], ["WGDEVICE_A_PEERS", [by_library(item) for item in items]]])
    assert ours(*items).hex(" ", 4) == expected.hex(" ", 4)


NETS = [IPNetwork(text) for text in ("10.5.9.0/24", "10.5.10.0/24", "fd05:0:0:9::/64")]
some_nets = st.lists(st.sampled_from(NETS), unique=True).map(tuple)


@given(peers, some_nets, peers, some_nets)
def test_addresses_are_replaced_only_where_one_has_to_go(
    before: WireguardPeer, had: tuple[IPNetwork, ...], after: WireguardPeer, has: tuple[IPNetwork, ...]
) -> None:
    """For a moment it would have none: ENOKEY for what is under way to it."""
    before, after = replace(before, allowed_ips=had), replace(after, allowed_ips=has)
    assert after.narrows(before) == any(net not in has for net in had)
    assert after.narrows(None)
    flags = attribute(wireguard.PEER_FLAGS, messages.U32.pack(wireguard.REPLACE_ALLOWED_IPS))
    whole, kept = wireguard.peer(after).partition(flags), wireguard.peer(after, replace_addresses=False)
    assert whole[1] == flags
    assert whole[0] + whole[2] == kept


def test_a_peer_that_goes() -> None:
    gone = {"attrs": [["WGPEER_A_PUBLIC_KEY", PEER.public_key], ["WGPEER_A_FLAGS", 1]]}
    expected = library([["WGDEVICE_A_IFINDEX", INDEX], ["WGDEVICE_A_PEERS", [gone]]])
    assert wireguard.set_peers(SEQUENCE, FAMILY, INDEX, [wireguard.remove_peer(PEER)]).hex(" ", 4) == expected.hex(" ", 4)


@pytest.mark.parametrize("port", [1, 51820, 65535])
def test_key_and_port_of_a_device(port: int) -> None:
    item = WireguardDevice("flannel-wg", port, Secret(KEY))
    attributes = [["WGDEVICE_A_IFINDEX", INDEX], ["WGDEVICE_A_PRIVATE_KEY", key_text(KEY)], ["WGDEVICE_A_LISTEN_PORT", port]]
    assert wireguard.set_device(SEQUENCE, FAMILY, INDEX, item).hex(" ", 4) == library(attributes).hex(" ", 4)


@given(st.lists(peers, max_size=4, unique_by=lambda item: item.public_key))
def test_what_is_told_is_what_is_read(items: list[WireguardPeer]) -> None:
    data = ours(*items)
    assert list(wireguard.read_peers("flannel-wg", data, 16, len(data))) == items
    assert wireguard.read_device("flannel-wg", data, 16, len(data)) is None


def test_key_and_port_as_the_kernel_tells_them() -> None:
    body = struct.pack("=BBxx", 0, 1) + attribute(6, struct.pack("=H", 51820)) + attribute(3, KEY) + attribute(4, PSK)
    data = messages.message(FAMILY, 0, SEQUENCE, body)
    found = wireguard.read_device("flannel-wg", data, 16, len(data))
    assert found == (WireguardDevice("flannel-wg", 51820, Secret(KEY)), key_text(PSK))


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (1, 2, 3, 4)])
def test_a_peer_of_many_addresses_is_told_in_parts(cuts: tuple[int, ...]) -> None:
    allowed = tuple(IPNetwork(f"10.5.{number}.0/24") for number in range(5))
    first = replace(PEER, keepalive_s=25, preshared_key=Secret(PSK), allowed_ips=allowed[: cuts[0]])
    ends = [*cuts[1:], 5]
    rest = [WireguardPeer("flannel-wg", PEER.public_key, None, allowed[a:b]) for a, b in zip(cuts, ends, strict=True)]
    other = replace(PEER, public_key=key_text(PSK), allowed_ips=())
    assert wireguard.merged([other, first, *rest]) == [other, replace(first, allowed_ips=allowed)]


@given(st.lists(st.integers(0, 90), min_size=1, max_size=900))
def test_a_message_holds_as_many_peers_as_fit_and_every_peer_is_in_one(sizes: list[int]) -> None:
    parts = [bytes(60 + size) for size in sizes]
    runs = list(wireguard._runs(parts))
    assert [entry for run in runs for entry in run] == list(enumerate(parts))
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        listed = b"".join(attribute(number, part) for number, (_place, part) in enumerate(run))
        assert len(listed) < 65_000
        if following is not None:
            assert len(listed) + len(following[0][1]) > wireguard.PEERS_BYTES - 4 * len(run) - 4


def test_hundreds_of_peers_are_one_message() -> None:
    steps = [Step("add", replace(PEER, public_key=key_text(number.to_bytes(32, "big")))) for number in range(400)]
    runs = list(wireguard._runs([wireguard._encode(step) for step in steps]))
    assert len(runs[0]) > 300
