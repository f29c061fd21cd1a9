"""rtnetlink messages: ours are, byte for byte, what pyroute2 writes; what the kernel would echo reads back as it was."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import FdbEntry, Link, Neighbour, Nexthop, Route, Scope, Vxlan
from flannelpy.kernel import links, messages
from flannelpy.kernel.channel import error
from flannelpy.kernel.drivers.vxlan import VxlanDriver
from flannelpy.kernel.messages import CREATE, EXCL, REPLACE, REQUEST
from flannelpy.kernel.sieve import Sieve

SEQUENCE, DEVICE, ADD = 4711, 7, REQUEST | CREATE | EXCL


def library(message: object, kind: int, flags: int, fields: dict[str, object]) -> bytes:
    """The same message by pyroute2."""
    message.setvalue({**fields, "header": {"type": kind, "flags": flags, "sequence_number": SEQUENCE, "pid": 0}})  # type: ignore[attr-defined]
    message.encode()  # type: ignore[attr-defined]
    return bytes(message.data)  # type: ignore[attr-defined]


ROUTES = [
    (
        Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True),
        {"family": 2, "dst_len": 24, "proto": 102, "scope": 0, "type": 1, "flags": 4},
        [("RTA_DST", "10.5.9.0"), ("RTA_GATEWAY", "10.5.9.0"), ("RTA_OIF", DEVICE)],
    ),
    (
        Route(IPNetwork("10.5.0.0/16"), dev="flannel-wg", link_scope=True, proto=3),
        {"family": 2, "dst_len": 16, "proto": 3, "scope": 253, "type": 1, "flags": 0},
        [("RTA_DST", "10.5.0.0"), ("RTA_OIF", DEVICE)],
    ),
    (
        Route(IPNetwork("fd05:0:0:9::/64"), IPAddress("fd05:0:0:9::"), "flannel-v6.1", onlink=True),
        {"family": 10, "dst_len": 64, "proto": 102, "scope": 0, "type": 1, "flags": 4},
        [("RTA_DST", "fd05:0:0:9::"), ("RTA_GATEWAY", "fd05:0:0:9::"), ("RTA_OIF", DEVICE)],
    ),
    (
        Route(IPNetwork("10.5.0.0/16"), kind="unreachable"),
        {"family": 2, "dst_len": 16, "proto": 102, "scope": 0, "type": 7, "flags": 0},
        [("RTA_DST", "10.5.0.0")],
    ),
    (
        Route(IPNetwork("10.5.0.0/16"), kind="blackhole"),
        {"family": 2, "dst_len": 16, "proto": 102, "scope": 0, "type": 6, "flags": 0},
        [("RTA_DST", "10.5.0.0")],
    ),
]


@pytest.mark.parametrize(("item", "fields", "attributes"), ROUTES, ids=str)
def test_a_route(item: Route, fields: dict[str, object], attributes: list[tuple[str, object]]) -> None:
    expected = library(rtmsg(), messages.RTM_NEWROUTE, ADD, {**fields, "table": 254, "attrs": attributes})
    assert messages.route(messages.RTM_NEWROUTE, ADD, SEQUENCE, item, DEVICE if item.dev else 0).hex(" ", 4) == expected.hex(" ", 4)


@pytest.mark.parametrize(("item", "fields", "attributes"), ROUTES, ids=str)
def test_a_route_is_removed_by_all_that_is_known_of_it(
    item: Route, fields: dict[str, object], attributes: list[tuple[str, object]]
) -> None:
    metric = [("RTA_PRIORITY", 1024)] if item.dst.version == 6 else []
    expected = library(rtmsg(), messages.RTM_DELROUTE, REQUEST, {**fields, "table": 254, "attrs": [*attributes, *metric]})
    assert messages.route(messages.RTM_DELROUTE, REQUEST, SEQUENCE, item, DEVICE if item.dev else 0).hex(" ", 4) == expected.hex(
        " ", 4
    )


@pytest.mark.parametrize(("address", "family"), [("10.5.9.0", 2), ("fd05:0:0:9::", 10)])
def test_a_neighbour(address: str, family: int) -> None:
    fields = {"family": family, "ifindex": DEVICE, "state": 0x80, "flags": 0, "ndm_type": 1}
    attributes = [("NDA_DST", address), ("NDA_LLADDR", "02:00:01:00:00:09")]
    expected = library(ndmsg(), messages.RTM_NEWNEIGH, REQUEST | CREATE | REPLACE, {**fields, "attrs": attributes})
    item = Neighbour(IPAddress(address), "02:00:01:00:00:09", "flannel.1")
    assert messages.neighbour(messages.RTM_NEWNEIGH, REQUEST | CREATE | REPLACE, SEQUENCE, item, DEVICE) == expected


@pytest.mark.parametrize("address", ["192.0.2.9", "2001:db8::9"])
@pytest.mark.parametrize(("kind", "state"), [(messages.RTM_NEWNEIGH, 0x80), (messages.RTM_DELNEIGH, 0)])
def test_an_fdb_entry(address: str, kind: int, state: int) -> None:
    fields = {"family": 7, "ifindex": DEVICE, "state": state, "flags": 2, "ndm_type": 0}
    attributes = [("NDA_DST", address), ("NDA_LLADDR", "02:00:01:00:00:09")]
    expected = library(ndmsg(), kind, REQUEST, {**fields, "attrs": attributes})
    assert messages.fdb(kind, REQUEST, SEQUENCE, FdbEntry("02:00:01:00:00:09", IPAddress(address), "flannel.1"), DEVICE) == expected


@pytest.mark.parametrize(
    ("ours", "message", "kind", "flags", "fields"),
    [
        (messages.dump_links(SEQUENCE), ifinfmsg(), 18, 0x301, {"attrs": [("IFLA_EXT_MASK", 8)]}),
        (messages.get_link(SEQUENCE, 7), ifinfmsg(), 18, 1, {"index": 7, "attrs": [("IFLA_EXT_MASK", 8)]}),
        (messages.delete_link(SEQUENCE, 7), ifinfmsg(), 17, 5, {"index": 7, "attrs": []}),
        (messages.dump_addresses(SEQUENCE, 7), ifaddrmsg(), 22, 0x301, {"index": 7, "attrs": []}),
        (messages.dump_routes(SEQUENCE, 10), rtmsg(), 26, 0x301, {"family": 10, "table": 254, "attrs": [("RTA_TABLE", 254)]}),
        (
            messages.get_route(SEQUENCE, IPAddress("192.0.2.9")),
            rtmsg(),
            26,
            1,
            {"family": 2, "dst_len": 32, "table": 0, "attrs": [("RTA_DST", "192.0.2.9")]},
        ),
        (messages.dump_neighbours(SEQUENCE, 7, 9), ndmsg(), 30, 0x301, {"family": 7, "attrs": [("NDA_IFINDEX", 9)]}),
    ],
)
def test_a_question(ours: bytes, message: object, kind: int, flags: int, fields: dict[str, object]) -> None:
    assert ours.hex(" ", 4) == library(message, kind, flags, fields).hex(" ", 4)


@pytest.mark.parametrize("kind", [messages.RTM_NEWROUTE, messages.RTM_DELROUTE])
def test_a_route_by_a_nexthop_object_names_that_and_nothing_else(kind: int) -> None:
    """The library knows no RTA_NH_ID (30): it is what it writes without gateway and device, and the number behind."""
    item = Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True, nhid=0x0A050900)
    fields = {"family": 2, "dst_len": 24, "proto": 102, "scope": 0, "type": 1, "flags": 0, "table": 254}
    bare = library(rtmsg(), kind, ADD, {**fields, "attrs": [("RTA_DST", "10.5.9.0")]})
    expected = struct.pack("=I", len(bare) + 8) + bare[4:] + struct.pack("=HHI", 8, 30, 0x0A050900)
    assert messages.route(kind, ADD, SEQUENCE, item, DEVICE).hex(" ", 4) == expected.hex(" ", 4)


def test_a_nexthop_object() -> None:
    """struct nhmsg, NHA_ID 1, NHA_OIF 5, NHA_GATEWAY 6 (linux/nexthop.h), which the library does not know."""
    item = Nexthop(0x0A050900, IPAddress("10.5.9.0"), "flannel.1", onlink=True)
    head = struct.pack("=IHHII", 48, 104, ADD, SEQUENCE, 0)
    number, device = struct.pack("=HHI", 8, 1, 0x0A050900), struct.pack("=HHI", 8, 5, DEVICE)
    gateway = struct.pack("=HH", 8, 6) + bytes([10, 5, 9, 0])
    made = messages.nexthop(messages.RTM_NEWNEXTHOP, ADD, SEQUENCE, item, DEVICE)
    assert made.hex(" ", 4) == (head + struct.pack("=BBBBI", 2, 0, 102, 0, 4) + number + device + gateway).hex(" ", 4)
    gone = messages.nexthop(messages.RTM_DELNEXTHOP, REQUEST, SEQUENCE, item, 0)
    assert gone == struct.pack("=IHHII", 32, 105, REQUEST, SEQUENCE, 0) + bytes(8) + number


def test_the_last_message_of_a_batch_asks_for_an_acknowledgement() -> None:
    plain = messages.route(messages.RTM_NEWROUTE, ADD, SEQUENCE, ROUTES[0][0], DEVICE)
    assert messages.with_ack(plain) == messages.route(messages.RTM_NEWROUTE, ADD | messages.ACK, SEQUENCE, ROUTES[0][0], DEVICE)


def test_a_vxlan_device_is_made_with_all_that_flannel_says_of_one() -> None:
    link = Link("flannel.1", "vxlan", 1450, "02:00:00:00:00:01", detail=Vxlan(1, "eth1", IPAddress("192.0.2.1"), gbp=True))
    made = ifinfmsg(links.create(SEQUENCE, link, 3))
    made.decode()
    assert (made["index"], made["flags"], made["change"]) == (0, 1, 1)
    assert {name: made.get_attr(name) for name in ("IFLA_IFNAME", "IFLA_MTU", "IFLA_TXQLEN", "IFLA_ADDRESS")} == {
        "IFLA_IFNAME": "flannel.1",
        "IFLA_MTU": 1450,
        "IFLA_TXQLEN": 0,
        "IFLA_ADDRESS": "02:00:00:00:00:01",
    }
    info = made.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "vxlan"
    names = (
        "ID 1,LINK 3,LOCAL 192.0.2.1,TTL 0,TOS 0,LEARNING 0,PROXY 0,RSC 0,L2MISS 0,L3MISS 0,UDP_ZERO_CSUM6_TX 0,UDP_ZERO_CSUM6_RX 0"
    )
    data = [f"{name.removeprefix('IFLA_VXLAN_')} {value}" for name, value in info.get_attr("IFLA_INFO_DATA")["attrs"]]
    assert data == [*names.split(","), "GBP True", "PORT 8472"]


def test_a_kind_of_device_that_is_not_made_here_is_refused() -> None:
    with pytest.raises(KernelError, match="a device of type ipip is not made here"):
        links.create(1, Link("flannel.ipip", "ipip", 1480), 0)


# -------------------------------------------------------------------------------------------------------- decoding


def sieve(*networks: str) -> Sieve:
    found = Sieve(Scope(frozenset({"flannel.1"}), tuple(map(IPNetwork, networks)), "eth1"), lambda index: f"dev{index}")
    found.meet("flannel.1", DEVICE)
    found.meet("eth1", 2)
    return found


@settings(max_examples=60)
@given(
    number=st.integers(0, 2**32 - 1),
    prefixlen=st.integers(0, 32),
    via=st.none() | st.integers(1, 2**32 - 1),
    onlink=st.booleans(),
    link_scope=st.booleans(),
    proto=st.sampled_from([3, 4, 102]),
)
def test_a_route_reads_back_as_it_was_written(
    number: int, prefixlen: int, via: int | None, onlink: bool, link_scope: bool, proto: int
) -> None:
    dst = IPNetwork((number, prefixlen), version=4).cidr
    item = Route(dst, None if via is None else IPAddress(via, 4), "flannel.1", onlink, "unicast", link_scope, proto)
    data = messages.route(messages.RTM_NEWROUTE, ADD, SEQUENCE, item, DEVICE)
    (head,) = messages.heads(data)
    info = messages.read_route(data, head.body, head.end)
    assert info is not None
    assert sieve("10.0.0.0/8").route(info) == item


@given(number=st.integers(1, 2**32 - 1), via=st.integers(1, 2**32 - 1), onlink=st.booleans(), proto=st.sampled_from([4, 102]))
def test_a_nexthop_object_reads_back_as_it_was_written(number: int, via: int, onlink: bool, proto: int) -> None:
    item = Nexthop(number, IPAddress(via, 4), "flannel.1", onlink, proto)
    for device, ours in ((DEVICE, proto == 102), (2, False)):
        data = messages.nexthop(messages.RTM_NEWNEXTHOP, ADD, SEQUENCE, item, device)
        info = messages.read_nexthop(data, 16, len(data))
        assert info.plain
        assert sieve().nexthop(info) == (item if ours else None)


@pytest.mark.parametrize("number", [2, 4, 8, 11])
def test_a_group_a_blackhole_an_encapsulation_and_one_of_an_fdb_are_none_of_ours(number: int) -> None:
    data = messages.nexthop(messages.RTM_NEWNEXTHOP, ADD, SEQUENCE, Nexthop(7, IPAddress("10.5.9.0"), "flannel.1"), DEVICE)
    data += messages.attribute(number, b"\0" * 8)
    info = messages.read_nexthop(data, 16, len(data))
    assert not info.plain
    assert sieve().nexthop(info) is None


def echoed(item: Route, device: int, extra: bytes = b"") -> messages.RouteInfo | None:
    data = messages.route(messages.RTM_NEWROUTE, ADD, SEQUENCE, item, device) + extra
    return messages.read_route(data, 16, len(data))


@pytest.mark.parametrize(
    ("route", "device", "extra", "ours"),
    [
        (Route(IPNetwork("10.5.9.0/24"), dev="x"), 9, b"", True),
        (Route(IPNetwork("10.6.9.0/24"), dev="x"), 9, b"", False),
        (Route(IPNetwork("10.0.0.0/8"), dev="x"), 9, b"", False),
        (Route(IPNetwork("10.6.9.0/24"), dev="flannel.1", proto=4), DEVICE, b"", True),
        (Route(IPNetwork("10.6.9.0/24"), dev="flannel.1", proto=2), DEVICE, b"", False),
        (Route(IPNetwork("10.5.9.0/24"), dev="flannel.1"), DEVICE, struct.pack("=HHI", 8, 6, 100), False),
        (Route(IPNetwork("10.5.9.0/24"), dev="eth1", proto=3), 2, b"", True),
        (Route(IPNetwork("10.5.9.0/24"), dev="eth1", proto=4), 2, b"", False),
        (Route(IPNetwork("10.6.9.0/24"), dev="eth1", proto=3), 2, b"", False),
        (Route(IPNetwork("10.5.9.0/24"), dev="x", proto=3), 9, b"", False),
        (Route(IPNetwork("10.5.9.0/24")), 0, struct.pack("=HH", 4, 9), False),
    ],
    ids=[
        "our mark",
        "our mark, elsewhere",
        "our mark, wider than the network",
        "our device",
        "our device, made by the kernel",
        "with a metric",
        "boot through the uplink",
        "static through the uplink",
        "boot through the uplink, elsewhere",
        "boot through another device",
        "multipath",
    ],
)
def test_what_of_the_routes_may_be_ours(route: Route, device: int, extra: bytes, ours: bool) -> None:
    info = echoed(route, device, extra)
    assert info is not None
    assert (sieve("10.5.0.0/16").route(info) is not None) is ours


def test_a_route_of_another_table_is_no_route() -> None:
    assert echoed(ROUTES[0][0], DEVICE, struct.pack("=HHI", 8, 15, 1000)) is None


def test_a_failure_carries_the_kernels_own_words() -> None:
    words = messages.attribute(1, b"Nexthop has invalid gateway\0")
    body = struct.pack("=i", -errno.ENETUNREACH) + struct.pack("=IHHII", 60, 24, 5, SEQUENCE, 0) + words
    data = messages.message(messages.NLMSG_ERROR, messages.CAPPED | messages.ACK_TLVS, SEQUENCE, body)
    (head,) = messages.heads(data)
    failed = messages.failure(data, head)
    assert failed == (errno.ENETUNREACH, "Nexthop has invalid gateway")
    assert str(error(failed)) == f"{os.strerror(errno.ENETUNREACH)} (Nexthop has invalid gateway)"


def test_a_failure_of_a_kernel_that_sends_our_message_back() -> None:
    request = messages.route(messages.RTM_NEWROUTE, ADD, SEQUENCE, ROUTES[0][0], DEVICE)
    words = messages.attribute(1, b"No\0")
    data = messages.message(messages.NLMSG_ERROR, messages.ACK_TLVS, SEQUENCE, struct.pack("=i", -errno.EINVAL) + request + words)
    (head,) = messages.heads(data)
    assert messages.failure(data, head) == (errno.EINVAL, "No")


@given(st.binary(max_size=200))
def test_attributes_of_anything_end(data: bytes) -> None:
    messages.attributes(data, 0, len(data))
    list(messages.heads(data))


@pytest.mark.parametrize(("name", "attribute"), [("eth1", "IFLA_IFNAME"), ("a" * 15, "IFLA_IFNAME"), ("a" * 16, "IFLA_ALT_IFNAME")])
def test_a_link_is_asked_for_by_any_of_its_names(name: str, attribute: str) -> None:
    fields = {"family": 0, "index": 0, "flags": 0, "change": 0, "attrs": [(attribute, name), ("IFLA_EXT_MASK", 8)]}
    expected = library(ifinfmsg(), messages.RTM_GETLINK, REQUEST, fields)
    assert messages.get_link_named(SEQUENCE, name).hex(" ", 4) == expected.hex(" ", 4)


def test_the_other_names_of_a_link() -> None:
    names = [("IFLA_ALT_IFNAME", "enp0s3"), ("IFLA_ALT_IFNAME", "a-name-that-is-longer-than-fifteen-letters")]
    fields = {"index": 3, "attrs": [("IFLA_IFNAME", "eth1"), ("IFLA_PROP_LIST", {"attrs": names})]}
    data = library(ifinfmsg(), messages.RTM_NEWLINK, 0, fields)
    assert messages.read_altnames(data, 16, len(data)) == ("enp0s3", "a-name-that-is-longer-than-fifteen-letters")
    assert messages.read_altnames(data, 16, 32) == ()


def test_a_vxlan_device_is_changed_by_what_can_change_and_by_nothing_else() -> None:
    data = VxlanDriver().change(SEQUENCE, Vxlan(7, "eth1", IPAddress("192.0.2.1"), 4789, learning=True), 2, DEVICE)
    linkinfo = messages.attributes(data, 32, len(data))[18]
    info = messages.attributes(linkinfo, 0, len(linkinfo))
    inner = messages.attributes(info[2], 0, len(info[2]))
    assert info[1] == b"vxlan\0"
    assert {number: value.hex() for number, value in inner.items()} == {1: "07000000", 3: "02000000", 4: "c0000201", 7: "01"}
    assert set(messages.attributes(data, 32, len(data))) == {18}
