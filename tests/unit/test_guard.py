"""Source validation as text and as sets' elements, family by family. With a kernel: tests/contract, with packets: tests/lab."""

from __future__ import annotations

import re
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Guard, GuardedPort, SourceRule
from flannelpy.core.desired import Desired
from flannelpy.core.guard import Side, guard_chains, guard_elements, guard_sets
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.objects import Fou, HostState, NftElement, NftSet, NftTable, Scope
from flannelpy.core.plan import plan, text

V4 = Side(IPNetwork("10.5.0.0/16"), IPNetwork("10.5.72.0/24"), 24)
V6 = Side(IPNetwork("fd05::/48"), IPNetwork("fd05:0:0:72::/64"), 64)
VXLAN = GuardedPort("vxlan", 8472, inner=30, ethertype=28, vni=1)
UDP = GuardedPort("udp", 8285, inner=8)
IPIP = GuardedPort("ipip", 4, inner=0, datagram=False)


def lease(subnet: str, public_ip: str, subnet6: str | None = None, public_ipv6: str | None = None) -> Lease:
    v6 = None if public_ipv6 is None else IPAddress(public_ipv6)
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(public_ip), v6), None if subnet6 is None else IPNetwork(subnet6))


def rules(guard: Guard, side: Side = V4) -> list[str]:
    chains = "\n".join(part for part in guard_chains(guard, [side]) if part.startswith("\tchain guard"))
    return [line.strip() for line in chains.splitlines() if line.strip() not in ("", "}")]


def elements(guard: Guard, one: Lease, *sides: Side) -> list[str]:
    found = guard_elements(guard, "flannelpy", list(sides or (V4,)), one)
    return [f"{item.set} {{ {item.words} }}" for item in found if isinstance(item, NftElement)]


def test_vxlan_by_default_binds_each_peer_to_its_subnet_inside_the_network() -> None:
    assert rules(Guard(VXLAN, "default")) == [
        "chain guard {",
        "type filter hook input priority filter - 10; policy accept;",
        "th dport 8472 meta l4proto 17 @th,224,16 0x800 @th,368,24 0xa0548 ip saddr . @th,336,24 @vxlan4_24 accept",
        "th dport 8472 meta l4proto 17 meta nfproto ipv4 @th,96,24 0x1 jump guard4",
        "chain guard4 {",
        'ip saddr != @hosts4 counter name "outer_source" goto strangers4',
        "@th,224,16 0x806 return",
        '@th,224,16 != 0x800 counter name "inner_protocol" goto refused4',
        "@th,368,24 0xa0548 goto guard4_source",
        'counter name "inner_destination" goto refused4',
        "chain guard4_source {",
        "@th,336,16 != 0xa05 return",
        'counter name "inner_source" goto refused4',
    ]


def test_vxlan_over_ipv6_lets_neighbour_discovery_pass_as_it_does_arp() -> None:
    assert rules(Guard(VXLAN, "default", (4, 6)), V6)[2:] == [
        "th dport 8472 meta l4proto 17 @th,224,16 0x86dd @th,432,64 0xfd05000000000072 ip6 saddr . @th,304,64 @vxlan6_64 accept",
        "th dport 8472 meta l4proto 17 meta nfproto ipv6 @th,96,24 0x1 jump guard6",
        "chain guard6 {",
        'ip6 saddr != @hosts6 counter name "outer_source" goto strangers6',
        '@th,224,16 != 0x86dd counter name "inner_protocol" goto refused6',
        "@th,432,64 0xfd05000000000072 goto guard6_source",
        "@th,288,8 0x3a @th,560,8 0x87-0x88 return",
        'counter name "inner_destination" goto refused6',
        "chain guard6_source {",
        "@th,304,48 != 0xfd0500000000 return",
        'counter name "inner_source" goto refused6',
    ]


