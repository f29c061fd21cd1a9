"""Where the host's own firewall forwards nothing: which rules of ours let the overlay through, and what is said where none can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.core.forwarding import Hindrance, forward_rules
from flannelpy.core.objects import HostState
from flannelpy.core.plan import plan, text

V4, V6 = IPNetwork("10.5.0.0/16"), IPNetwork("fd05::/48")
BOTH = (V4, V6)
POLICY = "policy drop"


def ruled(*hindrances: Hindrance, networks: tuple[IPNetwork, ...] = BOTH, owner: str = "flannelpy") -> list[str]:
    return [str(rule) for rule in forward_rules(hindrances, networks, owner)[0]]


def test_where_nothing_is_in_the_way_there_is_nothing_to_do() -> None:
    assert forward_rules([], BOTH, "flannelpy") == (HostState(), {})
    assert forward_rules([Hindrance(4, "ip filter", "FORWARD", "", "nft")], BOTH, "flannelpy") == (HostState(), {})


def test_iptables_forward_gets_both_directions() -> None:
    assert ruled(Hindrance(4, "ip filter", "FORWARD", POLICY, "nft")) == [
        "iptables FORWARD -s 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT",
        "iptables FORWARD -d 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT",
    ]


def test_each_family_and_each_iptables_has_its_own() -> None:
    found = ruled(
        Hindrance(6, "ip6 filter", "FORWARD", POLICY, "nft"),
        Hindrance(4, "ip filter", "FORWARD", POLICY, "legacy"),
        owner="flannelpy-blue",
    )
    assert found == [
        "ip6tables FORWARD -s fd05::/48 -m comment --comment flannelpy-blue -j ACCEPT",
        "ip6tables FORWARD -d fd05::/48 -m comment --comment flannelpy-blue -j ACCEPT",
        "iptables-legacy FORWARD -s 10.5.0.0/16 -m comment --comment flannelpy-blue -j ACCEPT",
        "iptables-legacy FORWARD -d 10.5.0.0/16 -m comment --comment flannelpy-blue -j ACCEPT",
    ]


def test_dockers_own_chain_only_accepts_what_stays_inside_the_overlay() -> None:
    """Docker drops what comes in for a port that is not published: that must not be opened to the host's neighbours."""
    found = ruled(Hindrance(4, "ip filter", "FORWARD", "", "nft", docker=True), networks=(V4,))
    assert found == ["iptables DOCKER-USER -s 10.5.0.0/16 -d 10.5.0.0/16 ! -i docker0 -m comment --comment flannelpy -j ACCEPT"]
    assert len(ruled(Hindrance(4, "ip filter", "FORWARD", POLICY, "nft", docker=True), networks=(V4,))) == 3


def test_another_table_cannot_be_overruled_and_is_named_with_what_would_mend_it() -> None:
    rules, words = forward_rules([Hindrance(0, "inet filter", "forward", POLICY)], [V4], "flannelpy")
    assert len(rules) == 0
    assert words.pop("inet filter forward") == (
        "chain forward of nft table inet filter (policy drop) has no rule for 10.5.0.0/16: "
        "nft insert rule inet filter forward ip saddr 10.5.0.0/16 accept && "
        "nft insert rule inet filter forward ip daddr 10.5.0.0/16 accept"
    )
    both = forward_rules([Hindrance(0, "inet firewalld", "filter_FORWARD", "it ends in a reject")], BOTH, "flannelpy")[1]
    (said,) = both.values()
    assert said.partition(": ")[2] == (
        f"firewall-cmd --permanent --zone=trusted --add-source={V4} --add-source={V6} && firewall-cmd --reload"
    )


def test_of_each_chain_it_is_told_what_would_mend_it_for_all_networks() -> None:
    """One command each, to be run as it stands."""
    chains = [Hindrance(0, "inet a", "c", POLICY), Hindrance(6, "ip6 b", "c", POLICY)]
    words = forward_rules(chains, BOTH, "flannelpy")[1]
    assert list(words) == ["inet a c", "ip6 b c"]
    first, second = (text.partition(": ")[2] for text in words.values())
    assert first.split(" && ") == [
        f"nft insert rule inet a c {family} {side} {net} accept"
        for family, net in (("ip", V4), ("ip6", V6))
        for side in ("saddr", "daddr")
    ]
    assert second.split(" && ") == [f"nft insert rule ip6 b c ip6 {side} {V6} accept" for side in ("saddr", "daddr")]


@pytest.mark.parametrize(
    ("networks", "devices", "said"),
    [
        ((), (), True),
        (("10.5.0.0/16",), (), False),
        (("10.0.0.0/8",), (), False),
        (("10.5.72.0/24",), (), True),
        (("fd05::/48",), (), True),
        ((), ("eth0",), True),
        ((), ("eth0", "docker0"), False),
        ((), ("cni0",), False),
        ((), ("flannel.1",), False),
    ],
)
def test_who_has_made_rules_for_us_is_left_alone(networks: tuple[str, ...], devices: tuple[str, ...], said: bool) -> None:
    one = Hindrance(0, "inet filter", "forward", POLICY, networks=frozenset(map(IPNetwork, networks)), devices=frozenset(devices))
    assert bool(forward_rules([one], [V4], "flannelpy")[1]) is said


def test_rules_come_with_the_firewall_and_leave_last() -> None:
    state = forward_rules([Hindrance(4, "ip filter", "FORWARD", POLICY, "nft")], [V4], "flannelpy")[0]
    assert text(plan(state, HostState())).splitlines()[0] == (
        "forward add iptables FORWARD -s 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT"
    )
    assert [step.op for step in plan(HostState(), state)] == ["remove", "remove"]
    assert plan(state, state) == ()


HINDRANCES = st.builds(
    Hindrance,
    st.sampled_from([0, 4, 6]),
    st.sampled_from(["ip filter", "inet x"]),
    st.just("FORWARD"),
    st.sampled_from(["", POLICY]),
    st.sampled_from([None, "nft", "legacy"]),
    st.booleans(),
)


@given(st.lists(HINDRANCES), st.sets(st.sampled_from([V4, V6, IPNetwork("10.6.0.0/24")])))
def test_whatever_is_in_the_way_rules_are_ours_and_of_one_family(found: list[Hindrance], networks: set[IPNetwork]) -> None:
    rules, words = forward_rules(found, networks, "flannelpy")
    for rule in rules:
        assert rule.noun == "forward"
        assert {net.version for net in (rule.source, rule.destination) if net} == {rule.version}
        assert {net for net in (rule.source, rule.destination) if net} <= networks
    assert bool(words) == any(one.tool is None and one.why and one.concerns(net) for one in found for net in networks)
