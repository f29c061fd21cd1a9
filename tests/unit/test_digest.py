"""What a notification says: each part for itself, and nothing that a message may hold is an exception."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import Address, FdbEntry, Key, Link, Neighbour, Route, Scope, Vxlan
from flannelpy.kernel import Notice, links, messages
from flannelpy.kernel.digest import Digest, Draft
from flannelpy.kernel.messages import LinkInfo

OURS, UPLINK, VETH, OLD = 7, 2, 9, 5  # indices of devices
SCOPE = Scope(frozenset({"flannel.1"}), (IPNetwork("10.5.0.0/16"), IPNetwork("fd05::/48")), "eth1")
LINK = Link("flannel.1", "vxlan", 1450, "02:00:00:00:00:01", detail=Vxlan(1, "eth1", IPAddress("192.0.2.1")))
NAMES = {OURS: "flannel.1", UPLINK: "eth1", VETH: "veth9", OLD: "tun5"}


def known(index: int, *, up: bool = True) -> LinkInfo:
    return LinkInfo(0, index, NAMES[index], int(up), 1500, None, "", {})


@pytest.fixture
def digest() -> Digest:
    found = Digest(SCOPE, lambda index: NAMES.get(index, f"if{index}"))
    found.survey([known(OURS), known(UPLINK), known(OLD)])
    return found


def told(digest: Digest, *datagrams: bytes) -> Notice:
    draft = Draft()
    for data in datagrams:
        digest.route(data, draft)
    return draft.notice


def link(
    index: int, *, kind: int = messages.RTM_NEWLINK, up: bool = True, name: str = "", mtu: int = 1500, state: int = 0, of: str = ""
) -> bytes:
    head = messages.IFINFO.pack(0, 0, index, int(up), 0)
    text = messages.attribute(3, (name or NAMES[index]).encode() + b"\0") + messages.attribute(16, bytes([state]))
    text += messages.attribute(18, messages.attribute(1, of.encode() + b"\0")) if of else b""
    return messages.message(kind, 0, 0, head + text + messages.attribute(4, mtu.to_bytes(4, "little")))


def address(index: int, text: str, *, kind: int = messages.RTM_NEWADDR) -> bytes:
    net = IPNetwork(text)
    head = messages._IFADDR.pack(messages.FAMILY[net.version], net.prefixlen, 0, 0, index)
    return messages.message(kind, 0, 0, head + messages.attribute(1, messages.packed(net.ip)))


def route(item: Route, index: int, *, kind: int = messages.RTM_NEWROUTE) -> bytes:
    return messages.route(kind, 0, 0, item, index)


def foreign(dst: str, **more: object) -> Route:
    return Route(IPNetwork(dst), proto=4, **more)  # type: ignore[arg-type]


GONE = messages.RTM_DELLINK


# ------------------------------------------------------------------------------------------------------------ the parts


def test_an_interface_that_comes_and_goes_touches_nothing_but_itself(digest: Digest) -> None:
    assert told(digest, link(VETH), link(VETH, kind=GONE)) == Notice(links={VETH: "veth9"})


def test_an_interface_that_says_the_same_again_is_no_news(digest: Digest) -> None:
    told(digest, link(VETH))
    assert told(digest, link(VETH)) == Notice()
    assert told(digest, link(VETH, mtu=1400)) == Notice(links={VETH: "veth9"})


@pytest.mark.parametrize(
    ("state", "of", "up", "runs"),
    [
        (6, "", True, True),
        (0, "", True, True),  # lo, tun, dummy, WireGuard: their drivers know of no carrier
        (0, "dummy", True, True),
        (0, "bridge", True, False),
        (6, "bridge", True, True),
        (2, "", True, False),
        (3, "veth", True, False),
        (5, "", True, False),
        (0, "", False, False),
    ],
)
def test_what_has_a_carrier_or_knows_of_none_runs(state: int, of: str, up: bool, runs: bool) -> None:
    data = link(UPLINK, state=state, of=of, up=up)
    assert messages.read_link(data, 16, len(data)).running is runs


def test_of_the_uplink_alone_it_is_news_that_it_has_a_carrier_or_none(digest: Digest) -> None:
    told(digest, link(UPLINK, state=6), link(VETH, state=6))
    assert told(digest, link(UPLINK, state=2)) == Notice(links={UPLINK: "eth1"})
    assert told(digest, link(UPLINK, state=2)) == Notice()
    assert told(digest, link(UPLINK, state=6)) == Notice(links={UPLINK: "eth1"})
    assert told(digest, link(VETH, state=2)) == Notice()


def test_an_interface_that_may_have_had_routes_takes_them_along(digest: Digest) -> None:
    assert told(digest, link(OLD, kind=GONE)) == Notice(links={OLD: "tun5"}, routed=frozenset({4, 6}))
    told(digest, link(VETH), route(foreign("198.51.100.0/24"), VETH))
    assert told(digest, link(VETH, up=False)) == Notice(links={VETH: "veth9"}, routed=frozenset({4, 6}))
    assert told(digest, link(VETH, kind=GONE)) == Notice(links={VETH: "veth9"})  # nothing was left to lose


def test_addresses_of_others_name_their_interface(digest: Digest) -> None:
    told(digest, link(VETH))
    assert told(digest, address(VETH, "198.51.100.1/24")) == Notice(links={VETH: "veth9"}, addressed=True)
    gone = told(digest, address(VETH, "198.51.100.1/24", kind=messages.RTM_DELADDR))
    assert gone == Notice(links={VETH: "veth9"}, routed=frozenset({4}), addressed=True)


def test_everything_is_observed_where_ipv6_goes_off_on_a_link_that_has_routes_of_ours(digest: Digest) -> None:
    """With it go its routes, and with skip_notify_on_dev_down (ip-sysctl) without a word; that of an address means nothing."""
    told(digest, link(VETH))
    assert not told(digest, address(UPLINK, "2001:db8::1/64", kind=messages.RTM_DELADDR)).resync
    assert told(digest, address(UPLINK, "fe80::1/64", kind=messages.RTM_DELADDR)).resync
    assert not told(digest, address(VETH, "fe80::1/64", kind=messages.RTM_DELADDR)).resync


def test_the_uplink_is_told_and_everything_is_observed_where_it_takes_something_along(digest: Digest) -> None:
    assert told(digest, address(UPLINK, "192.0.2.55/24")) == Notice(links={UPLINK: "eth1"}, addressed=True)
    swapped = told(digest, address(UPLINK, "192.0.2.1/24", kind=messages.RTM_DELADDR), address(UPLINK, "192.0.2.55/24"))
    assert swapped == Notice(resync=True, links={UPLINK: "eth1"}, routed=frozenset({4}), addressed=True)
    assert told(digest, link(UPLINK, up=False)) == Notice(resync=True, links={UPLINK: "eth1"}, routed=frozenset({4, 6}))


def test_our_device_is_an_object_and_not_an_interface_of_the_host(digest: Digest) -> None:
    gone = told(digest, link(OURS, kind=GONE))
    assert gone == Notice({Key("link", "flannel.1"): None}, resync=True)


def test_routes_by_family_and_by_whose_they_are(digest: Digest) -> None:
    assert told(digest, route(foreign("198.51.100.0/24"), VETH)) == Notice(routed=frozenset({4}))
    assert told(digest, route(foreign("2001:db8:7::/64"), VETH)) == Notice(routed=frozenset({6}))
    assert told(digest, route(foreign("fe80::/64"), VETH)) == Notice()
    assert told(digest, route(foreign("0.0.0.0/0"), VETH)) == Notice(default_route=True, routed=frozenset({4}))
    ours = Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True)
    assert told(digest, route(ours, OURS)) == Notice({ours.key: ours})
    assert told(digest, route(ours, OURS, kind=messages.RTM_DELROUTE)) == Notice({ours.key: None})


def test_a_renamed_interface_is_told_by_its_new_name(digest: Digest) -> None:
    renamed = told(digest, link(UPLINK, name="ens3"))
    assert (renamed.links, renamed.resync) == ({UPLINK: "ens3"}, True)


# ---------------------------------------------------------------------------------------------------------- malformed

WHOLE = [
    link(OURS),
    link(VETH),
    link(UPLINK, kind=GONE),
    links.create(1, LINK, UPLINK),
    links.create(1, replace(LINK, name="veth9"), UPLINK),
    address(OURS, "10.5.72.0/32"),
    address(UPLINK, "2001:db8::1/64", kind=messages.RTM_DELADDR),
    route(Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True), OURS),
    route(Route(IPNetwork("10.5.9.0/24"), IPAddress("fe80::9"), "eth1", proto=3), UPLINK),
    route(foreign("::/0", via=IPAddress("fe80::1"), metric=7), VETH),
    route(Route(IPNetwork("fd05:0:0:9::/64"), kind="unreachable"), 0),
    messages.neighbour(messages.RTM_NEWNEIGH, 0, 1, Neighbour(IPAddress("10.5.9.0"), "02:00:00:00:00:09", "flannel.1"), OURS),
    messages.neighbour(messages.RTM_DELNEIGH, 0, 1, Neighbour(IPAddress("fd05::9"), "02:00:00:00:00:09", "flannel.1"), OURS),
    messages.fdb(messages.RTM_NEWNEIGH, 0, 1, FdbEntry("02:00:00:00:00:09", IPAddress("192.0.2.9"), "flannel.1"), OURS),
    links.add_address(1, Address(IPNetwork("10.5.72.0/32"), "flannel.1"), OURS),
]


def mutated(data: bytes, flips: list[tuple[int, int]], cut: int, framed: bool) -> bytes:
    """Some bytes changed, some cut off; with ``framed`` the message still says how long it is, so that it is read."""
    found = bytearray(data[: len(data) - cut % len(data)])
    for at, value in flips:
        if found:
            found[at % len(found)] = value
    if framed and len(found) >= 16:
        found[0:4] = len(found).to_bytes(4, "little")
    return bytes(found)


MUTATED = st.builds(
    mutated,
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=6),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4, 7, 8, 13, 40]),
    st.booleans(),
)


@settings(max_examples=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=MUTATED)
def test_no_message_is_an_exception(digest: Digest, data: bytes) -> None:
    before = digest.malformed
    notice = told(digest, data)
    assert notice.lost == (digest.malformed > before)
    assert notice.resync or not notice.lost
    nft = Draft()
    digest.netfilter(data, nft)
    ours = Route(IPNetwork("10.99.0.0/16"), kind="blackhole")
    told(digest, route(ours, 0))  # whatever was said before, the next message is read


def test_a_message_after_a_malformed_one_in_the_same_datagram_is_read(digest: Digest) -> None:
    ours = Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True)
    broken = bytearray(route(foreign("198.51.100.0/24"), VETH))
    broken[17] = 200  # a prefix of 200 bits
    broken[21] = 102  # that says to be ours
    notice = told(digest, bytes(broken) + route(ours, OURS))
    assert notice == Notice({ours.key: ours}, resync=True, lost=True)
    assert digest.malformed == 1


def test_a_message_that_is_longer_than_its_datagram_is_lost(digest: Digest) -> None:
    data = route(foreign("198.51.100.0/24"), VETH)
    assert told(digest, data[:-4]).lost
