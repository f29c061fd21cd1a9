"""Does one host acquire, keep and lose its lease by the rules? Each rule by itself; flannel-compat 4.6, 5, 13 and 14."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core import lease_events as ev
from flannelpy.core.claims import overlapping
from flannelpy.core.conditions import CONDITIONS
from flannelpy.core.config import NetworkConfig
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key

from .simulated_cluster import MARGIN_S, TTL_S, Host, Store, settle

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
DUAL = NetworkConfig.parse('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}')
V6_ONLY = NetworkConfig.parse('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}')
US, OTHER = IPAddress("192.0.2.1"), IPAddress("192.0.2.2")
OURS = LeaseAttrs(US, backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": "aa:aa:aa:aa:aa:aa"})
THEIRS = LeaseAttrs(OTHER, backend_type="host-gw")


def net(text: str) -> IPNetwork:
    return IPNetwork(text)


def host(store: Store, *previous: str, config: NetworkConfig = CONFIG, attrs: LeaseAttrs = OURS, seed: int = 1) -> Host:
    return Host(store, config, attrs, seed, [IPNetwork(text) for text in previous])


def serve_all(us: Host) -> list[ev.Ask]:
    """Serve what is asked, and what is asked then, until nothing is under way; returns what was asked."""
    asked = []
    while us.ask:
        asked.append(us.ask)
        us.serve()
        if us.ask is None and us.rules.held is None and us.alarm is not None and not us.conditions.get("no-free-subnet"):
            us.store.pass_time(us.alarm - us.store.now)
            us.wake()
    return asked


def kinds(asked: list[ev.Ask]) -> list[type[ev.Ask]]:
    return [type(ask) for ask in asked]


def holding(store: Store, *previous: str, config: NetworkConfig = CONFIG) -> Host:
    us = host(store, *previous, config=config)
    serve_all(us)
    assert us.rules.held is not None
    us.watch.clear()
    us.history.clear()
    return us


def held(us: Host) -> Lease:
    assert us.rules.held is not None
    return us.rules.held


def sleep_until_due(us: Host) -> None:
    """Time passes up to the alarm."""
    assert us.alarm is not None
    us.store.pass_time(max(0.0, us.alarm - us.store.now))
    us.wake()


# ----------------------------------------------------------------------------------------------------- acquiring


def test_conformance_acquire_inside_the_range() -> None:
    store = Store()
    us = host(store)
    assert kinds(serve_all(us)) == [ev.List, ev.Create]
    assert CONFIG.v4 is not None
    assert CONFIG.v4.fits(held(us).subnet)
    assert held(us) == store.leases[held(us).key]
    assert store.times[held(us).etcd_lease][1] == TTL_S


def test_conformance_a_second_acquire_reuses_the_lease_and_writes_the_new_value() -> None:
    store = Store()
    before = store.put(net("10.5.72.0/24"), None, LeaseAttrs(US, backend_type="udp"), TTL_S)
    us = host(store)
    assert serve_all(us) == [ev.List(), ev.Renew(before, OURS, TTL_S)]
    assert (held(us).subnet, held(us).attrs, held(us).create_revision) == (before.subnet, OURS, before.create_revision)


def test_the_first_lease_in_key_order_is_ours() -> None:
    store = Store()
    store.put(net("10.5.9.0/24"), None, LeaseAttrs(US), TTL_S)
    store.put(net("10.5.10.0/24"), None, LeaseAttrs(US), TTL_S)
    us = host(store)
    serve_all(us)
    assert str(held(us).subnet) == "10.5.10.0/24"  # as text


def test_a_lease_that_changes_between_listing_and_renewal_is_looked_at_again() -> None:
    store = Store()
    store.put(net("10.5.72.0/24"), None, LeaseAttrs(US), TTL_S)
    us = host(store)
    us.serve()
    store.put(net("10.5.72.0/24"), None, THEIRS, TTL_S)
    assert kinds(serve_all(us)) == [ev.Renew, ev.List, ev.Create]
    assert store.leases["10.5.72.0-24"].public_ip == OTHER


def test_conformance_config_change_gives_a_new_range_and_the_old_lease_is_released() -> None:
    store = Store()
    old = store.put(net("10.9.3.0/24"), None, OURS, TTL_S)
    us = host(store)
    asked = serve_all(us)
    assert asked[:2] == [ev.List(), ev.Release(old)]
    assert list(store.leases) == [held(us).key]


def test_a_released_subnet_is_not_picked_again() -> None:
    store = Store()
    old = store.put(net("10.5.1.0/24"), None, OURS, TTL_S)  # IPv4 only, and the network is dual-stack now
    us = host(store, "10.5.1.0/24", config=DUAL)
    serve_all(us)
    assert old.key not in store.leases
    assert held(us).subnet != old.subnet


def test_conformance_the_previous_subnet_is_asked_for_again() -> None:
    us = holding(Store(), "10.5.72.1/24")  # as subnet.env has it: the gateway's address
    assert str(held(us).subnet) == "10.5.72.0/24"


def test_conformance_a_previous_subnet_outside_the_network_is_not() -> None:
    us = holding(Store(), "10.6.72.0/24", "10.5.72.0/25", "10.5.0.0/24")
    assert str(held(us).subnet) not in ("10.6.72.0/24", "10.5.72.0/25", "10.5.0.0/24")


def test_the_best_of_several_previous_subnets() -> None:
    store = Store()
    store.put(net("10.5.7.0/24"), None, THEIRS, TTL_S)
    assert str(held(holding(store, "10.5.7.0/24", "10.5.8.0/24", "10.5.9.0/24")).subnet) == "10.5.8.0/24"


def test_a_previous_subnet_that_anybody_overlaps_is_not_taken() -> None:
    store = Store()
    store.put(net("10.5.72.128/25"), None, THEIRS, TTL_S)
    assert str(held(holding(store, "10.5.72.0/24")).subnet) != "10.5.72.0/24"


V4_NOW = '"Network": "10.5.0.0/24", "SubnetLen": 26, "SubnetMin": "10.5.0.0"'
V6_NOW = '"EnableIPv6": true, "IPv6Network": "fd00:5::/62", "IPv6SubnetLen": 64, "IPv6SubnetMin": "fd00:5::"'


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (f"{{{V4_NOW}}}", ("10.5.0.{low}/26", "fd00:5:0:{high}::/64")),  # was dual-stack
        (f"{{{V4_NOW}}}", ("10.5.0.{low}/26", "fd00:9:0:{high}::/64")),
        (f'{{"EnableIPv4": false, {V6_NOW}}}', ("10.5.0.{low}/26", "fd00:5:0:{high}::/64")),
        (f"{{{V4_NOW}, {V6_NOW}}}", ("10.5.0.{low}/26", "fd00:9:0:{high}::/64")),  # had its IPv6 network elsewhere
        (f"{{{V4_NOW}, {V6_NOW}}}", ("10.9.0.{low}/26", "fd00:5:0:{high}::/64")),
        (f"{{{V4_NOW}, {V6_NOW}}}", ("10.5.0.{low}/26",)),
    ],
)
@pytest.mark.parametrize("mine", range(4))
def test_a_half_that_a_host_still_has_by_an_earlier_config_is_not_given_away(now: str, before: tuple[str, ...], mine: int) -> None:
    """A flanneld follows no change of the config: its lease of before stands for a day, and its containers are there."""
    config, store = NetworkConfig.parse(now), Store()
    for number in {0, 1, 2, 3} - {mine}:
        subnet, *subnet6 = (net(half.format(low=64 * number, high=number)) for half in before)
        store.put(subnet, subnet6[0] if subnet6 else None, LeaseAttrs(OTHER + number), TTL_S)
    theirs = list(store.leases.values())
    us = holding(store, config=config)
    assert not any(overlapping(held(us), lease) for lease in theirs)
    assert len(store.leases) == 4


@pytest.mark.parametrize("junk", ["10.0.0.0-8", "10.0.0.0-8&fd00:5:0:1::-64", "10.5.1.0-24&fd00::-16", "10.9.1.0-24&fd00:9::-64"])
def test_what_no_node_can_have_takes_nothing(junk: str) -> None:
    store = Store()
    subnet, subnet6 = parse_subnet_key(junk)
    store.put(subnet, subnet6, THEIRS, TTL_S)
    us = holding(store, "10.5.1.0/24", "fd00:5:0:1::/64", config=DUAL)
    assert (str(held(us).subnet), str(held(us).subnet6)) == ("10.5.1.0/24", "fd00:5:0:1::/64")


def test_both_halves_are_kept_or_chosen_by_themselves() -> None:
    store = Store()
    store.put(net("10.5.72.0/24"), net("fd00:5:0:9::/64"), THEIRS, TTL_S)
    us = holding(store, "10.5.72.0/24", "fd00:5:0:7::/64", config=DUAL)
    assert str(held(us).subnet6) == "fd00:5:0:7::/64"
    assert str(held(us).subnet) != "10.5.72.0/24"


def test_losing_a_race_is_listing_and_picking_again() -> None:
    store = Store()
    us = host(store, "10.5.72.0/24")
    us.serve()
    store.put(net("10.5.72.0/24"), None, THEIRS, TTL_S)
    assert kinds(serve_all(us)) == [ev.Create, ev.List, ev.Create]
    assert held(us).public_ip == US


def test_losing_race_after_race_waits_longer_but_never_long() -> None:
    store = Store()
    us = host(store)
    waits = []
    for _ in range(30):
        us.serve()
        us.ask = None
        us.tell(ev.CreateTaken())
        assert us.alarm is not None
        waits.append(us.alarm - store.now)
        sleep_until_due(us)
    assert waits[0] <= 0.02
    assert 0.5 < max(waits) <= 2.0


def test_no_free_subnet_is_told_and_one_that_is_freed_is_asked_for_at_once() -> None:
    small = NetworkConfig.parse('{"Network": "10.5.0.0/22"}')
    store = Store()
    for third in (1, 2, 3):
        store.put(net(f"10.5.{third}.0/24"), None, LeaseAttrs(IPAddress(f"192.0.2.{10 + third}")), TTL_S)
    us = host(store, config=small)
    us.serve()
    assert us.conditions == {"no-free-subnet": "no free subnet: 3 of 3 in 10.5.0.0/22 leased"}
    store.delete("10.5.2.0-24")
    us.see()
    assert serve_all(us)[0] == ev.List()
    assert str(held(us).subnet) == "10.5.2.0/24"
    assert us.conditions == {}


def test_a_full_network_is_looked_at_again_without_any_news() -> None:
    small = NetworkConfig.parse('{"Network": "10.5.0.0/22"}')
    store = Store()
    store.put(net("10.5.0.0/22"), None, THEIRS, TTL_S)
    us = host(store, config=small)
    settle(store, [us], TTL_S + 120.0)
    assert held(us).public_ip == US


def test_a_subnet_that_was_freed_lately_is_taken_last() -> None:
    small = NetworkConfig.parse('{"Network": "10.5.0.0/21"}')
    for seed in range(20):
        store = Store()
        us = host(store, config=small, seed=seed)
        for third in (1, 2, 3, 4, 5, 6):
            us.tell(ev.SubnetFreed(net(f"10.5.{third}.0/24")))
        serve_all(us)
        assert str(held(us).subnet) == "10.5.7.0/24"


def test_ten_thousand_leases_cost_little() -> None:
    config = NetworkConfig.parse('{"Network": "10.0.0.0/8", "SubnetLen": 26}')
    leases = tuple(
        Lease(IPNetwork((0x0A000000 + 64 * n, 26), version=4), LeaseAttrs(IPAddress(0xC6120000 + n)), None, n, n, n)
        for n in range(1, 10_001)
    )
    rules = Leasing(config, OURS, Random(1))
    rules.step(0.0, ev.Started())
    begin = time.process_time()
    actions = rules.step(0.0, ev.Listed(leases, 10_000))
    assert time.process_time() - begin < 1.0
    assert isinstance(actions[0], ev.Create)


# -------------------------------------------------------------------------------------------------- reservations


def test_a_reservation_comes_before_another_lease_of_ours_and_stays_one() -> None:
    store = Store()
    store.put(net("10.5.1.0/24"), None, OURS, TTL_S)
    reserved = store.put(net("10.5.200.0/24"), None, LeaseAttrs(US), 0)  # {"PublicIP": "192.0.2.1"}, as an operator writes it
    us = host(store)
    asked = serve_all(us)
    assert asked[1] == ev.Renew(reserved, OURS, 0)
    assert str(held(us).subnet) == "10.5.200.0/24"
    assert held(us).reserved


def test_a_reservation_is_not_kept_alive_but_put_anew_each_day() -> None:
    store = Store()
    store.put(net("10.5.200.0/24"), None, OURS, 0)
    us = holding(store)
    settle(store, [us], 10.0 * TTL_S)
    asked = [action for action in us.history if isinstance(action, ev.Renew | ev.KeepAlive)]
    assert asked
    assert all(isinstance(ask, ev.Renew) and ask.ttl_s == 0 for ask in asked)


def test_a_reservation_that_does_not_fit_is_left_alone() -> None:
    store = Store()
    store.put(net("10.9.0.0/24"), None, OURS, 0)
    us = host(store)
    assert ev.Release not in kinds(serve_all(us))
    assert "10.9.0.0-24" in store.leases
    assert CONFIG.v4 is not None
    assert CONFIG.v4.fits(held(us).subnet)


def test_a_lease_that_becomes_a_reservation_loses_its_end() -> None:
    store = Store()
    us = holding(store)
    store.put(held(us).subnet, None, LeaseAttrs(US), 0)
    us.see()
    serve_all(us)
    assert held(us).reserved
    assert held(us).attrs == OURS
    settle(store, [us])
    assert held(us).reserved
    assert not any(isinstance(action, ev.KeepAlive) for action in us.history)


def test_a_reservation_that_gets_an_end_is_kept_alive_again() -> None:
    store = Store()
    store.put(net("10.5.200.0/24"), None, OURS, 0)
    us = holding(store)
    store.put(net("10.5.200.0/24"), None, OURS, TTL_S)
    us.see()
    assert isinstance(us.ask, ev.Renew)  # with an etcd lease of our own
    settle(store, [us])
    assert str(held(us).subnet) == "10.5.200.0/24"
    assert not held(us).reserved


# ------------------------------------------------------------------------------------------------------- keeping


def a_day_or_two(seed: int) -> list[tuple[float, type[ev.Action]]]:
    """What is asked of the registry, and when, in hours."""
    rules = Leasing(CONFIG, OURS, Random(seed), renew_margin_s=3600)
    lease = Lease(net("10.5.72.0/24"), OURS, None, 7, 5, 5)
    asked: list[tuple[float, type[ev.Action]]] = []
    now = 0.0
    event: ev.Event = ev.Started()
    answers: dict[type[ev.Action], ev.Event] = {
        ev.List: ev.Listed((), 1),
        ev.Create: ev.Created(lease),
        ev.KeepAlive: ev.KeptAlive(86_400),
        ev.Renew: ev.Renewed(lease),
    }
    while now < 2 * 86_400:
        (*_, action) = rules.step(now, event)
        if isinstance(action, ev.WakeAt):
            now, event = action.when, ev.Woke()
        else:
            asked.append((now / 3600, type(action)))
            event = answers[type(action)]
    return asked


@pytest.mark.parametrize("seed", range(20))
def test_a_day_in_the_life_of_a_lease(seed: int) -> None:
    """Kept alive every eight hours; written anew an hour before flannel's day is over, for the peers that heal only on a put."""
    asked = a_day_or_two(seed)
    first, second = [when for when, kind in asked if kind is ev.Renew]
    assert 0.95 * 23 <= first <= 23
    assert 0.95 * 23 <= second - first <= 23
    assert asked == [
        (0, ev.List),
        (0, ev.Create),
        (8, ev.KeepAlive),
        (16, ev.KeepAlive),
        (first, ev.Renew),
        (pytest.approx(first + 8), ev.KeepAlive),
        (pytest.approx(first + 16), ev.KeepAlive),
        (second, ev.Renew),
    ]


