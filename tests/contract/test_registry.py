"""What every registry does, the one in memory and the one in etcd alike. Names with ``conformance`` are flannel's own cases."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import cast

import pytest
from netaddr import IPAddress

from flannelpy.core.errors import (
    ConflictError,
    RegistryAuthError,
    RegistryRefusedError,
    RegistryUnavailableError,
    TakenError,
    WatchGapError,
)
from flannelpy.core.model import LEASE_TTL_S, LeaseAttrs
from flannelpy.core.offer import MOST
from flannelpy.registry import ConfigChanged, Deleted, Malformed, Offered, Put, StoredConfig
from flannelpy.registry.memory import METHODS, MemoryRegistry

from .registry_place import MemoryPlace, Place, attrs, bounded, net, watching

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")


# ------------------------------------------------------------------------------------------------------- config


async def test_conformance_config_is_missing_then_exactly_as_written(place: Place) -> None:
    registry = place.registry()
    missing = await registry.config()
    assert (missing.text, missing.mod_revision) == (None, 0)

    text = '{ "network": "10.3.0.0/16",\n"Backend": {"Type": "vxlan"} }\n'
    await place.put(f"{place.prefix}/config", text)

    stored = await registry.config()
    assert stored.text == text
    assert 0 < stored.mod_revision <= stored.revision


async def test_config_is_written_only_over_what_was_expected(place: Place) -> None:
    registry = place.registry()
    first = await registry.put_config("one", await registry.config())
    with pytest.raises(ConflictError):
        await registry.put_config("two", StoredConfig(None, 0, 0))
    with pytest.raises(ConflictError):
        await registry.put_config("two", StoredConfig("zero", first - 1, first))
    assert await place.get(f"{place.prefix}/config") == "one"
    second = await registry.put_config("two", await registry.config())
    assert second > first
    assert await registry.put_config("three") > second
    assert await place.get(f"{place.prefix}/config") == "three"


# ------------------------------------------------------------------------------------------------------- leases


async def test_conformance_stored_value_is_exact(place: Place) -> None:
    await place.registry().create(A, attrs("1.2.3.4"))
    assert await place.get(f"{place.prefix}/subnets/10.5.1.0-24") == '{"PublicIP":"1.2.3.4","PublicIPv6":null}'


async def test_dual_stack_key_and_vxlan_value_are_exact(place: Place) -> None:
    vxlan = attrs(
        "192.0.2.3",
        public_ipv6=IPAddress("2001:db8::3"),
        backend_type="vxlan",
        backend_data={"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"},
        backend_v6_data={"VNI": 1, "VtepMAC": "3a:d2:32:6f:8f:44"},
    )
    registry = place.registry()
    lease = await registry.create(A, vxlan, subnet6=net("fd00:12:13::/56"))
    assert await place.get(f"{place.prefix}/subnets/10.5.1.0-24&fd00:12:13::-56") == (
        '{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"3a:d2:32:6f:8f:44"}}'
    )
    assert (await registry.snapshot()).leases == (lease,)


async def test_conformance_create_list_and_delete(place: Place) -> None:
    registry = place.registry()
    assert (await registry.snapshot()).leases == ()
    second = await registry.create(B, attrs("192.0.2.2"))
    first = await registry.create(A, attrs("192.0.2.1"))
    snapshot = await registry.snapshot()
    assert snapshot.leases == (first, second)  # in key order, whoever came first
    assert snapshot.revision >= first.mod_revision
    assert snapshot.malformed == ()
    await registry.release(first)
    assert (await registry.snapshot()).leases == (second,)


async def test_a_subnet_is_taken_once(place: Place) -> None:
    one, other = place.registry(), place.registry()
    lease = await one.create(A, attrs("192.0.2.1"))
    before = await place.grants()
    with pytest.raises(TakenError, match=r"10\.5\.1\.0-24"):
        await other.create(A, attrs("192.0.2.2"))
    assert (await other.snapshot()).leases == (lease,)
    assert await place.grants() == before  # the loser's etcd lease was given back


async def test_of_many_hosts_that_race_for_a_subnet_one_wins(place: Place) -> None:
    registries = [place.registry() for _ in range(8)]
    attempts = (registry.create(A, attrs(f"192.0.2.{number}")) for number, registry in enumerate(registries, 1))
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(won) == 1
    assert sum(isinstance(outcome, TakenError) for outcome in outcomes) == 7
    assert (await registries[0].snapshot()).leases == tuple(won)


async def test_conformance_renewal_gives_a_day_and_keeps_attributes(place: Place) -> None:
    registry = place.registry()
    vxlan = attrs(backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"})
    lease = await registry.create(A, vxlan, ttl_s=600)
    before = await place.grants()
    renewed = await registry.renew(lease, lease.attrs)
    assert renewed.same_content(lease)
    assert renewed.mod_revision > lease.mod_revision
    assert renewed.create_revision == lease.create_revision
    assert LEASE_TTL_S - 5 <= await registry.remaining(renewed) <= LEASE_TTL_S
    assert (await registry.snapshot()).leases == (renewed,)
    assert await place.grants() == before  # the old etcd lease was revoked; the key outlived it


async def test_a_renewal_may_change_the_attributes(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs("192.0.2.1"))
    renewed = await registry.renew(lease, attrs("192.0.2.9", backend_type="host-gw"))
    assert (await registry.snapshot()).leases == (renewed,)
    assert renewed.attrs == attrs("192.0.2.9", backend_type="host-gw")


async def test_a_renewal_never_overwrites_a_thief(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs("192.0.2.1"))
    stolen = '{"PublicIP":"192.0.2.66","PublicIPv6":null}'
    await place.put(f"{place.prefix}/subnets/{lease.key}", stolen)
    before = await place.grants()
    with pytest.raises(ConflictError, match="changed"):
        await registry.renew(lease, lease.attrs)
    assert await place.get(f"{place.prefix}/subnets/{lease.key}") == stolen
    assert await place.grants() == before


async def test_a_renewal_never_brings_back_a_deleted_key(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs())
    await place.delete(f"{place.prefix}/subnets/{lease.key}")
    with pytest.raises(ConflictError, match="deleted"):
        await registry.renew(lease, lease.attrs)
    assert await place.get(f"{place.prefix}/subnets/{lease.key}") is None
    assert await registry.remaining(lease) == 0


async def test_release_takes_only_what_is_still_ours(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs())
    before = await place.grants()
    renewed = await registry.renew(lease, lease.attrs)
    with pytest.raises(ConflictError):
        await registry.release(lease)
    await registry.release(renewed)
    assert await place.get(f"{place.prefix}/subnets/{lease.key}") is None
    assert await place.grants() == before  # its etcd lease outlives the key, which tells the peers that nobody returns
    with pytest.raises(ConflictError):
        await registry.release(renewed)


async def test_a_key_that_was_deleted_is_told_from_one_whose_lease_has_ended(place: Place) -> None:
    registry, other = place.registry(), place.registry()
    deleted, released = [await registry.create(net(f"10.5.{n}.0/24"), attrs()) for n in (1, 2)]
    expired = await registry.create(net("10.5.3.0/24"), attrs(), ttl_s=1)
    await place.delete(f"{place.prefix}/subnets/{deleted.key}")
    await place.let_expire(2)
    await registry.release(released)
    while await place.get(f"{place.prefix}/subnets/{expired.key}") is not None:  # noqa: ASYNC110 - etcd takes its time
        await asyncio.sleep(0.1)
    for asked in ([deleted], [expired], [released, expired], [deleted, released, expired]):
        assert await other.outliving(asked) == {lease.key for lease in asked} - {expired.key}
    assert await other.outliving([]) == frozenset()


async def test_a_reservation_stays_one(place: Place) -> None:
    registry = place.registry()
    before = await place.grants()
    await place.put(f"{place.prefix}/subnets/10.5.1.0-24", '{"PublicIP":"192.0.2.1"}')
    (reserved,) = (await registry.snapshot()).leases
    assert reserved.reserved
    renewed = await registry.renew(reserved, attrs("192.0.2.1", backend_type="vxlan"))
    assert renewed.reserved
    assert (await registry.snapshot()).leases == (renewed,)
    assert await registry.keep_alive(renewed) == math.inf
    assert await registry.remaining(renewed) == math.inf
    assert await place.grants() == before
    written = await registry.create(B, attrs("192.0.2.2"), ttl_s=0)
    assert written.reserved
    with pytest.raises(TakenError):
        await registry.create(B, attrs("192.0.2.2"), ttl_s=0)  # even with the very same value
    await registry.release(renewed)
    assert (await registry.snapshot()).leases == (written,)


async def test_keep_alive_extends_and_notices_a_lost_lease(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs(), ttl_s=600)
    assert await registry.keep_alive(lease) == 600
    assert 595 <= await registry.remaining(lease) <= 600
    await registry.renew(lease, lease.attrs)  # under another etcd lease
    with pytest.raises(ConflictError, match=r"10\.5\.1\.0-24"):
        await registry.keep_alive(lease)
    assert await registry.remaining(lease) == 0


# -------------------------------------------------------------------------------------------------------- watch


async def test_conformance_add_and_remove_are_seen(place: Place) -> None:
    registry = place.registry()
    start = (await registry.snapshot()).revision
    async with watching(place.registry(), start + 1) as seen:
        lease = await registry.create(A, attrs())
        assert await seen.count(1) == [Put(lease)]
        await registry.release(lease)
        *_, gone = await seen.count(2)
        assert isinstance(gone, Deleted)
        assert gone.key == lease.key
        assert gone.mod_revision > lease.mod_revision


async def test_conformance_a_short_lease_is_added_then_removed(place: Place) -> None:
    registry = place.registry()
    start = (await registry.snapshot()).revision
    async with watching(registry, start + 1) as seen:
        lease = await registry.create(A, attrs(), ttl_s=1)
        await seen.count(1)
        await place.let_expire(1)
        added, removed = await seen.count(2)
    assert added == Put(lease)
    assert isinstance(removed, Deleted)
    assert removed.key == lease.key
    with pytest.raises(ConflictError):
        await registry.renew(lease, lease.attrs)


async def test_conformance_own_key_is_seen_renewed_then_deleted(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs())
    snapshot = await registry.snapshot()
    assert snapshot.leases == (lease,)
    async with watching(registry, snapshot.revision + 1) as seen:
        renewed = await registry.renew(lease, lease.attrs)
        assert await seen.count(1) == [Put(renewed)]
        await place.delete(f"{place.prefix}/subnets/{lease.key}")
        events = await seen.count(2)
    assert isinstance(events[1], Deleted)  # and none for the revoked etcd lease of before
    assert len(events) == 2


async def test_a_watch_begins_where_it_is_told(place: Place) -> None:
    registry = place.registry()
    first = await registry.create(A, attrs("192.0.2.1"))
    second = await registry.create(B, attrs("192.0.2.2"))
    renewed = await registry.renew(first, attrs("192.0.2.3"))
    async with watching(registry, second.mod_revision) as seen:
        assert await seen.count(2) == [Put(second), Put(renewed)]
        assert seen.batches[-1].revision == renewed.mod_revision


async def test_the_config_is_watched(place: Place) -> None:
    registry = place.registry()
    start = await registry.config()
    async with watching(registry, start.revision + 1) as seen:
        await registry.put_config("one")
        assert await seen.count(1) == [ConfigChanged("one")]
        await place.delete(f"{place.prefix}/config")
        assert await seen.count(2) == [ConfigChanged("one"), ConfigChanged(None)]


async def test_conformance_a_compacted_watch_is_a_gap_and_a_snapshot_recovers(place: Place) -> None:
    registry = place.registry()
    start = (await registry.snapshot()).revision
    gone = await registry.create(A, attrs("192.0.2.1"))
    stays = await registry.create(B, attrs("192.0.2.2"))
    await registry.release(gone)
    await place.compact()
    with pytest.raises(WatchGapError):
        async with watching(registry, start + 1) as seen:
            await seen.count(1)
    snapshot = await registry.snapshot()  # a deletion below the horizon shows in it
    assert snapshot.leases == (stays,)
    async with watching(registry, snapshot.revision + 1) as seen:
        renewed = await registry.renew(stays, stays.attrs)
        assert await seen.count(1) == [Put(renewed)]


async def test_each_kind_of_change_is_told_by_itself(place: Place) -> None:
    """A batch is of leases or of the config; the revision that it tells never goes back."""
    registry = place.registry()
    start = (await registry.snapshot()).revision
    config = await registry.put_config("one")
    lease = await registry.create(A, attrs())
    later = await registry.put_config("two")
    async with watching(registry, start + 1) as seen:
        await seen.count(3)
    told = [batch for batch in seen.batches if batch.events]
    assert all(len({isinstance(event, ConfigChanged) for event in batch.events}) == 1 for batch in told)
    assert [event for event in seen.events if isinstance(event, ConfigChanged)] == [ConfigChanged("one"), ConfigChanged("two")]
    assert Put(lease) in seen.events
    revisions = [batch.revision for batch in seen.batches]
    assert revisions == sorted(revisions)
    assert revisions[-1] == later > config


async def test_a_watch_that_stands_again_says_so_also_where_the_store_is_further(place: Place) -> None:
    """After every reconnect: the store may be a restored one that has got further meanwhile, with changes nobody was told of."""
    registry = place.registry()
    lease = await registry.create(A, attrs())
    async with watching(registry, lease.mod_revision) as seen:
        await seen.count(1)
        for times in (2, 3):
            await place.stop()
            await place.start()
            other = await place.registry().renew(lease, attrs("192.0.2.9"))
            await seen.until(lambda seen: [batch.connected for batch in seen.batches].count(True) == times)  # noqa: B023
            await seen.until(lambda seen: Put(other) in seen.events)  # noqa: B023
            lease = other
    connected = [batch for batch in seen.batches if batch.connected]
    assert all(not batch.events for batch in connected)


async def test_compaction_does_not_disturb_a_watch_that_stands(place: Place) -> None:
    registry = place.registry()
    async with watching(registry, (await registry.snapshot()).revision + 1) as seen:
        lease = await registry.create(A, attrs())
        await seen.count(1)
        await place.compact()
        renewed = await registry.renew(lease, lease.attrs)
        assert await seen.count(2) == [Put(lease), Put(renewed)]


async def test_a_store_that_went_back_in_time_is_a_gap(place: Place) -> None:
    """Restored from a backup, etcd counts from an older revision; to wait for ours would skip what is written until then."""
    registry = place.registry()
    ahead = (await registry.snapshot()).revision + 1000
    with pytest.raises(WatchGapError, match=r"expected \d+ or later; restored"):
        async with watching(registry, ahead) as seen:
            await seen.until(lambda seen: len(seen.batches) > 100)


async def test_conformance_a_watch_survives_compaction_and_restart(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs("192.0.2.1"))
    await registry.put_config("{}")
    async with watching(registry, lease.create_revision) as seen:
        await seen.count(2)
        await place.stop()
        await place.start()
        connected = sum(not batch.events for batch in seen.batches)
        await seen.standing(connected + 1)
        other = await place.registry().create(B, attrs("192.0.2.2"))
        await seen.until(lambda seen: Put(other) in seen.events)
    # Each was told once: nothing is repeated and nothing is lost over a reconnect.
    assert [event for event in seen.events if isinstance(event, Put)] == [Put(lease), Put(other)]


async def test_new_connections_are_had_at_a_word_and_nothing_is_lost(place: Place) -> None:
    """As where this host has another address: what the old connections are good for nobody can tell."""
    registry, other = place.registry(), place.registry()
    lease = await registry.create(A, attrs())
    async with watching(registry, lease.mod_revision) as seen:
        await seen.count(1)
        for times in (2, 3):
            registry.reconnect()
            lease = await other.renew(lease, attrs("192.0.2.9"))
            await seen.standing(times)
            assert (await registry.snapshot()).leases == (lease,)
            await seen.until(lambda seen: Put(lease) in seen.events)  # noqa: B023
    assert len(seen.events) == 3
    assert registry.alive
    registry.reconnect()  # where nothing stands, nothing happens
    assert (await registry.snapshot()).leases == (lease,)


async def test_changes_while_the_registry_is_away_are_seen_afterwards(place: Place) -> None:
    registry, other = place.registry(), place.registry()
    lease = await other.create(A, attrs())
    async with watching(registry, lease.mod_revision) as seen:
        await seen.count(1)
        await place.stop()
        with pytest.raises(RegistryUnavailableError):
            await registry.snapshot()
        assert seen.ended is None  # silent, not ended
        await place.start()
        await other.release(lease)
        *_, last = await seen.count(2)
    assert isinstance(last, Deleted)


async def test_no_answer_is_never_an_empty_one(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs())
    await place.stop()
    for call in (
        registry.config(),
        registry.snapshot(),
        registry.put_config("{}"),
        registry.create(B, attrs()),
        registry.renew(lease, lease.attrs),
        registry.keep_alive(lease),
        registry.remaining(lease),
        registry.release(lease),
    ):
        async with bounded():
            with pytest.raises(RegistryUnavailableError):
                await call
    await place.start()
    assert (await registry.snapshot()).leases == (lease,)
    assert registry.alive


async def test_conformance_a_cancelled_watch_returns_promptly(place: Place) -> None:
    registry = place.registry()
    batches = registry.watch(1 + (await registry.snapshot()).revision)
    await anext(batches)
    waiting = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0)
    waiting.cancel()
    async with bounded(1):
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_close_ends_a_watch_and_later_calls_say_so(place: Place) -> None:
    registry = place.registry()
    async with watching(registry, 1 + (await registry.snapshot()).revision) as seen:
        waiting = asyncio.ensure_future(registry.snapshot())
        await registry.close()
        await registry.close()
        await asyncio.wait([waiting])
        assert seen.ended is None
    assert waiting.exception() is None or isinstance(waiting.exception(), RegistryUnavailableError)
    with pytest.raises(RegistryUnavailableError):
        await registry.snapshot()


# --------------------------------------------------------------------------------------------- what others write


BAD_KEYS = {
    "10.5.3.0": "'10.5.3.0' is not a subnet key",
    "10.5.3.300-24": "'10.5.3.300-24' is not a subnet key",
    "10.5.3.0-32": "'10.5.3.0-32' is not a subnet key",
    "a/b": "'a/b' is not a subnet key",
    "10.5.3.0-24&:12:13:-56": "is not a subnet key",
}
BAD_VALUES = {
    "10.5.4.0-24": ("", "not JSON"),
    "10.5.5.0-24": ("[1]", "expected a JSON object"),
    "10.5.6.0-24": ('{"PublicIP":null}', "PublicIP null: expected an IPv4 address"),
    "10.5.7.0-24": ('{"PublicIP":"fd00::1"}', "expected an IPv4 address"),
}


async def test_malformed_keys_and_values_are_reported_and_hide_nothing(place: Place) -> None:
    registry = place.registry()
    start = (await registry.snapshot()).revision
    async with watching(registry, start + 1) as seen:
        for name in BAD_KEYS:
            await place.put(f"{place.prefix}/subnets/{name}", '{"PublicIP":"192.0.2.9"}')
        for name, (value, _) in BAD_VALUES.items():
            await place.put(f"{place.prefix}/subnets/{name}", value)
        lease = await registry.create(A, attrs())
        events = await seen.count(len(BAD_KEYS) + len(BAD_VALUES) + 1)
        assert events[-1] == Put(lease)
        expected = {**BAD_KEYS, **{name: why for name, (_, why) in BAD_VALUES.items()}}
        told = {event.key: event.why for event in events if isinstance(event, Malformed)}
        assert told.keys() == expected.keys()
        for name, why in expected.items():
            assert why in told[name]
        snapshot = await registry.snapshot()
        assert snapshot.leases == (lease,)
        assert {bad.key: bad.why for bad in snapshot.malformed} == told
        assert all(bad.mod_revision > start for bad in snapshot.malformed)

        await place.delete(f"{place.prefix}/subnets/10.5.3.0-32")  # what was said about it can be taken back
        *_, gone = await seen.count(len(events) + 1)
        assert isinstance(gone, Deleted)
        assert gone.key == "10.5.3.0-32"


async def test_conformance_junk_beside_the_subnets_is_not_seen(place: Place) -> None:
    registry = place.registry()
    start = (await registry.snapshot()).revision
    async with watching(registry, start + 1) as seen:
        for key in ("subnets-oops", "subnets", "subnets0", "config2", "x/subnets/10.5.9.0-24"):
            await place.put(f"{place.prefix}/{key}", "1")
        lease = await registry.create(A, attrs())
        assert await seen.count(1) == [Put(lease)]
    snapshot = await registry.snapshot()
    assert (snapshot.leases, snapshot.malformed) == ((lease,), ())


async def test_ten_thousand_leases_are_listed_in_order(place: Place) -> None:
    names = [f"10.{5 + number // 256}.{number % 256}.0-24" for number in range(10_000)]
    value = attrs(backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}).to_json()
    await place.fill([(f"{place.prefix}/subnets/{name}", value) for name in names])
    async with bounded():
        snapshot = await place.registry().snapshot()
    assert [lease.key for lease in snapshot.leases] == sorted(names)
    assert snapshot.malformed == ()
    assert snapshot.leases[77].attrs == LeaseAttrs.from_json(value)


# ------------------------------------------------------------------------------------------- the fake's own switches


async def test_one_host_can_be_cut_off_alone() -> None:
    here = MemoryPlace("/p")
    cut, fine = MemoryRegistry(here.store, "/p"), MemoryRegistry(here.store, "/p")
    cut.down = True
    with pytest.raises(RegistryUnavailableError):
        await cut.snapshot()
    lease = await fine.create(A, attrs())
    assert not cut.alive
    assert fine.alive
    cut.down = False
    assert (await cut.snapshot()).leases == (lease,)


async def test_a_dropped_watch_resumes_or_finds_a_gap() -> None:
    here = MemoryPlace("/p")
    registry = here.registry()
    async with watching(registry, here.store.revision + 1) as seen:
        lease = await registry.create(A, attrs())
        await seen.count(1)
        here.store.drop_watches()
        await seen.standing(2)
        assert seen.events == [Put(lease)]
    async with watching(registry, lease.mod_revision) as seen:
        await seen.count(1)
        here.store.down = True
        await here.put("/p/subnets/10.5.9.0-24", "{}")
        await here.put("/p/subnets/10.5.9.0-24", "{}")
        await here.compact()
        here.store.start()
        here.store.drop_watches()
        with pytest.raises(WatchGapError):
            await seen.standing(3)


async def test_expire_ends_one_lease_at_once() -> None:
    here = MemoryPlace("/p")
    registry = here.registry()
    lease, other = await registry.create(A, attrs()), await registry.create(B, attrs())
    here.store.expire(f"/p/subnets/{lease.key}")
    assert (await registry.snapshot()).leases == (other,)


@pytest.mark.parametrize("method", METHODS)
async def test_any_call_can_fail_before_or_after_its_work(method: str) -> None:
    here = MemoryPlace("/p")
    registry = MemoryRegistry(here.store, "/p")
    lease = await registry.create(A, attrs())
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "config": registry.config,
        "put_config": lambda: registry.put_config("{}"),
        "snapshot": registry.snapshot,
        "watch": lambda: anext(registry.watch(1)),
        "create": lambda: registry.create(B, attrs()),
        "renew": lambda: registry.renew(lease, attrs()),
        "keep_alive": lambda: registry.keep_alive(lease),
        "remaining": lambda: registry.remaining(lease),
        "release": lambda: registry.release(lease),
        "outliving": lambda: registry.outliving([lease]),
    }
    for error in (RegistryRefusedError("full"), RegistryAuthError("who?"), RegistryUnavailableError("gone"), WatchGapError("gap")):
        revision = here.store.revision
        registry.fail(method, error, times=2)
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                await calls[method]()
            assert caught.value.undecided is isinstance(error, RegistryUnavailableError)
        assert here.store.revision == revision
    registry.fail(method, error, times=math.inf)
    with pytest.raises(WatchGapError):
        await calls[method]()
    registry.mend(method)
    if method != "watch":
        registry.fail(method, RegistryUnavailableError("unheard"), carried_out=True)
        with pytest.raises(RegistryUnavailableError):
            await calls[method]()
        assert (here.store.revision > revision) is (method in ("put_config", "create", "renew", "release"))


async def test_a_watch_that_stands_can_fail_too() -> None:
    here = MemoryPlace("/p")
    registry = MemoryRegistry(here.store, "/p")
    async with watching(registry, here.store.revision + 1) as seen:
        registry.fail("watch", RegistryUnavailableError("cut"))
        with pytest.raises(RegistryUnavailableError):
            await seen.count(1)
    async with watching(registry, here.store.revision + 1) as seen:
        lease = await registry.create(A, attrs())
        assert await seen.count(1) == [Put(lease)]


def test_what_cannot_fail_is_a_mistake_in_the_test() -> None:
    with pytest.raises(ValueError, match="expected one of config, put_config"):
        MemoryRegistry().fail("snapshots", RegistryUnavailableError("gone"))


# --------------------------------------------------------------------------------------------- beside the leases


async def test_what_is_offered_stands_beside_the_lease_and_is_heard(place: Place) -> None:
    ours, theirs = place.registry(), place.registry()
    lease = await ours.create(A, attrs("192.0.2.1"))
    await ours.offer(lease, "first")
    assert await place.get(f"{place.prefix}/flannelpy/hosts/10.5.1.0-24") == "first"
    async with bounded(), aclosing(cast(AsyncGenerator[Offered, None], theirs.offers())) as heard:
        assert await anext(heard) == Offered({"10.5.1.0-24": b"first"}, whole=True)
        await ours.offer(lease, "second")
        assert await anext(heard) == Offered({"10.5.1.0-24": b"second"})
        await ours.offer(lease, None)
        assert await anext(heard) == Offered({"10.5.1.0-24": None})
        await ours.offer(lease, None)  # once more is no change


async def test_what_is_offered_goes_with_the_lease_over_a_renewal(place: Place) -> None:
    registry = place.registry()
    lease = await registry.create(A, attrs("192.0.2.1"))
    await registry.offer(lease, "text")
    renewed = await registry.renew(lease, attrs("192.0.2.1"))
    assert renewed.etcd_lease != lease.etcd_lease
    assert await place.get(f"{place.prefix}/flannelpy/hosts/10.5.1.0-24") == "text"
    with pytest.raises(ConflictError):
        await registry.offer(lease, "of a lease that is another one now")
    text = await place.get(f"{place.prefix}/subnets/10.5.1.0-24")
    assert text == '{"PublicIP":"192.0.2.1","PublicIPv6":null}'


async def test_leases_know_nothing_of_what_stands_beside_them(place: Place) -> None:
    registry = place.registry()
    await place.put(f"{place.prefix}/flannelpy/hosts/10.5.2.0-24", "x" * 100_000)
    async with bounded(), aclosing(cast(AsyncGenerator[Offered, None], registry.offers())) as heard:
        value = (await anext(heard)).values["10.5.2.0-24"]
        assert value is not None
        assert MOST < len(value) <= 100_000  # as much as shows that it is too long for an offer
    snapshot = await registry.snapshot()
    assert (snapshot.leases, snapshot.malformed) == ((), ())