def test_udp_has_no_frame_inside() -> None:
    assert rules(Guard(UDP, "default"))[2:] == [
        "th dport 8285 meta l4proto 17 @th,192,24 0xa0548 ip saddr . @th,160,24 @udp4_24 accept",
        "th dport 8285 meta l4proto 17 meta nfproto ipv4 jump guard4",
        "chain guard4 {",
        'ip saddr != @hosts4 counter name "outer_source" goto strangers4',
        "@th,192,24 0xa0548 goto guard4_source",
        'counter name "inner_destination" goto refused4',
        "chain guard4_source {",
        "@th,160,16 != 0xa05 return",
        'counter name "inner_source" goto refused4',
    ]


def test_strict_has_no_outside_but_the_peers_own_address() -> None:
    guard = Guard(VXLAN, "strict")
    assert rules(guard)[-3:] == [
        "chain guard4_source {",
        "ip saddr . @th,336,32 @vxlan4_32 return",
        'counter name "inner_source" goto refused4',
    ]
    assert elements(guard, lease("10.5.9.0/24", "192.0.2.9")) == [
        "hosts4 { 192.0.2.9 }",
        "vxlan4_24 { 192.0.2.9 . 10.5.9.0 }",
        "vxlan4_32 { 192.0.2.9 . 192.0.2.9 }",
    ]
    inside = lease("10.5.4.0/24", "10.5.9.77")  # an address of the network is a subnet's, and no more
    assert elements(guard, inside) == ["hosts4 { 10.5.9.77 }", "vxlan4_24 { 10.5.9.77 . 10.5.4.0 }"]


def test_ipip_has_no_header_between_the_two() -> None:
    """The source is at byte 12 of the inner header, the destination at byte 16 (RFC 791)."""
    assert rules(Guard(IPIP, "default"))[2:] == [
        "ip protocol 4 @th,128,24 0xa0548 ip saddr . @th,96,24 @ipip4_24 accept",
        "ip protocol 4 jump guard4",
        "chain guard4 {",
        'ip saddr != @hosts4 counter name "outer_source" goto strangers4',
        "@th,128,24 0xa0548 goto guard4_source",
        'counter name "inner_destination" goto refused4',
        "chain guard4_source {",
        "@th,96,16 != 0xa05 return",
        'counter name "inner_source" goto refused4',
    ]


def test_peers_looks_at_the_outer_source_only() -> None:
    guard = Guard(VXLAN, "peers")
    assert rules(guard)[3:] == ["chain guard4 {", 'ip saddr != @hosts4 counter name "outer_source" goto strangers4']
    assert elements(guard, lease("10.5.9.0/24", "192.0.2.9")) == ["hosts4 { 192.0.2.9 }"]
    assert [item.name for item in guard_sets(guard, "flannelpy", [V4]) if isinstance(item, NftSet)] == ["hosts4", "strangers4"]


@pytest.mark.parametrize(("side", "family"), [(V4, "ip"), (V6, "ip6")])
@pytest.mark.parametrize(("rule", "kinds"), [("default", ["strangers", "refused"]), ("peers", ["strangers"])])
def test_what_is_dropped_is_counted_by_source_in_sets_of_bounded_size(
    side: Side, family: str, rule: SourceRule, kinds: list[str]
) -> None:
    """The drop is a rule of its own: in a set that is full the rule before it ends where it stands."""
    guard = Guard(VXLAN, rule, (4, 6))
    counting = [part.splitlines()[:-1] for part in guard_chains(guard, [side]) if re.match(r"\tchain (strangers|refused)", part)]
    names = [f"{kind}{side.version}" for kind in kinds]
    assert counting == [[f"\tchain {name} {{", f"\t\tupdate @{name} {{ {family} saddr counter }}", "\t\tdrop"] for name in names]
    sets = {item.name: item for item in guard_sets(guard, "flannelpy", [side]) if isinstance(item, NftSet)}
    assert [name for name, item in sets.items() if item.dynamic] == names
    for name in names:
        assert re.search(r"^size (\d+)$", sets[name].spec, re.MULTILINE)