def test_hosts_that_were_switched_on_together_do_not_write_together_for_ever() -> None:
    """Each write is told to all: a thousand at one moment are a million events."""
    times = sorted(when for seed in range(1000) for when, kind in a_day_or_two(seed) if kind is ev.Renew and when < 24)
    assert len(times) == 1000
    in_a_minute = [sum(1 for each in times if when <= each < when + 1 / 60) for when in times]
    assert max(in_a_minute) <= 40


def test_a_margin_longer_than_the_lease_is_no_storm_of_puts() -> None:
    rules = Leasing(CONFIG, OURS, Random(1), ttl_s=60, renew_margin_s=3600)
    rules.step(0.0, ev.Started())
    rules.step(0.0, ev.Listed((), 1))
    rules.step(0.0, ev.Created(Lease(net("10.5.72.0/24"), OURS, None, 7, 5, 5)))
    assert rules.step(0.0, ev.Woke()) == [ev.WakeAt(20.0)]
    assert [type(action) for action in rules.step(20.0, ev.Woke())] == [ev.KeepAlive]
    rules.step(20.0, ev.KeptAlive(60))
    assert [type(action) for action in rules.step(30.0, ev.Woke())] == [ev.Renew]


def test_a_failure_is_tried_again_soon_but_not_all_the_time() -> None:
    store = Store()
    us = holding(store)
    sleep_until_due(us)
    waits = []
    for _ in range(12):
        us.lose_request()
        assert us.alarm is not None
        waits.append(us.alarm - store.now)
        sleep_until_due(us)
    assert waits[0] <= 0.1
    assert all(wait <= 5.0 for wait in waits)
    assert waits[-1] >= 2.5
    assert us.conditions == {}  # that the registry is away is said by who watches all calls
    us.serve()
    assert us.conditions == {}


