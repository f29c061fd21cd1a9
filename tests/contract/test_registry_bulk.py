"""Does anything below the prefix make the registry blind? Values of any size, keys of any name, a backlog of any length."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from flannelpy.core.errors import RegistryUnavailableError, WatchGapError
from flannelpy.registry import Deleted, Put, Snapshot
from flannelpy.registry.etcd import listing, watch, wire
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.registry.etcd.stream import Pace, Stream
from flannelpy.registry.etcd.wire import rpc
from netns_lab.etcd import Etcd

from .etcd_parts import member, proxy
from .proxies import Proxy
from .registry_place import EtcdPlace, MemoryPlace, attrs, bounded, net, patiently, watching
from .test_registry_parts import PREFIX, opened

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")
MB = 1_000_000


async def put_all(place: EtcdPlace, values: list[tuple[str, str]]) -> None:
    """One after the other: together they may be more than etcd takes in one transaction."""
    for value in values:
        await place.fill([value])


def bytes_heard(registry: EtcdRegistry, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all answers to a listing's questions, from now on."""
    sizes: list[int] = []
    ask = listing.Listing._ask

    async def counted(self: listing.Listing, method: str, request: object) -> object:
        answer = await ask(self, method, request)
        sizes.append(answer.ByteSize())
        return answer

    monkeypatch.setattr(listing.Listing, "_ask", counted)
    return sizes


# ---------------------------------------------------------------------------------------------------------------- listing


async def test_a_hundred_megabytes_of_junk_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Etcd() as etcd:
        here = EtcdPlace(etcd, "/p", timeout_s=15.0)
        registry = here.registry()
        assert isinstance(registry, EtcdRegistry)
        lease = await registry.create(A, attrs())
        await put_all(here, [(f"/p/subnets/junk{number}", "x" * 1_400_000) for number in range(70)])
        other = await registry.create(B, attrs())
        heard = bytes_heard(registry, monkeypatch)
        for _ in range(2):
            async with bounded():
                snapshot = await registry.snapshot()
            assert snapshot.leases == (lease, other)
            assert len(snapshot.malformed) == 70
            assert snapshot.malformed[0].why.startswith("'junk0' is not a subnet key")
        assert sum(heard) < 0.1 * MB
        etcd.ctl("del", "--prefix", "/p/subnets/junk")
        assert (await registry.snapshot()).malformed == ()
        heard.clear()
        assert (await registry.snapshot()).leases == (lease, other)
        assert len(heard) == 1  # one range read again, as ever
        await here.close()


async def test_a_hundred_thousand_stray_keys_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Etcd() as etcd:
        here = EtcdPlace(etcd, "/p", timeout_s=15.0)
        registry = here.registry()
        lease = await registry.create(A, attrs())
        await here.fill([(f"/p/subnets/stray{number:06}", "x") for number in range(100_000)])
        async with bounded(30):
            snapshot = await registry.snapshot()
        assert snapshot.leases == (lease,)
        assert len(snapshot.malformed) == 100_000
        await here.close()


async def test_names_without_end_are_listed_by_their_beginnings_and_few_bytes_are_kept() -> None:
    """Keys of 1.4 MB, which are four letters a byte where they are escaped, and short strays before and behind them."""
    with Etcd() as etcd:
        here = EtcdPlace(etcd, "/p", timeout_s=15.0)
        registry = here.registry()
        lease = await registry.create(A, attrs())
        for number in range(40):
            request = rpc.PutRequest(key=f"/p/subnets/{number}".encode() + b"\x1b" * 1_400_000, value=b"x")
            await registry._link.ask(lambda wire, request=request, **how: wire.kv.Put(request, **how))  # type: ignore[attr-defined]
        await here.fill([(f"/p/subnets/stray{number:06}", "x") for number in range(3_000)])
        tracemalloc.start()
        try:
            snapshot = await registry.snapshot()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 5 * MB
        assert snapshot.leases == (lease,)
        assert len({bad.key for bad in snapshot.malformed}) == 3_040
        assert max(len(bad.key) for bad in snapshot.malformed) < 500
        async with watching(registry, snapshot.revision + 1) as seen:
            await registry._link.ask(  # type: ignore[attr-defined]
                lambda wire, **how: wire.kv.DeleteRange(
                    rpc.DeleteRangeRequest(key=b"/p/subnets/7\x1b", range_end=b"/p/subnets/8"), **how
                )
            )
            (gone,) = await seen.count(1)
        assert isinstance(gone, Deleted)
        assert [gone.key] == [bad.key for bad in snapshot.malformed if bad.key.startswith("7")]  # known by the same name
        await here.close()