def test_a_subnet_of_another_length_is_in_a_set_of_its_own_and_one_of_none_in_none() -> None:
    guard = Guard(VXLAN, "default", (4, 6))
    assert elements(guard, lease("10.5.9.64/26", "192.0.2.9"))[1:] == ["vxlan4_26 { 192.0.2.9 . 10.5.9.64 }"]
    odd = Side(V4.network, IPNetwork("10.5.8.0/22"), 22)
    assert elements(guard, lease("10.5.12.0/24", "192.0.2.9"), odd)[1:] == ["vxlan4_24 { 192.0.2.9 . 10.5.12.0 }"]
    assert elements(guard, Lease(IPNetwork("0.0.0.0/0"), LeaseAttrs(NO_ADDRESS))) == []
    both = lease("10.5.9.0/24", "192.0.2.9", "fd05:0:0:9::/64", "2001:db8::9")
    assert elements(guard, both, V4, V6)[2:] == ["hosts6 { 2001:db8::9 }", "vxlan6_64 { 2001:db8::9 . fd05:0:0:9:: }"]


@pytest.mark.parametrize("port", [VXLAN, UDP, IPIP])
@pytest.mark.parametrize(
    ("own", "peer", "words", "mask"),
    [
        ("10.5.8.0/22", "10.5.12.0/22", "10.5.12.0", " & 0xfffffc00"),
        ("10.5.72.0/25", "10.5.9.128/25", "10.5.9.128", " & 0xffffff80"),
        ("10.5.72.64/26", "10.5.9.192/26", "10.5.9.192", " & 0xffffffc0"),
        ("10.5.72.16/28", "10.5.9.240/28", "10.5.9.240", " & 0xfffffff0"),
    ],
)
def test_subnets_of_no_whole_bytes_are_looked_up_in_an_exact_set_as_well(
    port: GuardedPort, own: str, peer: str, words: str, mask: str
) -> None:
    guard, length = Guard(port, "default"), IPNetwork(own).prefixlen
    side = Side(V4.network, IPNetwork(own), length)
    name, source = f"{port.name}4_{length}", f"ip saddr . @th,{8 * (port.inner + 12)},32"
    assert rules(guard, side)[2].endswith(f"{source}{mask} @{name} accept")
    assert elements(guard, lease(peer, "192.0.2.9"), side) == ["hosts4 { 192.0.2.9 }", f"{name} {{ 192.0.2.9 . {words} }}"]
    sets = {item.name: item.spec for item in guard_sets(guard, "flannelpy", [side]) if isinstance(item, NftSet)}
    assert sets[name] == f"typeof {source}"  # no interval, and no mask


@pytest.mark.parametrize("rule", ["default", "strict"])
@pytest.mark.parametrize("others", [(), (26,), (17, 23, 31, 32)])
def test_each_length_that_peers_have_is_asked_for_once(rule: SourceRule, others: tuple[int, ...]) -> None:
    guard, side = Guard(VXLAN, rule), Side(V4.network, V4.own, V4.length, others)
    asked = [line for line in rules(guard, side) if line.endswith(" return") and " @vxlan4_" in line]
    lengths = sorted({*others, *([32] if rule == "strict" else [])}, reverse=True)
    assert [line.partition("@vxlan4_")[2] for line in asked] == [f"{length} return" for length in lengths]
    masks = {17: " & 0xffff8000", 23: " & 0xfffffe00", 26: " & 0xffffffc0", 31: " & 0xfffffffe", 32: ""}
    for line, length in zip(asked, lengths, strict=True):
        assert line == f"ip saddr . @th,336,32{masks[length]} @vxlan4_{length} return"
    sets = {item.name for item in guard_sets(guard, "flannelpy", [side]) if isinstance(item, NftSet)}
    assert {name for name in sets if name.startswith("vxlan4")} == {f"vxlan4_{length}" for length in {24, *lengths}}
    assert not any("interval" in item.spec for item in guard_sets(guard, "flannelpy", [side]) if isinstance(item, NftSet))