def out_of_touch(us: Host, seconds: float) -> None:
    over = us.store.now + seconds
    while us.store.now < over:
        if us.ask:
            us.lose_request()
        else:
            sleep_until_due(us)
    if us.ask:
        us.lose_request()


def back_in_touch(us: Host) -> None:
    if us.ask is None:
        sleep_until_due(us)


def test_out_of_touch_for_longer_than_the_lease_lives_is_told_and_nothing_is_given_up() -> None:
    store = Store()
    us = holding(store)
    lease = held(us)
    out_of_touch(us, TTL_S + 10.0)
    assert "lease-unconfirmed" in us.conditions
    assert held(us) == lease
    assert not any(isinstance(action, ev.Lost) for action in us.history)
    # Back in touch: look first, then ask for the same again.
    back_in_touch(us)
    asked = serve_all(us)
    assert kinds(asked) == [ev.List, ev.Create]
    assert held(us).subnet == lease.subnet
    assert us.conditions == {}


def test_a_lease_that_lived_on_while_we_were_out_of_touch_is_simply_kept() -> None:
    """etcd extends every lease after an election, so the key may still be there."""
    store = Store()
    us = holding(store)
    store.extend(held(us), 10.0 * TTL_S)
    out_of_touch(us, TTL_S + 10.0)
    back_in_touch(us)
    assert kinds(serve_all(us))[0] == ev.List
    assert not any(isinstance(action, ev.Lost) for action in us.history)
    settle(store, [us], 10.0)
    assert us.conditions == {}


