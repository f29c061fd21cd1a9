"""Does the lease follow its host? Another address, another network, another life of the machine: the same lease where it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core import lease_events as ev
from flannelpy.core.config import NetworkConfig
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.pool import overlap

from .simulated_cluster import MARGIN_S, TTL_S, Store

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
OLD, NEW, OTHER = IPAddress("192.0.2.12"), IPAddress("192.0.2.22"), IPAddress("192.0.2.3")


def attrs(at: IPAddress, mac: str = "aa:aa:aa:aa:aa:aa") -> LeaseAttrs:
    return LeaseAttrs(at, backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": mac})


def live(store: Store, rules: Leasing, event: ev.Event | None = None, most: int = 50) -> list[ev.Ask]:
    """Serve what the rules ask of the store until they hold something and ask no more."""
    asked: list[ev.Ask] = []
    event = event or ev.Started()
    for _ in range(most):
        asks = [action for action in rules.step(store.now, event) if isinstance(action, ev.Ask)]
        if not asks:
            if rules.held is not None:
                return asked
            store.pass_time(1.0)
            event = ev.Woke()
            continue
        (ask,) = asks
        asked.append(ask)
        owner = ask.lease.public_ip if isinstance(ask, ev.Renew | ev.Release) else NEW
        event = store.perform(ask, owner)
    raise AssertionError(f"never at rest: {asked}")


def rules(at: IPAddress, *, config: NetworkConfig = CONFIG, kept: Lease | None = None, mac: str = "aa:aa:aa:aa:aa:aa") -> Leasing:
    return Leasing(config, attrs(at, mac), Random(1), kept=kept, ttl_s=TTL_S, renew_margin_s=MARGIN_S)


@pytest.mark.parametrize("writes", [1, 2, 5])
def test_a_life_that_ended_before_it_could_keep_what_it_had_written_is_known_by_its_mac(writes: int) -> None:
    """Its address was written ``writes`` times since it was kept, and is yet another one now."""
    store = Store()
    kept = now = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OLD), TTL_S)
    for number in range(writes):
        store.perform(ev.Renew(now, attrs(OTHER + number), TTL_S), now.public_ip)
        now = store.leases[kept.key]
    us = rules(NEW, kept=kept)
    asked = live(store, us)
    assert asked == [ev.List(), ev.Renew(now, attrs(NEW), TTL_S)]
    assert us.held is not None
    assert us.held.subnet == kept.subnet


@pytest.mark.parametrize("written", [True, False])
def test_a_life_that_ended_between_promise_and_keeping_is_known_without_a_mac(written: bool) -> None:
    """udp and host-gw publish nothing but an address. What was promised may have been written, or not."""
    store = Store()
    kept = store.put(IPNetwork("10.5.69.0/24"), None, LeaseAttrs(OLD, backend_type="udp"), TTL_S)
    promised = replace(kept, attrs=LeaseAttrs(OTHER, backend_type="udp"))
    if written:
        store.perform(ev.Renew(kept, promised.attrs, TTL_S), OLD)
    new = LeaseAttrs(NEW, backend_type="udp")
    us = Leasing(CONFIG, new, Random(1), kept=kept, promised=promised, ttl_s=TTL_S, renew_margin_s=MARGIN_S)
    live(store, us)
    assert us.held is not None
    assert (us.held.key, us.held.create_revision) == (kept.key, kept.create_revision)
    assert list(store.leases) == [kept.key]


@pytest.mark.parametrize("anew", [True, False])
def test_another_host_in_the_kept_key_is_no_life_of_ours(anew: bool) -> None:
    """By another MAC; or by our MAC in a key that was made anew."""
    store = Store()
    kept = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OLD), TTL_S)
    if anew:
        store.perform(ev.Release(kept), OLD)
        theirs = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OTHER), TTL_S)
    else:
        store.perform(ev.Renew(kept, attrs(OTHER, "bb:bb:bb:bb:bb:bb"), TTL_S), OLD)
        theirs = store.leases[kept.key]
    us = rules(NEW, kept=kept)
    live(store, us)
    assert us.held is not None
    assert us.held.key != kept.key
    assert store.leases[kept.key] == theirs


def test_a_host_that_comes_back_with_another_address_takes_its_own_lease_over() -> None:
    store = Store()
    before = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OLD), TTL_S)
    us = rules(NEW, kept=before)
    asked = live(store, us)
    assert asked == [ev.List(), ev.Renew(before, attrs(NEW), TTL_S)]
    assert us.held is not None
    assert us.held.subnet == before.subnet
    assert list(store.leases) == [before.key]
    assert store.leases[before.key].public_ip == NEW


def test_what_somebody_has_written_since_is_not_taken_over() -> None:
    """Another host had the subnet meanwhile; or a clone of us has, with a MAC of its own."""
    store = Store()
    before = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OLD), TTL_S)
    theirs = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OTHER, "bb:bb:bb:bb:bb:bb"), TTL_S)
    us = rules(NEW, kept=before)
    live(store, us)
    assert us.held is not None
    assert us.held.subnet != before.subnet
    assert store.leases[theirs.key].public_ip == OTHER


def test_a_kept_lease_that_no_longer_fits_is_given_back() -> None:
    store = Store()
    before = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OLD), TTL_S)
    us = rules(NEW, config=NetworkConfig.parse('{"Network": "10.9.0.0/16"}'), kept=before)
    live(store, us)
    assert us.held is not None
    assert us.held.subnet in IPNetwork("10.9.0.0/16")
    assert list(store.leases) == [us.held.key]


def test_a_kept_reservation_stays_one() -> None:
    store = Store()
    before = store.put(IPNetwork("10.5.69.0/24"), None, attrs(OLD), 0)
    us = rules(NEW, kept=before)
    live(store, us)
    assert store.leases[before.key].reserved
    assert store.leases[before.key].public_ip == NEW


@pytest.mark.parametrize(
    "text",
    [
        '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 5}}',
        '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}',
        '{"Network": "10.0.0.0/8", "SubnetLen": 24}',
    ],
)
def test_a_config_in_which_the_lease_fits_asks_for_nothing(text: str) -> None:
    """A thousand hosts hear of it in one moment: none of them lists, none writes."""
    store = Store()
    us = rules(NEW)
    live(store, us)
    assert live(store, us, ev.ConfigChanged(NetworkConfig.parse(text))) == []


def test_the_hosts_own_networks_are_not_leased() -> None:
    store = Store()
    us = Leasing(NetworkConfig.parse('{"Network": "192.168.0.0/22", "SubnetLen": 24}'), attrs(NEW), Random(1))
    us.avoid = (IPNetwork("192.168.1.0/24"), IPNetwork("192.168.3.0/25"))
    live(store, us)
    assert us.held is not None
    assert us.held.subnet == IPNetwork("192.168.2.0/24")


@pytest.mark.parametrize(
    ("own", "leased", "said"),
    [
        (["192.168.0.0/22"], [], "this host itself needs 192.168.0.0/22; 0 of 3 in 192.168.0.0/22 leased"),
        (
            ["172.16.0.0/12", "192.168.1.7/32", "192.168.2.0/25"],
            ["192.168.3.0/24"],
            "this host itself needs 192.168.1.7/32, 192.168.2.0/25; 1 of 3 in 192.168.0.0/22 leased",
        ),
        (
            [f"192.168.{third}.{low}/26" for third in (1, 2, 3) for low in (0, 64)],
            [],
            "this host itself needs 192.168.1.0/26, 192.168.1.64/26, 192.168.2.0/26 and 3 more; 0 of 3 in 192.168.0.0/22 leased",
        ),
        (["192.168.1.0/24"], [f"192.168.{third}.0/24" for third in (1, 2, 3)], "3 of 3 in 192.168.0.0/22 leased"),
        (["172.16.0.0/12"], ["192.168.1.0/24", "192.168.2.0/25", "192.168.3.128/25"], "3 of 3 in 192.168.0.0/22 leased"),
    ],
)
def test_what_the_host_needs_itself_is_not_told_as_leased(own: list[str], leased: list[str], said: str) -> None:
    """Who is told that all is leased looks for leases to release, and there may be none."""
    us = Leasing(NetworkConfig.parse('{"Network": "192.168.0.0/22", "SubnetLen": 24}'), attrs(NEW), Random(1))
    us.avoid = tuple(map(IPNetwork, own))
    us.step(0.0, ev.Started())
    told = us.step(0.1, ev.Listed(tuple(Lease(IPNetwork(each), attrs(OTHER), None, 7, 1, 1) for each in leased), 9))
    assert [action for action in told if isinstance(action, ev.Tell)] == [ev.Tell("no-free-subnet", f"no free subnet: {said}")]


NETWORKS = st.builds(lambda third, length: IPNetwork(f"10.5.{third}.0/{length}").cidr, st.integers(0, 255), st.integers(18, 30))


@given(st.lists(NETWORKS, max_size=6), st.integers(0, 1000))
def test_whatever_networks_a_host_has_its_subnet_is_none_of_them(own: list[IPNetwork], seed: int) -> None:
    store = Store()
    us = Leasing(CONFIG, attrs(NEW), Random(seed))
    us.avoid = tuple(own)
    live(store, us)
    assert us.held is not None
    assert not any(overlap(us.held.subnet, net) for net in own)


def v6_attrs(at: IPAddress) -> LeaseAttrs:
    return LeaseAttrs(NO_ADDRESS, IPAddress(f"fd00::{at.words[-1]}"), "vxlan", None, {"VNI": 1, "VtepMAC": "aa:aa:aa:aa:aa:aa"})


def dual_attrs(at: IPAddress) -> LeaseAttrs:
    return replace(attrs(at), public_ipv6=IPAddress(f"fd00::{at.words[-1]}"))


def host_gw_attrs(at: IPAddress) -> LeaseAttrs:
    return LeaseAttrs(at, None, "host-gw")


V6_ONLY = NetworkConfig.parse('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd05::/48", "Backend": {"Type": "vxlan"}}')
DUAL = NetworkConfig.parse('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48"}')


@pytest.mark.parametrize(
    ("config", "make"),
    [(CONFIG, attrs), (V6_ONLY, v6_attrs), (DUAL, dual_attrs), (CONFIG, host_gw_attrs)],
    ids=["4", "6", "46", "host-gw"],
)
@given(st.data())
def test_an_address_that_changes_while_answers_are_lost_costs_no_subnet(
    config: NetworkConfig, make: Callable[[IPAddress], LeaseAttrs], data: st.DataObject
) -> None:
    """Any number of addresses, also ones that come back. Each write is carried out or not, and heard of or not; the watch tells now
    or later, a listing comes or not. In the end all is at rest with the last address in the lease that there was.
    """
    store = Store()
    us = Leasing(config, make(OLD), Random(1), ttl_s=TTL_S, renew_margin_s=MARGIN_S)
    live(store, us)
    assert us.held is not None
    key, lost = us.held.key, list[ev.Lost]()

    def tell(event: ev.Event) -> None:
        nonlocal ask
        for action in us.step(store.now, event):
            if isinstance(action, ev.Ask):
                ask = action
            elif isinstance(action, ev.Lost):
                lost.append(action)

    ask: ev.Ask | None = None
    at = OLD
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.sampled_from([OLD, NEW, OTHER, OTHER + 1]))
        before, ask = ask, None
        if isinstance(before, ev.Renew) and data.draw(st.booleans()):
            store.perform(before, store.leases[key].public_ip)  # carried out, not heard of
        tell(ev.AttrsChanged(make(at)))
        if data.draw(st.booleans()):
            tell(ev.OwnPut(store.leases[key]))
        if before is not None:
            tell(ev.RenewFailed("no answer in time") if isinstance(before, ev.Renew) else ev.ListFailed("no answer in time"))
        if data.draw(st.booleans()):
            tell(ev.Overheard(tuple(store.leases.values()), store.revision))
        if data.draw(st.booleans()):
            store.pass_time(data.draw(st.floats(0.1, 20.0)))
            tell(ev.Woke())
    for _ in range(200):
        if isinstance(ask, ev.Renew):
            answer, ask = store.perform(ask, store.leases[key].public_ip), None
            tell(answer)
        elif ask is not None:
            answer, ask = store.perform(ask, at), None
            tell(answer)
        elif us.held is not None and us.held.attrs == make(at) == store.leases[key].attrs:
            break
        else:
            store.pass_time(1.0)
            tell(ev.Woke())
    assert lost == []
    assert list(store.leases) == [key]
    assert us.held is not None
    assert us.held.attrs == make(at)
