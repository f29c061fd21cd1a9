"""Is a node the lease that flannel reads and writes, and is only what concerns a lease news?"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress

from flannelpy.core.errors import MalformedError, UsageError
from flannelpy.core.model import Family, LeaseAttrs
from flannelpy.registry import Deleted, Malformed, Put
from flannelpy.registry.kube.book import Book
from flannelpy.registry.kube.names import Names
from flannelpy.registry.kube.nodes import Node, advertised, annotations_for, lease_of, ours_only, subnets_of

NAMES = Names()
P = "flannel.alpha.coreos.com/"
VXLAN = {
    f"{P}kube-subnet-manager": "true",
    f"{P}backend-type": "vxlan",
    f"{P}backend-data": '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:01"}',
    f"{P}public-ip": "192.0.2.1",
}
ATTRS = LeaseAttrs(IPAddress("192.0.2.1"), None, "vxlan", {"VNI": 1, "VtepMAC": "aa:bb:cc:dd:ee:01"})


def node(
    name: str = "n1", cidrs: tuple[str, ...] = ("10.244.1.0/24",), version: int = 5, created: int = 100, **changes: str
) -> Node:
    written = {f"{P}{key.replace('_', '-')}": value for key, value in changes.items()}
    return Node(name, {**VXLAN, **written}, cidrs, created, version)


@pytest.mark.parametrize(
    ("prefix", "managed"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/kube-subnet-manager"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/kube-subnet-manager"),
        ("a.example/net", "a.example/net-kube-subnet-manager"),
        ("a.example/net-", "a.example/net-kube-subnet-manager"),
    ],
)
def test_the_prefix_makes_the_names(prefix: str, managed: str) -> None:
    assert Names.under(prefix).managed == managed


@pytest.mark.parametrize("prefix", ["", "nodots", "a.example/b/c", "A.example", "a.example/B", "a b.example"])
def test_a_prefix_that_kubernetes_would_refuse_is_an_error(prefix: str) -> None:
    with pytest.raises(UsageError, match="expected a domain"):
        Names.under(prefix)


def test_what_flannel_wrote_is_read() -> None:
    lease = lease_of(node(), NAMES, (4,))
    assert lease is not None
    assert (lease.key, lease.attrs) == ("10.244.1.0-24", ATTRS)
    assert (lease.create_revision, lease.mod_revision, lease.reserved) == (100, 5, True)


def test_what_is_written_is_flannels_to_the_byte() -> None:
    assert annotations_for(ATTRS, NAMES, (4,)) == VXLAN
    dual = replace(ATTRS, public_ipv6=IPAddress("fd00::1"), backend_v6_data={"VNI": 1, "VtepMAC": "aa:bb:cc:dd:ee:02"})
    assert annotations_for(dual, NAMES, (4, 6)) == {
        **VXLAN,
        f"{P}backend-v6-data": '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:02"}',
        f"{P}public-ipv6": "fd00::1",
    }


def test_a_backend_without_data_is_written_null_and_read_none() -> None:
    attrs = LeaseAttrs(IPAddress("192.0.2.1"), None, "host-gw")
    written = annotations_for(attrs, NAMES, (4,))
    assert written[f"{P}backend-data"] == "null"
    lease = lease_of(Node("n1", written, ("10.244.1.0/24",)), NAMES, (4,))
    assert lease is not None
    assert lease.attrs == attrs


def test_a_network_of_ipv6_alone_has_flannels_key() -> None:
    written = annotations_for(LeaseAttrs(IPAddress("0.0.0.0"), IPAddress("fd00::1"), "host-gw"), NAMES, (6,))
    assert f"{P}public-ip" not in written
    lease = lease_of(Node("n1", written, ("fd00:244:1::/64",)), NAMES, (6,))
    assert lease is not None
    assert lease.key == "0.0.0.0-0&fd00:244:1::-64"


@pytest.mark.parametrize(
    ("cidrs", "families", "expected"),
    [
        (("10.244.1.0/24",), (4,), "10.244.1.0/24 None"),
        (("10.244.1.0/24", "fd00:1::/64"), (4, 6), "10.244.1.0/24 fd00:1::/64"),
        (("fd00:1::/64", "10.244.1.0/24"), (4, 6), "10.244.1.0/24 fd00:1::/64"),
        (("10.244.1.0/24", "fd00:1::/64"), (4,), "10.244.1.0/24 None"),
        (("10.244.1.9/24",), (4,), "10.244.1.0/24 None"),
    ],
)
def test_pod_cidrs_are_the_subnets(cidrs: tuple[str, ...], families: tuple[Family, ...], expected: str) -> None:
    assert " ".join(map(str, subnets_of(Node("n", {}, cidrs), families) or ())) == expected


@pytest.mark.parametrize(("cidrs", "families"), [((), (4,)), (("fd00:1::/64",), (4,)), (("10.244.1.0/24",), (4, 6))])
def test_a_node_without_a_pod_cidr_waits_for_one(cidrs: tuple[str, ...], families: tuple[Family, ...]) -> None:
    assert subnets_of(Node("n", {}, cidrs), families) is None


@pytest.mark.parametrize(
    ("annotations", "cidrs"),
    [({}, ("10.244.1.0/24",)), ({f"{P}kube-subnet-manager": "false"}, ("10.244.1.0/24",)), ({"other.cni/x": "true"}, ())],
)
def test_nodes_of_others_are_no_lease(annotations: dict[str, str], cidrs: tuple[str, ...]) -> None:
    assert lease_of(Node("n", annotations, cidrs), NAMES, (4,)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"public_ip": "junk"}, "public-ip 'junk': expected an IPv4"),
        ({"public_ip": ""}, "public-ip is missing"),
        ({"backend_data": "{"}, "backend-data: not JSON"),
    ],
)
def test_an_annotation_that_cannot_be_read_is_named(changes: dict[str, str], said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        lease_of(node(**changes), NAMES, (4,))


V6 = {f"{P}public-ipv6": "fd00::1", f"{P}backend-v6-data": "null"}


@pytest.mark.parametrize(
    ("cidrs", "annotations", "key"),
    [
        (("10.244.1.0/24", "fd00:1::/64"), {**VXLAN, **V6}, "10.244.1.0-24&fd00:1::-64"),
        (("10.244.1.0/24",), VXLAN, "10.244.1.0-24"),
        (("10.244.1.0/24",), {**VXLAN, **V6}, "10.244.1.0-24"),
        (("10.244.1.0/24", "fd00:1::/64"), VXLAN, "10.244.1.0-24"),
        (("fd00:1::/64",), {**VXLAN, **V6}, "0.0.0.0-0&fd00:1::-64"),
        (("10.244.1.0/24", "fd00:1::/64"), {**VXLAN, **V6, f"{P}public-ip": ""}, "0.0.0.0-0&fd00:1::-64"),
    ],
)
def test_of_a_networks_families_a_node_is_of_those_that_it_has_and_publishes(
    cidrs: tuple[str, ...], annotations: dict[str, str], key: str
) -> None:
    lease = lease_of(Node("n1", annotations, cidrs), NAMES, (4, 6))
    assert lease is not None
    assert (lease.key, lease.attrs.public_ipv6 is None) == (key, lease.subnet6 is None)


def test_a_node_that_publishes_no_address_at_all_is_malformed_in_any_network() -> None:
    with pytest.raises(MalformedError, match="public-ip is missing"):
        lease_of(node(public_ip="", cidrs=("10.244.1.0/24", "fd00:1::/64")), NAMES, (4, 6))


@pytest.mark.parametrize("cidrs", [("junk",), ("10.244.1.0",), ("10.244.1.0/99",), ("10.0.0.0/24", "10.1.0.0/24", "fd00::/64")])
def test_a_pod_cidr_that_cannot_be_is_named(cidrs: tuple[str, ...]) -> None:
    with pytest.raises(MalformedError, match="podCIDR"):
        subnets_of(Node("n", {}, cidrs), (4,))


def test_an_overwrite_wins_over_the_hosts_own_address() -> None:
    said = node(public_ip_overwrite="198.51.100.9")
    assert advertised(ATTRS, said, NAMES) == replace(ATTRS, public_ip=IPAddress("198.51.100.9"))
    assert advertised(ATTRS, node(), NAMES) == ATTRS
    only6 = LeaseAttrs(IPAddress("0.0.0.0"), IPAddress("fd00::1"), "host-gw")
    assert advertised(only6, said, NAMES) == only6, "of a family that the network has not"
    with pytest.raises(MalformedError, match="public-ip-overwrite 'x': expected an IPv4 address"):
        advertised(ATTRS, node(public_ip_overwrite="x"), NAMES)


def test_only_our_annotations_count() -> None:
    assert ours_only({**VXLAN, "volumes.kubernetes.io/x": "true"}, NAMES) == VXLAN
    assert ours_only(None, NAMES) == {}


@given(st.dictionaries(st.sampled_from(sorted(VXLAN)), st.text(max_size=30)), st.lists(st.text(max_size=20), max_size=3))
def test_any_node_is_a_lease_none_or_malformed(annotations: dict[str, str], cidrs: list[str]) -> None:
    book = Book(NAMES)
    book.put(Node("n", {**VXLAN, **annotations}, tuple(cidrs), 1, 1))
    read = book.snapshot
    assert len(read.leases) + len(read.malformed) <= 1


# ------------------------------------------------------------------------------------------------------------ the book


def kept(*nodes: Node) -> Book:
    book = Book(NAMES)
    book.replace(nodes, 10)
    return book


def test_a_heartbeat_is_no_news() -> None:
    book = kept(node())
    assert book.put(node(version=11)) == []
    assert book.version == 11


def test_a_change_is_one_put_at_its_version() -> None:
    (event,) = kept(node()).put(node(version=12, public_ip="192.0.2.77"))
    assert isinstance(event, Put)
    assert (str(event.lease), event.lease.mod_revision) == ("10.244.1.0/24 at 192.0.2.77", 12)


def test_a_node_that_goes_is_a_lease_deleted() -> None:
    assert kept(node()).remove("n1", 12) == [Deleted("10.244.1.0-24", 12)]


def test_a_node_that_is_another_ones_now_is_a_lease_deleted() -> None:
    book = kept(node())
    assert book.put(Node("n1", {}, ("10.244.1.0/24",), 100, 12)) == [Deleted("10.244.1.0-24", 12)]


def test_a_node_with_another_pod_cidr_is_two_events() -> None:
    (gone, come) = kept(node()).put(node(version=12, cidrs=("10.244.9.0/24",)))
    assert gone == Deleted("10.244.1.0-24", 12)
    assert isinstance(come, Put)
    assert come.lease.key == "10.244.9.0-24"


def test_what_the_listing_knew_is_no_news() -> None:
    book = kept(node(version=9))
    assert book.put(node(version=10, public_ip="192.0.2.77")) == []
    assert book.remove("n1", 10) == []


def test_of_two_nodes_with_one_pod_cidr_the_older_holds_it_and_the_other_follows() -> None:
    book = kept(node("n1", created=100), node("n2", created=50, public_ip="192.0.2.2"))
    assert [str(lease) for lease in book.snapshot.leases] == ["10.244.1.0/24 at 192.0.2.2"]
    assert book.put(node("n1", created=100, version=11, public_ip="192.0.2.3")) == []
    (event,) = book.remove("n2", 12)
    assert isinstance(event, Put)
    assert (str(event.lease), event.lease.mod_revision) == ("10.244.1.0/24 at 192.0.2.3", 12)


def test_a_node_that_cannot_be_read_any_more_keeps_its_lease() -> None:
    book = kept(node())
    (bad,) = book.put(node(version=11, backend_data="{"))
    assert isinstance(bad, Malformed)
    assert bad.key == "n1"
    assert [lease.key for lease in book.snapshot.leases] == ["10.244.1.0-24"]
    assert book.put(node(version=12)) == [Deleted("n1", 12)]


def test_offers_stand_beside_leases() -> None:
    assert kept(node(flannelpy_offer="{}")).offers == {"10.244.1.0-24": b"{}"}


@pytest.mark.parametrize("listings", [1, 3])
def test_a_node_that_cannot_be_read_any_more_keeps_its_lease_in_a_listing_too(listings: int) -> None:
    book = Book(NAMES)
    book.replace([node(version=5), node("n3", cidrs=("10.244.3.0/24",), version=5)], 5)
    bad = node(version=6, public_ip="junk")
    book.put(bad)
    for version in range(7, 7 + listings):
        book.replace([bad], version)
        assert [lease.key for lease in book.snapshot.leases] == ["10.244.1.0-24"], "the other is gone"
        assert [each.key for each in book.snapshot.malformed] == [bad.name]
    book.replace([node(version=20)], 20)
    assert (len(book.snapshot.leases), book.snapshot.malformed) == (1, ())
    book.replace([bad], 21)
    book.replace([bad], 22, (4, 6))
    assert book.snapshot.leases == (), "what it was in a network of other families is no lease of this one"