def test_a_lease_that_somebody_took_while_we_were_out_of_touch_is_theirs() -> None:
    store = Store()
    us = holding(store)
    lease = held(us)
    out_of_touch(us, TTL_S + 10.0)
    store.put(lease.subnet, None, THEIRS, TTL_S)
    back_in_touch(us)
    serve_all(us)
    assert held(us).subnet != lease.subnet
    assert store.leases[lease.key].public_ip == OTHER


def test_an_answer_that_was_lost_after_the_write_costs_no_subnet() -> None:
    store = Store()
    us = host(store)
    us.serve()
    us.lose_answer()
    (lease,) = store.leases.values()
    settle(store, [us], 10.0)
    assert held(us).key == lease.key
    assert len(store.leases) == 1


def test_a_create_that_arrives_after_it_was_given_up_is_released() -> None:
    store = Store()
    us = host(store)
    us.serve()
    us.delay_request()
    sleep_until_due(us)
    us.serve()
    us.serve()
    kept = held(us)
    us.arrive()
    assert len(store.leases) == 2
    while us.watch:
        us.see()
    assert isinstance(us.ask, ev.Release)
    serve_all(us)
    assert list(store.leases) == [kept.key]
    assert us.conditions == {}


# -------------------------------------------------------------------------------- what others do to our key, and we


