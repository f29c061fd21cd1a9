"""By what is a peer reached, where hosts may use another carrier than the network's Type? The rules, and what anybody may write."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError, MalformedError
from flannelpy.core.membership import Membership
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import Key
from flannelpy.core.offer import MOST, Offer
from flannelpy.core.secret import Secret
from flannelpy.core.select import Facts, Needs, Preferring, select
from flannelpy.core.wireguard import KeyPair, key_text
from flannelpy.plugins import Published

TEXT = '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Prefer": ["host-gw", "wireguard"], "PSK": ""}}'
KEYS = KeyPair(Secret(bytes(32)), key_text(b"\1" * 32))
UPLINK = Uplink("eth1", 3, 1500, IPAddress("192.0.2.1"), public_ip=IPAddress("192.0.2.1"))
OWN = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1")), create_revision=1)
NEAR = {IPAddress("192.0.2.2"): "eth1"}
MAC = "ba:bb:bb:bb:bb:bb"
VXLAN = ["10.5.9.0 lladdr", f"{MAC} dst 192.0.2.2", "10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"]

NEEDS = {"host-gw": Needs(link=True), "wireguard": Needs(answer=True)}
FINE = Facts("", link=True, answered=True, mtu=1420)


def key(byte: int) -> str:
    return key_text(bytes([byte]) * 32)


def offer(at: str = "192.0.2.2", byte: int = 2, names: tuple[str, ...] = ("host-gw", "wireguard")) -> Offer:
    data = {"host-gw": (None, None), "wireguard": ({"PublicKey": key(byte), "Port": 51820}, None)}
    return Offer(IPAddress(at), None, {name: data[name] for name in names})


def peer(number: int = 9, at: str = "192.0.2.2", born: int = 5, said: Offer | None = None) -> Lease:
    attrs = LeaseAttrs(IPAddress(at), backend_type="vxlan", backend_data={"VtepMAC": MAC})
    return Lease(IPNetwork(f"10.5.{number}.0/24"), attrs, etcd_lease=1, create_revision=born, mod_revision=born, offer=said)


def situation(**more: object) -> tuple[Preferring, Local]:
    config, backend = plugins.parse(TEXT)
    carriers = plugins.preferred(config, backend)
    local = Local(config, UPLINK, OWN, {"flannel.1": "aa:aa:aa:aa:aa:aa"}, NEAR, keys=KEYS)
    return Preferring(backend, carriers, tuple(carriers), {}, frozenset(carriers)), replace(local, **more)  # type: ignore[arg-type]


def lines(items: object) -> list[str]:
    return [str(item) for item in items]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("theirs", "facts", "chosen", "reason"),
    [
        (None, {}, "vxlan", "the peer offers nothing else"),
        ((), {}, "vxlan", "host-gw: not offered by the peer; wireguard: not offered by the peer"),
        (("host-gw",), {"host-gw": FINE}, "host-gw", "both offer it"),
        (("wireguard",), {"wireguard": FINE}, "wireguard", "host-gw: not offered by the peer; both offer it"),
        (
            ("host-gw", "wireguard"),
            {"host-gw": replace(FINE, link=False), "wireguard": replace(FINE, answered=False)},
            "vxlan",
            "host-gw: not on one link; wireguard: no answer by it yet",
        ),
        (
            ("host-gw",),
            {"host-gw": replace(FINE, mtu=60)},
            "vxlan",
            "host-gw: takes 60 bytes, expected 68 or more; wireguard: not ",
        ),
        (("host-gw",), {"host-gw": Facts("it is odd")}, "vxlan", "host-gw: it is odd; wireguard: not offered by the peer"),
    ],
)
def test_the_first_that_both_offer_and_the_facts_allow(
    theirs: tuple[str, ...] | None, facts: dict[str, Facts], chosen: str, reason: str
) -> None:
    found = select("vxlan", ("host-gw", "wireguard"), NEEDS, theirs, facts, {})
    assert found[0] == chosen
    assert found[1].startswith(reason)


NAMES = st.sampled_from(["host-gw", "wireguard", "ipip", "x"])
FACTS = st.builds(
    Facts, st.sampled_from(["", "odd"]), st.booleans(), st.booleans(), st.integers(0, 1500), st.sampled_from([68, 1280])
)


@given(
    st.lists(NAMES, unique=True),
    st.dictionaries(NAMES, st.builds(Needs, st.booleans(), st.booleans())),
    st.none() | st.sets(NAMES),
    st.dictionaries(NAMES, FACTS),
)
def test_whatever_is_chosen_is_preferred_offered_and_possible_and_nothing_before_it_was(
    prefer: list[str], ours: dict[str, Needs], theirs: set[str] | None, facts: dict[str, Facts]
) -> None:
    def possible(name: str) -> bool:
        if name not in ours or theirs is None or name not in theirs:
            return False
        fact, needs = facts.get(name, Facts()), ours[name]
        wanting = (needs.link and not fact.link) or (needs.answer and not fact.answered)
        return not fact.obstacle and not wanting and fact.mtu >= fact.least

    chosen, reason = select("the Type", prefer, ours, theirs, facts, {})
    assert chosen == next((name for name in prefer if possible(name)), "the Type")
    assert reason
    passed = prefer[: prefer.index(chosen)] if chosen in prefer else prefer
    assert theirs is None or all(f"{name}: " in reason for name in passed)


# -------------------------------------------------------------------------------------------------------------- the paths


def test_all_is_set_up_and_the_routes_are_those_of_one() -> None:
    carrier, local = situation()
    host = lines(carrier.host(local))
    assert any("type vxlan" in line for line in host)
    assert any("type wireguard" in line for line in host)
    assert not any(line.startswith("10.5.0.0/16") for line in host)  # wireguard's route for all would be everybody's
    path = carrier.path(peer(said=offer()), local)
    assert (path.carrier, path.mtu) == ("host-gw", 1500)
    assert lines(path.routes) == ["10.5.9.0/24 via 192.0.2.2 dev eth1"]
    assert [item.noun for item in path.setup] == ["neigh", "fdb", "wgpeer"]
    assert "persistent-keepalive 25" in lines(path.setup)[2]


def test_a_peer_that_is_not_on_the_link_is_sent_to_by_wireguard_once_it_has_answered() -> None:
    carrier, local = situation(on_link={})
    waiting = carrier.path(peer(said=offer()), local)
    assert (waiting.carrier, lines(waiting.routes)) == ("vxlan", [VXLAN[2]])
    answered = replace(local, answered=frozenset({Key("wgpeer", f"{key(2)} dev flannel-wg")}))
    path = carrier.path(peer(said=offer()), answered)
    assert (path.carrier, path.mtu, lines(path.routes)) == ("wireguard", 1420, ["10.5.9.0/24 dev flannel-wg"])
    assert path.setup == waiting.setup


@pytest.mark.parametrize("dev", ["eth0", "br0"])
def test_a_link_that_is_not_the_uplink_is_none(dev: str) -> None:
    carrier, local = situation(on_link={IPAddress("192.0.2.2"): dev})
    assert carrier.path(peer(said=offer(names=("host-gw",))), local).carrier == "vxlan"


@pytest.mark.parametrize(
    "said",
    [
        None,
        offer(names=()),
        Offer(IPAddress("192.0.2.2"), None, {"vxlan": (None, None), "x": (1, 2)}),
        Offer(IPAddress("192.0.2.2"), None, {"wireguard": ({"PublicKey": "x"}, None)}),
        Offer(IPAddress("192.0.2.2"), None, {"wireguard": ({"PublicKey": KEYS.public}, None)}),  # our own
        Offer(IPAddress("192.0.2.2"), None, {"wireguard": (["x"], {"PublicKey": 5})}),
    ],
)
def test_whatever_else_is_offered_the_peer_is_reached_by_the_type(said: Offer | None) -> None:
    carrier, local = situation()
    path = carrier.path(peer(said=said), local)
    assert (path.carrier, path.state) == ("vxlan", carrier.base.path(peer(), local).state)
    assert path.reason


def test_what_a_host_offers_no_longer_stays_set_up_and_is_not_sent_by() -> None:
    carrier, local = situation()
    retired = replace(carrier, offered=frozenset({"wireguard"}), withheld={"host-gw": "switched off"})
    path = retired.path(peer(said=offer()), local)
    assert (path.carrier, path.setup) == ("vxlan", carrier.path(peer(said=offer()), local).setup)
    assert path.reason.startswith("host-gw: switched off; wireguard: no answer")


@given(st.sets(st.sampled_from(["host-gw", "wireguard"])), st.sets(st.sampled_from(["host-gw", "wireguard"])), st.booleans())
def test_what_a_peer_offers_no_longer_is_set_up_and_not_sent_by(names: set[str], going: set[str], answered: bool) -> None:
    """It may be about to send by it still: nothing of what lets it in changes before it says nothing of that any more."""
    carrier, local = situation(answered=frozenset({Key("wgpeer", f"{key(2)} dev flannel-wg")} if answered else ()))
    whole = carrier.path(peer(said=offer(names=tuple(sorted(names | going)))), local)
    said = replace(offer(names=tuple(sorted(names | going))), retiring=frozenset(going))
    path = carrier.path(peer(said=said), local)
    assert path.setup == whole.setup
    assert path.carrier not in going
    assert path.carrier == carrier.path(peer(said=offer(names=tuple(sorted(names - going)))), local).carrier


# ------------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("backend", "line"),
    [
        ('"Type": "vxlan", "Prefer": ["vxlan"]', 'Backend.Prefer ["vxlan"]: expected a list of host-gw and wireguard'),
        ('"Type": "vxlan", "Prefer": "host-gw"', 'Backend.Prefer "host-gw": expected a list of host-gw and wireguard'),
        ('"Type": "vxlan", "prefer": [5]', "Backend.Prefer [5]: expected a list of host-gw and wireguard"),
        ('"Type": "alloc", "Prefer": ["host-gw"]', "none with the Type alloc, which has a way of its own"),
        ('"Type": "vxlan", "Prefer": ["wireguard"], "ListenPort": -1', "Backend.ListenPort -1: expected a whole number"),
    ],
)
def test_a_preference_that_cannot_be_is_one_clear_line(backend: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.parse(f'{{"Network": "10.5.0.0/16", "Backend": {{{backend}}}}}')
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("prefer", "found"),
    [("null", []), ("[]", []), ('["wireguard", "host-gw"]', ["wireguard", "host-gw"]), ('["host-gw", "host-gw"]', ["host-gw"])],
)
def test_the_order_is_the_configs(prefer: str, found: list[str]) -> None:
    config, backend = plugins.parse(f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "vxlan", "Prefer": {prefer}}}}}')
    assert list(plugins.preferred(config, backend)) == found
    same = NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw", "Prefer": ["host-gw"]}}')
    assert plugins.preferred(same, plugins.load(same)) == {}


# ------------------------------------------------------------------------------------------------- what anybody may write


def test_an_offer_is_read_as_it_was_written() -> None:
    said = offer()
    assert json.loads(said.to_json()) == {
        "PublicIP": "192.0.2.2",
        "Carriers": {"host-gw": {}, "wireguard": {"BackendData": {"PublicKey": key(2), "Port": 51820}}},
    }
    going = replace(said, retiring=frozenset({"wireguard"}))
    assert json.loads(going.to_json()) == {
        "PublicIP": "192.0.2.2",
        "Carriers": {"host-gw": {}},
        "Retiring": {"wireguard": {"BackendData": {"PublicKey": key(2), "Port": 51820}}},
    }
    both = replace(said, public_ipv6=IPAddress("2001:db8::2"))
    for each in (said, both, going, replace(both, retiring=frozenset(both.data))):
        assert Offer.from_json(each.to_json().encode()) == each


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b"{", "not JSON: line 1"),
        (b"[]", "[]: expected a JSON object"),
        (b"{}", "PublicIP null: expected an IPv4 address"),
        (b'{"PublicIP": "x"}', 'PublicIP "x": expected an IPv4 address'),
        (b'{"PublicIP": "192.0.2.2"}', "Carriers null: expected an object of at most 16, by Type"),
        (b'{"PublicIP": "192.0.2.2", "Carriers": {}, "Retiring": [5]}', "Retiring [5]: expected an object of at most 16, by Type"),
        (b'{"PublicIP": "192.0.2.2", "Carriers": {}, "Retiring": {"x": 5}}', "Retiring.x 5: expected an object"),
        (b'{"PublicIP": "192.0.2.2", "Carriers": {"\x1b": 5}}', "not JSON"),
        (b'{"PublicIP": "192.0.2.2", "Carriers": {"\\u001b[2J": 5}}', "Carriers.\\x1b[2J 5: expected an object"),
        (b'{"PublicIP": "192.0.2.2", "PublicIPv6": 5, "Carriers": {}}', "PublicIPv6 5: expected an IPv6 address"),
        (b" " * (MOST + 1), f"{MOST + 1:,} bytes: expected at most {MOST:,}"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_what_is_no_offer_is_one_short_line(value: bytes, line: str) -> None:
    with pytest.raises(MalformedError) as caught:
        Offer.from_json(value)
    assert line in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@given(
    st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_an_offer_or_malformed(value: bytes) -> None:
    try:
        read = Offer.from_json(value)
    except MalformedError:
        return
    assert Offer.from_json(read.to_json()) == read


# ------------------------------------------------------------------------------------------------------ which offers count


def membership() -> Membership:
    config, backend = plugins.parse(TEXT)
    found = Membership(config, backend.accepts, OWN)
    found.prefer({name: Published(carrier) for name, carrier in plugins.preferred(config, backend).items()})
    return found


def offers(found: Membership) -> dict[str, Offer | None]:
    return {name: lease.offer for name, lease in found.peers.items()}


def test_an_offer_counts_for_the_host_whose_lease_it_stands_beside() -> None:
    found = membership()
    assert not found.offer("10.5.9.0-24", offer()).peers  # nobody's yet
    assert found.put(peer()).peers["10.5.9.0-24"] == peer(said=offer())
    assert found.put(replace(peer(at="192.0.2.7"), mod_revision=7)).peers["10.5.9.0-24"].offer is None  # type: ignore[union-attr]
    assert found.offer("10.5.9.0-24", offer("192.0.2.7")).peers["10.5.9.0-24"].offer == offer("192.0.2.7")  # type: ignore[union-attr]
    assert not found.offer("10.5.9.0-24", offer("192.0.2.7")).peers  # the same once more
    assert found.offer("10.5.9.0-24", None).peers["10.5.9.0-24"].offer is None  # type: ignore[union-attr]


def test_a_public_key_is_the_older_leases_and_the_younger_is_a_peer_all_the_same() -> None:
    found = membership()
    young, old = peer(9, "192.0.2.2", born=9), peer(8, "192.0.2.3", born=5)
    for lease in (young, replace(old, attrs=replace(old.attrs, backend_data={"VtepMAC": "cc:cc:cc:cc:cc:cc"}))):
        found.put(lease)
    found.offer("10.5.9.0-24", offer("192.0.2.2"))
    assert offers(found)["10.5.9.0-24"] == offer("192.0.2.2")
    found.offer("10.5.8.0-24", offer("192.0.2.3"))
    assert offers(found) == {"10.5.9.0-24": None, "10.5.8.0-24": offer("192.0.2.3")}
    found.remove("10.5.8.0-24")
    assert offers(found) == {"10.5.9.0-24": offer("192.0.2.2")}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
        st.tuples(st.just("gone"), st.integers(1, 3), st.just(0), st.just(0)),
        st.tuples(st.just("offer"), st.integers(1, 3), st.integers(1, 2), st.integers(2, 4)),
        st.tuples(st.just("withdrawn"), st.integers(1, 3), st.just(0), st.just(0)),
        st.tuples(st.just("listed"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@given(STEPS)
def test_any_sequence_of_offers_and_withdrawals_ends_as_a_fresh_start(steps: list[tuple[str, int, int, int]]) -> None:
    found, told = membership(), dict[str, Lease | None]()
    leases, said = dict[str, Lease](), dict[str, Offer]()
    for turn, (what, number, at, more) in enumerate(steps):
        name = f"10.5.{number}.0-24"
        if what == "lease":
            attrs = LeaseAttrs(
                IPAddress(f"192.0.2.{at + 1}"), backend_type="vxlan", backend_data={"VtepMAC": f"ba:bb:bb:bb:bb:b{number}"}
            )
            born = leases[name].create_revision if name in leases and more > 1 else 10 + turn
            leases[name] = Lease(IPNetwork(f"10.5.{number}.0/24"), attrs, None, 1, born, 100 + turn)
            changes = found.put(leases[name])
        elif what == "gone":
            leases.pop(name, None)
            changes = found.remove(name)
        elif what == "offer":
            said[name] = offer(f"192.0.2.{at + 1}", more)
            changes = found.offer(name, said[name])
        elif what == "withdrawn":
            said.pop(name, None)
            changes = found.offer(name, None)
        else:
            changes = found.replace(leases.values())
        told |= changes.peers
    fresh = membership()
    for name, each in said.items():
        fresh.offer(name, each)
    fresh.replace(leases.values())
    assert offers(found) == offers(fresh)
    assert {name: lease.offer for name, lease in told.items() if lease is not None} == offers(found)
    held = [each.data["wireguard"][0]["PublicKey"] for each in offers(found).values() if each is not None]
    assert len(held) == len(set(held))