async def test_a_listing_that_took_too_long_asks_for_less_the_next_time(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = here.registry()
    lease = await registry.create(A, attrs())
    ask, asked = listing.Listing._ask, list[bool]()

    async def slow(self: listing.Listing, method: str, request: Any) -> Any:
        asked.append(method == "Txn" or request.keys_only)
        if not asked[-1]:
            raise RegistryUnavailableError("no answer in time")
        return await ask(self, method, request)

    monkeypatch.setattr(listing.Listing, "_ask", slow)
    with pytest.raises(RegistryUnavailableError):
        await registry.snapshot()
    assert (await registry.snapshot()).leases == (lease,)
    assert asked == [False, True, True]
    monkeypatch.undo()
    heard = bytes_heard(registry, monkeypatch)  # type: ignore[arg-type]
    assert (await registry.snapshot()).leases == (lease,)
    assert len(heard) == 1  # as ever


async def test_after_a_page_that_was_too_large_pages_grow_again(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_MAX", 1 << 20)
    registry = here.registry()
    assert isinstance(registry, EtcdRegistry)
    registry._listing.careful = True
    request = rpc.PutRequest(key=f"{here.prefix}/subnets/0".encode() + b"x" * 900_000, value=b"x")
    await registry._link.ask(lambda wire, **how: wire.kv.Put(request, **how))
    await here.fill([(f"{here.prefix}/subnets/stray{number:06}", "x") for number in range(12_000)])
    heard = bytes_heard(registry, monkeypatch)
    assert len((await registry.snapshot()).malformed) == 12_001
    assert len(heard) < 20


async def test_a_single_value_that_does_not_fit_is_malformed_by_its_key(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_MAX", 1 << 20)
    monkeypatch.setattr(listing, "MESSAGE_MAX", 1 << 20)
    registry = here.registry()
    leases = [await registry.create(net(f"10.5.{number}.0/24"), attrs()) for number in range(1, 20)]
    await put_all(here, [(f"{here.prefix}/subnets/10.5.7.0-24", '{"PublicIP":"192.0.2.7","x":"' + "y" * 1_200_000 + '"}')])
    snapshot = await registry.snapshot()
    stay = [lease for lease in leases if lease.subnet != net("10.5.7.0/24")]
    assert snapshot.leases == tuple(sorted(stay, key=lambda lease: lease.key))
    (bad,) = snapshot.malformed
    assert (bad.key, bad.why) == ("10.5.7.0-24", "its value does not fit into 1 MiB")
    assert bad.mod_revision > leases[-1].mod_revision
    assert [lease.subnet for lease in snapshot.defaced] == [net("10.5.7.0/24")]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_there_is_listed_as_from_memory(seed: int, here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases, strays between them, values of all sizes; etcd and memory hold the same, and one answer holds little."""
    monkeypatch.setattr(wire, "MESSAGE_MAX", 50_000)
    monkeypatch.setattr(listing, "RANGES", 7)
    monkeypatch.setattr(listing, "PAGE", 30)
    monkeypatch.setattr(listing, "NAMES", 40)
    dice = random.Random(seed)
    memory = MemoryPlace(here.prefix)
    values: dict[str, str] = {}
    for number in range(120):
        stray = "".join(dice.choices("x&-. é", k=dice.randint(0, 3))) if dice.random() < 0.4 else ""
        value = attrs(f"192.0.2.{number + 1}", backend_data={"x": "y" * dice.choice([0, 10, 5_000, 30_000])}).to_json()
        values[f"{here.prefix}/subnets/10.5.{number}.0-24{stray}"] = dice.choice([value, value, value, "", "[1]"])
    values[f"{here.prefix}/subnets/" + "long" * 2_000] = ""
    await put_all(here, list(values.items()))
    await memory.fill(list(values.items()))
    found, expected = await here.registry().snapshot(), await memory.registry().snapshot()
    assert [lease.key for lease in found.leases] == [lease.key for lease in expected.leases]
    assert [lease.attrs for lease in found.leases] == [lease.attrs for lease in expected.leases]
    assert {(bad.key, bad.why) for bad in found.malformed} == {(bad.key, bad.why) for bad in expected.malformed}


# --------------------------------------------------------------------------------------------------------------- watching


@contextlib.asynccontextmanager
async def following(registry: EtcdRegistry, revision: int) -> AsyncIterator[list[Put | Snapshot]]:
    """What an agent learns: puts, and a listing after each gap."""
    learned: list[Put | Snapshot] = []

    async def follow() -> None:
        at = revision
        while True:
            try:
                async for batch in registry.watch(at + 1):
                    learned.extend(event for event in batch.events if isinstance(event, Put))
            except WatchGapError:
                learned.append(await registry.snapshot())
                at = learned[-1].revision

    task = asyncio.create_task(follow())
    try:
        yield learned
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("by_proxy", [False, True], ids=["directly", "by a proxy"])
async def test_a_backlog_of_a_hundred_megabytes_is_got_past(by_proxy: bool) -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(member("3.5"))
        through = stack.enter_context(proxy("3.5", url)) if by_proxy else url
        async with opened(url) as writer, opened(through) as registry:
            start = (await writer.snapshot()).revision
            request = rpc.PutRequest(key=f"{PREFIX}/subnets/junk".encode(), value=b"x" * 1_400_000)
            for _ in range(70):
                await writer._link.ask(lambda wire, **how: wire.kv.Put(request, **how))
            async with following(registry, start) as learned:
                lease = await writer.create(A, attrs())
                await patiently(lambda: any(_knows(each, lease.key) for each in learned))
                renewed = await writer.renew(lease, attrs("192.0.2.9"))
                await patiently(lambda: Put(renewed) in learned)
                if not by_proxy:
                    assert learned == [Put(lease), Put(renewed)]  # in parts, and no gap
            assert registry.trouble is None


def _knows(learned: Put | Snapshot, key: str) -> bool:
    return learned.lease.key == key if isinstance(learned, Put) else key in {lease.key for lease in learned.leases}


async def test_an_event_that_does_not_fit_is_a_gap_and_the_watch_goes_on_behind_it(
    here: EtcdPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MESSAGE_MAX", 1 << 20)
    registry, other = here.registry(), here.registry()
    assert isinstance(registry, EtcdRegistry)
    async with following(registry, (await registry.snapshot()).revision) as learned:
        await put_all(here, [(f"{here.prefix}/subnets/junk", "x" * 1_200_000)])
        lease = await other.create(A, attrs())
        await patiently(lambda: any(_knows(each, lease.key) for each in learned))
        renewed = await other.renew(lease, attrs("192.0.2.9"))
        await patiently(lambda: Put(renewed) in learned)


async def test_a_watch_that_is_shown_too_much_says_that_it_is_a_gap(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_MAX", 1 << 20)
    registry = here.registry()
    start = (await registry.snapshot()).revision
    await put_all(here, [(f"{here.prefix}/subnets/junk", "x" * 1_200_000)])
    with pytest.raises(WatchGapError, match=r"more than 8 MiB; .*listing anew"):
        async with watching(registry, start + 1) as seen:
            await seen.count(1)


# -------------------------------------------------------------------------------------------- streams that do not last


class Dying:
    """An etcd whose watches stand, and die before anything is told."""

    def __init__(self) -> None:
        self.streams = 0

    async def __aenter__(self) -> Dying:
        dying = self

        class Watches(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
                if not call.method.endswith("/Watch"):
                    return None

                async def watch(requests: AsyncIterator[bytes], context: aio.ServicerContext) -> AsyncIterator[bytes]:
                    dying.streams += 1
                    for number in range(2):
                        await anext(requests)
                        answer = rpc.WatchResponse(watch_id=number, created=True)
                        answer.header.revision = 5
                        yield answer.SerializeToString()
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "transport is closing")

                return grpc.stream_stream_rpc_method_handler(watch)

        self._server = aio.server()
        self._server.add_generic_rpc_handlers((Watches(),))
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


async def test_a_stream_that_dies_twice_before_its_first_event_is_a_gap_and_pauses_grow() -> None:
    async with Dying() as dying, bounded(), opened(dying.url, pace=Pace(backoff_s=0.001, backoff_max_s=0.02)) as registry:
        for deaths in (2, 4, 8):  # a gap that did not help is found less soon
            before = dying.streams
            with pytest.raises(WatchGapError, match=f"{deaths} times before revision 5"):
                await drain(registry, 5)
            assert dying.streams - before == deaths
        assert registry._link.backoff.tries == 14  # it never began anew
        assert registry.trouble is not None  # that they stand is no recovery


async def drain(registry: EtcdRegistry, revision: int) -> None:
    async for batch in registry.watch(revision):
        assert batch.connected


async def test_only_an_event_or_an_answer_ends_what_was_the_matter(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "DEATHS", 100)
    async with Proxy(here.etcd.ports[0]) as way:
        endpoint = here.etcd.endpoint(here.prefix, urls=(f"http://127.0.0.1:{way.port}",))
        registry = EtcdRegistry(endpoint, Pace(silence_s=5.0, backoff_s=0.05))
        lease = await here.registry().create(A, attrs())
        async with watching(registry, lease.mod_revision + 1) as seen:
            for times in (2, 3):
                way.cut()
                await seen.standing(times)
            assert isinstance(registry.trouble, RegistryUnavailableError)
            assert registry._link.backoff.tries == 2
            await patiently(lambda: registry.trouble is None)  # the first question comes early
            for times in (4, 5):
                way.cut()
                await seen.standing(times)
            assert registry.trouble is not None
            await here.registry().renew(lease, lease.attrs)
            await seen.count(1)
            assert registry.trouble is None
        await registry.close()


async def test_a_guard_that_fails_cuts_the_stream_it_guards(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Stream) -> bool:
        raise RuntimeError("a bug")

    registry = here.registry()
    lease = await registry.create(A, attrs())
    ask = Stream._ask
    async with watching(registry, lease.mod_revision + 1) as seen:
        monkeypatch.setattr(Stream, "_ask", fail)
        await seen.standing(3)
        assert "guard failed: RuntimeError('a bug')" in str(registry.trouble)
        monkeypatch.setattr(Stream, "_ask", ask)
        renewed = await registry.renew(lease, lease.attrs)
        assert await seen.count(1) == [Put(renewed)]
        await patiently(lambda: registry.trouble is None)