def test_new_attributes_are_written_at_once() -> None:
    store = Store()
    us = holding(store)
    changed = LeaseAttrs(US, backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": "ab:ab:ab:ab:ab:ab"})
    us.tell(ev.AttrsChanged(changed))
    assert us.ask == ev.Renew(held(us), changed, TTL_S)
    serve_all(us)
    assert store.leases[held(us).key].attrs == changed


def test_a_new_address_keeps_the_subnet() -> None:
    store = Store()
    us = holding(store)
    subnet = held(us).subnet
    us.attrs = LeaseAttrs(IPAddress("192.0.2.77"))
    us.tell(ev.AttrsChanged(us.attrs))
    us.tell(ev.Woke())
    us.ask, ask = None, us.ask
    assert ask is not None
    us.tell(store.perform(ask, US))  # the key still carries the old address
    assert held(us).subnet == subnet
    assert held(us).public_ip == us.attrs.public_ip


def test_an_edit_of_our_value_is_put_back() -> None:
    store = Store()
    us = holding(store)
    edited = store.put(held(us).subnet, None, LeaseAttrs(US, backend_type="udp"), TTL_S)
    us.see()
    assert us.ask == ev.Renew(edited, OURS, TTL_S)
    serve_all(us)
    assert store.leases[held(us).key].attrs == OURS
    assert us.conditions == {}


def test_a_host_that_edits_again_and_again_is_told_and_not_fought_at_full_speed() -> None:
    store = Store()
    us = holding(store)
    store.put(held(us).subnet, None, LeaseAttrs(US, backend_type="udp"), TTL_S)
    us.see()
    writes = 0
    while store.now < 300.0:
        if isinstance(us.ask, ev.KeepAlive):
            us.serve()
        elif us.ask:
            writes += 1
            us.serve()
            us.watch.clear()
            store.put(held(us).subnet, None, LeaseAttrs(US, backend_type="udp"), TTL_S)
            us.see()
        else:
            sleep_until_due(us)
    assert writes < 30
    assert "duplicate-public-ip" in us.conditions
    settle(store, [us], 1300.0)
    assert us.conditions == {}
    assert held(us).attrs == OURS


def test_our_own_put_comes_back_as_no_news() -> None:
    store = Store()
    us = holding(store)
    lease = held(us)
    assert [type(action) for action in us.tell(ev.OwnPut(lease))] == [ev.WakeAt]


def test_an_echo_from_before_our_last_write_is_no_edit() -> None:
    store = Store()
    us = holding(store)
    before = held(us)
    us.tell(ev.AttrsChanged(LeaseAttrs(US, backend_type="udp")))
    serve_all(us)
    now = held(us)
    us.tell(ev.OwnPut(before))
    assert held(us) == now
    assert us.ask is None


def test_the_same_value_put_by_somebody_is_ours_and_gets_our_own_etcd_lease_again() -> None:
    store = Store()
    us = holding(store)
    store.put(held(us).subnet, None, OURS, TTL_S)
    us.see()
    assert held(us) == store.leases[held(us).key]
    assert us.ask == ev.Renew(held(us), OURS, TTL_S)  # theirs may end whenever they like


def test_two_hosts_with_one_address_say_so_both() -> None:
    """The classic: every VM has 10.0.2.15 on eth0, and --iface was forgotten. field-problems 2.6."""
    store = Store()
    one, two = holding(store), holding(store)
    for _ in range(40):
        for us in (one, two):
            while us.watch:
                us.see()
            serve_all(us)
        store.pass_time(0.5)
        for us in (one, two):
            us.tell(ev.Woke())
    for us in (one, two):
        assert "written over and over by another host" in us.conditions["duplicate-public-ip"]


def test_a_short_etcd_lease_of_somebody_is_replaced_by_one_of_ours() -> None:
    store = Store()
    us = holding(store)
    store.put(held(us).subnet, None, OURS, 30)
    us.see()
    assert kinds(serve_all(us)) == [ev.Renew]
    assert store.times[held(us).etcd_lease][1] == TTL_S


def test_a_key_that_another_host_wrote_over_is_theirs() -> None:
    store = Store()
    us = holding(store)
    lease = held(us)
    store.put(lease.subnet, None, THEIRS, TTL_S)
    us.see()
    asked = serve_all(us)
    assert kinds(asked) == [ev.List, ev.Create]
    assert store.leases[lease.key].attrs == THEIRS
    told = [action for action in us.history if isinstance(action, ev.Tell) and action.code == "subnet-conflict"]
    assert str(US) in told[0].detail
    assert str(OTHER) in told[0].detail
    assert any(isinstance(action, ev.Lost) for action in us.history)
    assert us.conditions == {}


def test_a_deleted_key_is_asked_for_again_at_once() -> None:
    store = Store()
    us = holding(store)
    lease = held(us)
    store.delete(lease.key)
    us.see()
    assert kinds(serve_all(us)) == [ev.List, ev.Create]
    assert held(us).subnet == lease.subnet
    assert [type(a) for a in us.history if isinstance(a, ev.Hold | ev.Lost)] == [ev.Lost, ev.Hold]


def test_a_deletion_told_without_saying_whose_is_understood() -> None:
    store = Store()
    us = holding(store)
    store.delete(held(us).key)
    us.watch.clear()
    us.tell(ev.SubnetFreed(held(us).subnet))
    assert us.ask == ev.List()


def test_a_deletion_from_before_our_time_is_history() -> None:
    us = holding(Store())
    assert not any(isinstance(action, ev.List) for action in us.tell(ev.OwnDeleted(revision=held(us).create_revision - 1)))
    assert us.tell(ev.OwnDeleted(revision=held(us).create_revision + 1)) == [ev.List()]


def test_a_deletion_that_comes_while_a_listing_is_under_way_asks_for_another() -> None:
    store = Store()
    us = holding(store)
    us.tell(ev.OwnDeleted())
    early = store.listing()
    store.delete(held(us).key)
    us.tell(ev.OwnDeleted(store.revision))
    us.ask = None
    us.tell(early)
    assert us.ask == ev.List()


def test_an_expired_lease_is_noticed_by_the_keep_alive() -> None:
    store = Store()
    us = holding(store)
    store.pass_time(TTL_S + 1.0)
    us.watch.clear()
    us.tell(ev.Woke())
    subnet = held(us).subnet
    settle(store, [us], 5.0)
    assert held(us).subnet == subnet
    assert held(us).key in store.leases


def test_a_keep_alive_that_etcd_does_not_know_is_a_reason_to_look() -> None:
    store = Store()
    us = holding(store)
    sleep_until_due(us)
    us.ask = None
    us.tell(ev.KeepAliveLost())
    assert us.alarm is not None
    assert us.alarm - store.now <= 0.02
    sleep_until_due(us)
    assert us.ask == ev.List()


def test_an_overheard_listing_without_our_key_is_a_loss() -> None:
    store = Store()
    us = holding(store)
    store.delete(held(us).key)
    us.watch.clear()
    us.tell(ev.Overheard((), store.revision))
    assert isinstance(us.ask, ev.Create)


def test_an_overheard_listing_from_before_our_last_write_says_nothing() -> None:
    store = Store()
    us = holding(store)
    us.tell(ev.Overheard((), held(us).mod_revision - 1))
    assert us.rules.held is not None


@pytest.mark.parametrize("fails", [0, 1, 3])
@pytest.mark.parametrize("news", ["deleted", "freed", "not said when", "thief", "older"])
def test_an_overheard_listing_from_before_what_the_watch_told_settles_nothing(news: str, fails: int) -> None:
    """It was read before our key went and arrives after, while we wait with our own question: a try failed just now."""
    store = Store()
    us = holding(store)
    lease = held(us)
    before = store.listing()
    sleep_until_due(us)
    us.lose_request()
    assert us.ask is None
    if news == "thief":
        us.tell(ev.OwnPut(store.put(lease.subnet, None, THEIRS, TTL_S)))
    elif news == "older":
        older = replace(lease, subnet=net("10.5.0.0/18"), attrs=THEIRS, create_revision=1)
        us.tell(ev.OwnPut(replace(older, mod_revision=before.revision + 1)))
    else:
        store.delete(lease.key)
        if news == "freed":
            us.tell(ev.SubnetFreed(lease.subnet, None, store.revision))
        else:
            us.tell(ev.OwnDeleted(0 if news == "not said when" else store.revision))
    for _ in range(fails):
        sleep_until_due(us)
        if isinstance(us.ask, ev.KeepAlive):  # in turn
            us.serve()
        assert us.ask == ev.List()
        us.lose_request()
    us.tell(ev.Overheard(before.leases, before.revision))
    sleep_until_due(us)
    if isinstance(us.ask, ev.KeepAlive):
        us.serve()
    assert us.ask == ev.List()


@pytest.mark.parametrize("fails", [0, 1, 3])
@pytest.mark.parametrize("by", ["asked", "overheard"])
def test_a_doubt_that_a_listing_has_settled_is_over(by: str, fails: int) -> None:
    """What is overheard later counts again, also from a registry that was restored and is behind what cast the doubt."""
    store = Store()
    us = holding(store)
    lease = held(us)
    us.tell(ev.OwnDeleted(lease.mod_revision + 50))
    for _ in range(fails):
        us.lose_request()
        sleep_until_due(us)
    assert us.ask == ev.List()
    if by == "asked":
        us.serve()
    else:
        us.lose_request()
        us.tell(ev.Overheard((lease,), lease.mod_revision + 50))
    assert us.ask is None
    assert held(us) == lease
    us.tell(ev.Overheard((), lease.mod_revision + 10))
    assert us.rules.held is None


def test_the_watch_may_be_faster_than_the_answer() -> None:
    """An edit that follows our put: the watch tells of both before the put is answered."""
    store = Store()
    us = holding(store)
    us.tell(ev.AttrsChanged(LeaseAttrs(US, backend_type="udp")))
    us.attrs = LeaseAttrs(US, backend_type="udp")
    ask, us.ask = us.ask, None
    assert ask is not None
    answer = store.perform(ask, US)
    edited = store.put(held(us).subnet, None, LeaseAttrs(US, backend_type="host-gw"), TTL_S)
    us.ask = ask
    us.see()
    us.see()
    us.ask = None
    us.tell(answer)
    assert us.ask == ev.Renew(edited, us.attrs, TTL_S)


def test_a_changed_config_moves_us_in_process() -> None:
    store = Store()
    us = holding(store)
    old = held(us)
    us.tell(ev.ConfigChanged(NetworkConfig.parse('{"Network": "10.77.0.0/16"}')))
    assert kinds(serve_all(us)) == [ev.List, ev.Release, ev.Create]
    assert held(us).subnet in net("10.77.0.0/16")
    assert old.key not in store.leases


# ------------------------------------------------------------------------------------------------------- rivals


def test_an_older_overlapping_lease_wins_and_we_move_on() -> None:
    store = Store()
    wide = store.put(net("10.5.72.0/23"), None, THEIRS, TTL_S)
    mine = store.put(net("10.5.72.0/24"), None, OURS, TTL_S)
    us = host(store)
    asked = serve_all(us)
    assert asked[1] == ev.Release(mine)
    assert held(us).subnet not in wide.subnet


def test_a_younger_overlapping_lease_is_told_until_it_goes() -> None:
    store = Store()
    us = holding(store, "10.5.72.0/24")
    store.put(net("10.5.72.128/25"), None, THEIRS, TTL_S)
    us.see()
    assert us.conditions["subnet-conflict"] == (
        "10.5.72.0/24 at 192.0.2.1 (us) and 10.5.72.128/25 at 192.0.2.2 overlap; 192.0.2.1 was first and keeps it"
    )
    assert us.ask is None
    store.delete("10.5.72.128-25")
    us.see()
    assert us.conditions == {}
    assert str(held(us).subnet) == "10.5.72.0/24"


def test_a_dual_stack_lease_is_told_only_when_no_older_key_has_one_of_its_halves() -> None:
    store = Store()
    us = host(store, "10.5.72.0/24", "fd00:5:0:7::/64", config=DUAL)
    us.serve()
    store.put(net("10.5.72.0/24"), net("fd00:5:0:9::/64"), THEIRS, TTL_S)  # another key, the same IPv4 half
    us.serve()
    assert us.rules.held is None
    serve_all(us)
    assert str(held(us).subnet) != "10.5.72.0/24"
    assert not any(isinstance(action, ev.Lost) for action in us.history)
    assert len(store.leases) == 2


def test_another_live_host_with_our_address_is_told_until_it_goes() -> None:
    store = Store()
    us = holding(store)
    twin = store.put(net("10.5.250.0/24"), None, OURS, TTL_S)
    us.see()
    assert twin.key in us.conditions["duplicate-public-ip"].replace("/", "-")
    assert us.ask is None
    store.delete(twin.key)
    us.see()
    assert us.conditions == {}


@pytest.mark.parametrize("back", [1, 500, 990])
def test_another_live_host_with_our_address_is_told_after_the_registry_was_restored(back: int) -> None:
    """Revisions start over, and with them what is from after our time."""
    rules, lease = Leasing(CONFIG, OURS, Random(1)), Lease(net("10.5.7.0/24"), OURS, None, 7, 1000, 1000)
    restored = replace(lease, create_revision=1000 - back, mod_revision=1000 - back)
    twin = replace(lease, subnet=net("10.5.250.0/24"), create_revision=1001 - back, mod_revision=1001 - back)
    told = list[ev.Action]()
    for event in (
        ev.Started(),
        ev.Listed((), 999),
        ev.Created(lease),
        ev.OwnDeleted(),
        ev.Listed((restored,), 1000 - back),
        ev.OwnPut(twin),
    ):
        told += [action for action in rules.step(0.0, event) if isinstance(action, ev.Tell)]
    assert [action.code for action in told] == ["duplicate-public-ip"]


def test_a_leftover_of_our_own_is_nobody() -> None:
    store = Store()
    store.put(net("10.5.1.0/24"), None, OURS, TTL_S)
    store.put(net("10.5.2.0/24"), None, OURS, TTL_S)
    us = holding(store)
    us.tell(ev.ConfigChanged(CONFIG))
    serve_all(us)
    assert us.conditions == {}


# -------------------------------------------------------------------------------------------------- IPv6 alone


def test_without_ipv4_a_host_is_known_by_its_ipv6_address() -> None:
    store = Store()
    hosts = [
        host(store, config=V6_ONLY, attrs=LeaseAttrs(IPAddress("0.0.0.0"), IPAddress(f"2001:db8::{n}")), seed=n) for n in (1, 2, 3)
    ]
    settle(store, hosts, 10.0)
    assert len({held(one).key for one in hosts}) == 3
    assert all(one.rules.held and one.rules.held.key.startswith("0.0.0.0-0&fd00:5:0:") for one in hosts)
    again = held(hosts[0])
    hosts[0].start()
    settle(store, hosts, 1.0)
    assert held(hosts[0]).key == again.key


def test_a_lease_without_ipv4_takes_no_ipv4_subnet() -> None:
    store = Store()
    store.put(net("0.0.0.0/0"), net("fd00:5:0:1::/64"), LeaseAttrs(IPAddress("0.0.0.0"), IPAddress("2001:db8::9")), TTL_S)
    assert holding(store).conditions == {}


# ------------------------------------------------------------------------------------------------------- the rest


def test_our_value_is_compared_as_a_reader_sees_it() -> None:
    """A tuple comes back from JSON as a list; that is not an edit."""
    store = Store()
    us = host(store, attrs=LeaseAttrs(US, backend_type="x", backend_data={"ports": (1, 2)}))
    serve_all(us)
    wire = held(us)
    echo = Lease(wire.subnet, LeaseAttrs.from_json(wire.attrs.to_json()), None, wire.etcd_lease, wire.create_revision, 99)
    us.tell(ev.OwnPut(echo))
    assert us.ask is None


def test_an_answer_to_nothing_is_passed_over() -> None:
    us = holding(Store())
    for event in (
        ev.Renewed(held(us)),
        ev.RenewConflict(),
        ev.KeepAliveLost(),
        ev.ListFailed("?"),
        ev.Listed((), 99),
        ev.Released(),
    ):
        assert [type(action) for action in us.tell(event)] == [ev.WakeAt]


def test_a_lease_is_believed_from_when_it_was_asked_for() -> None:
    store = Store()
    us = host(store)
    us.serve()
    store.pass_time(4.0)  # the answer takes four seconds
    us.serve()
    assert us.alarm == TTL_S / 3
    assert TTL_S - MARGIN_S > TTL_S / 3


def test_every_condition_is_in_the_table() -> None:
    from pathlib import Path
    from re import findall

    source = Path(__file__).parents[2].joinpath("flannelpy/core/leasing.py").read_text()
    assert set(findall(r'_tell\(\s*"([a-z-]+)"', source)) <= set(CONDITIONS)


def test_an_etcd_without_space_over_a_weekend_costs_no_lease() -> None:
    """It takes no writes and extends leases: the value waits, and what it stands under goes on."""
    store = Store()
    us = holding(store)
    lease = held(us)
    store.full = True
    asked: list[ev.Ask] = []
    until = store.now + 3 * 86_400
    while store.now < until:
        asked += serve_all(us)
        assert us.alarm is not None
        store.pass_time(us.alarm - store.now)
        assert store.leases == {lease.key: lease}
        us.wake()
    tries, kept = kinds(asked).count(ev.Renew), kinds(asked).count(ev.KeepAlive)
    assert kept >= 3 * 86_400 / TTL_S
    assert tries > kept  # and no less is tried to write the value
    assert not any(isinstance(action, ev.Lost) for action in us.history)
    assert "lease-unconfirmed" not in {action.code for action in us.history if isinstance(action, ev.Tell)}
    store.full = False
    serve_all(us)
    while held(us).mod_revision == lease.mod_revision:
        assert us.alarm is not None
        store.pass_time(us.alarm - store.now)
        us.wake()
        serve_all(us)
    assert store.now < until + 10
    assert held(us).key == lease.key


def test_a_value_that_cannot_be_written_and_a_lease_that_cannot_be_extended_have_their_turns() -> None:
    store = Store()
    us = holding(store)
    store.pass_time(TTL_S - MARGIN_S)
    us.wake()
    asked = []
    for _ in range(8):
        assert us.ask is not None
        asked.append(us.ask)
        us.lose_request()
        store.pass_time((us.alarm or store.now) - store.now)
        us.wake()
    assert kinds(asked) == [ev.Renew, ev.KeepAlive] * 4


@pytest.mark.parametrize(
    "doubt",
    [ev.OwnDeleted(0), ev.ConfigChanged(NetworkConfig.parse('{"Network": "10.6.0.0/16"}'))],
    ids=["a deletion that was told", "a config in which it does not fit"],
)
def test_a_listing_that_is_refused_for_days_costs_no_lease(doubt: ev.Event) -> None:
    """A role that may no longer read: whether the key is still ours cannot be seen, and etcd extends its lease all the same."""
    store = Store()
    us = holding(store)
    lease = held(us)
    store.unreadable = True
    us.tell(doubt)
    asked: list[ev.Ask] = []
    until = store.now + 3 * 86_400
    while store.now < until:
        asked += serve_all(us)
        sleep_until_due(us)
        assert store.leases == {lease.key: lease}
    listed, kept = kinds(asked).count(ev.List), kinds(asked).count(ev.KeepAlive)
    assert kept >= 3 * 86_400 / TTL_S
    assert listed > kept  # and no less is tried to see it
    assert set(kinds(asked)) == {ev.List, ev.KeepAlive}  # nothing is written before it was seen
    assert "lease-unconfirmed" not in {action.code for action in us.history if isinstance(action, ev.Tell)}
    store.unreadable = False
    settle(store, [us], 10.0)
    assert (held(us).key == lease.key) == isinstance(doubt, ev.OwnDeleted)
    assert list(store.leases) == [held(us).key]


def test_a_key_that_somebody_took_is_not_believed_in_because_its_lease_can_be_extended() -> None:
    """Our etcd lease lives on without a key; only a listing ends the doubt."""
    store = Store()
    us = holding(store)
    lease = held(us)
    taken = store.put(lease.subnet, None, THEIRS, 0)
    store.unreadable = True
    us.tell(ev.OwnPut(taken))
    for _ in range(200):
        serve_all(us)
        sleep_until_due(us)
    store.unreadable = False
    settle(store, [us], 10.0)
    assert any(isinstance(action, ev.Lost) for action in us.history)
    assert store.leases[lease.key] == taken
    assert held(us).key != lease.key