def test_an_ipv6_subnet_is_read_in_whole_words() -> None:
    guard, side = Guard(VXLAN, "default", (4, 6)), Side(IPNetwork("fd05::/40"), IPNetwork("fd05:0:0:70::/60"), 60)
    assert rules(guard, side)[2].endswith("ip6 saddr . @th,304,64 & 0xfffffffffffffff0 @vxlan6_60 accept")
    both = lease("10.5.9.0/24", "192.0.2.9", "fd05:0:0:90::/60", "2001:db8::9")
    assert elements(guard, both, side) == ["hosts6 { 2001:db8::9 }", "vxlan6_60 { 2001:db8::9 . fd05:0:0:90:: }"]


@pytest.mark.parametrize("rule", ["default", "strict"])
@pytest.mark.parametrize("port", [VXLAN, UDP, IPIP])
def test_the_last_word_on_what_fits_nothing_is_no(rule: SourceRule, port: GuardedPort) -> None:
    """What is too short to have an address matches no rule: only an unconditional drop at the end meets it."""
    ends = [part.splitlines()[-2].strip() for part in guard_chains(Guard(port, rule), [V4]) if part.startswith("\tchain guard4")]
    assert ends == ['counter name "inner_destination" goto refused4', 'counter name "inner_source" goto refused4']


@pytest.mark.parametrize("rule", ["default", "strict", "peers"])
@pytest.mark.parametrize("port", [VXLAN, UDP])
def test_a_port_is_opened_when_all_of_its_guard_is_there(rule: SourceRule, port: GuardedPort) -> None:
    """Nobody gets in between: not at the first start, and not while all of it goes."""
    guard = Guard(port, rule)
    table = HostState.of(NftTable("flannelpy", "".join(guard_chains(guard, [V4]))))
    host = guard_sets(guard, "flannelpy", [V4]) | table | HostState.of(Fou(port.number))
    whole = host | guard_elements(guard, "flannelpy", [V4], lease("10.5.9.0/24", "192.0.2.9"))
    kinds = [step.key.kind for step in plan(whole, HostState())]
    assert kinds[-1] == "fou"
    assert set(kinds[:-1]) == {"set", "element", "nft"}
    assert plan(HostState(), whole, Scope(table="flannelpy", fou_ports=frozenset({port.number})))[0].key.kind == "fou"


def test_a_peer_that_joins_is_its_elements_and_no_more_before_its_route() -> None:
    guard = Guard(VXLAN, "default")
    host = guard_sets(guard, "flannelpy", [V4])
    steps = plan(host | guard_elements(guard, "flannelpy", [V4], lease("10.5.9.0/24", "192.0.2.9")), host)
    assert text(steps).splitlines() == [
        "element add inet flannelpy hosts4 { 192.0.2.9 }",
        "element add inet flannelpy vxlan4_24 { 192.0.2.9 . 10.5.9.0 }",
    ]


def test_an_address_that_peers_share_stays_until_the_last_of_them_goes() -> None:
    """Any order of comings and goings: what is desired is the union, and nobody is left out for it."""
    random, guard, desired = Random(7), Guard(VXLAN, "default"), Desired()
    pool = [lease(f"10.5.{number}.0/24", f"192.0.2.{number % 3}") for number in range(9)]
    there: dict[str, HostState] = {}
    for _ in range(400):
        one = random.choice(pool)
        if one.key in there:
            del there[one.key]
            desired.drop(one.key)
        else:
            there[one.key] = guard_elements(guard, "flannelpy", [V4], one)
            desired.put(one.key, there[one.key], rank=random.randrange(100))
        assert set(desired.state) == {item for state in there.values() for item in state}
        assert not desired.conflicts
