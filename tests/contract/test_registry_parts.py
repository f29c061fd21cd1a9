"""Does the registry get on with every etcd and whatever stands in front of it? Old and new members, gRPC proxies, learners."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from flannelpy.core.errors import RegistryRefusedError, WatchGapError
from flannelpy.registry import ConfigChanged, Deleted, Endpoint, Put
from flannelpy.registry.etcd import channel
from flannelpy.registry.etcd.registry import FEW, EtcdRegistry
from flannelpy.registry.etcd.stream import Pace
from flannelpy.registry.etcd.wire import rpc

from .etcd_parts import MissingError, learner, member, proxy
from .registry_place import QUICK, attrs, bounded, net, patiently, watching

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")
VERSIONS = ("3.4", "3.5", "3.6", "3.7")
PREFIX = "/parts/network"


@contextlib.asynccontextmanager
async def opened(*urls: str, pace: Pace = QUICK) -> AsyncIterator[EtcdRegistry]:
    registry = EtcdRegistry(Endpoint(urls, PREFIX), pace)
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def etcd(version: str) -> Iterator[str]:
    """A member of that version; its URL."""
    try:
        with member(version) as url:
            yield url
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["directly", "by a proxy"])
def url(request: pytest.FixtureRequest, version: str, etcd: str) -> Iterator[str]:
    if request.param == "directly":
        yield etcd
        return
    with proxy(version, etcd) as through:
        yield through


@pytest.mark.parametrize("number", [1, FEW, FEW + 1, 60])
async def test_of_however_many_whose_keys_are_gone_it_is_told_how_they_went(url: str, number: int) -> None:
    """Every other lease ended, and its key went with it; the other keys were deleted."""
    async with opened(url) as registry, opened(url) as other:
        leases = [await registry.create(net(f"10.6.{each}.0/24"), attrs()) for each in range(number)]
        for lease in leases[::2]:
            await registry.release(lease)
        for lease in leases[1::2]:
            revoked = rpc.LeaseRevokeRequest(ID=lease.etcd_lease)
            await registry._link.ask(lambda wire, revoked=revoked, **how: wire.lease.LeaseRevoke(revoked, **how))
        assert await other.outliving(leases) == {lease.key for lease in leases[::2]}


async def test_a_lease_is_taken_followed_renewed_kept_and_released(url: str) -> None:
    async with opened(url) as registry, opened(url) as other:
        await registry.put_config("{}")
        start = (await registry.snapshot()).revision
        async with watching(other, start + 1) as seen:
            lease = await registry.create(A, attrs())
            renewed = await registry.renew(lease, attrs("192.0.2.7"))
            assert await registry.keep_alive(renewed) > 0
            assert await registry.remaining(renewed) > 0
            assert (await other.snapshot()).leases == (renewed,)
            await registry.put_config('{"Network": "10.5.0.0/16"}')
            await registry.release(renewed)
            assert await registry.outliving([renewed]) == {renewed.key}
            await seen.count(4)
        # Between the two kinds there is no order; within each there is.
        assert [event for event in seen.events if isinstance(event, ConfigChanged)] == [ConfigChanged('{"Network": "10.5.0.0/16"}')]
        assert [event for event in seen.events if isinstance(event, Put)] == [Put(lease), Put(renewed)]
        assert isinstance([event for event in seen.events if not isinstance(event, ConfigChanged)][-1], Deleted)


async def test_silence_is_no_reason_to_connect_anew(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty questions are answered; the part is not harmed by them, nor the watch cut."""
    answers = 0
    async with opened(url, pace=Pace(silence_s=0.02, answer_s=30.0)) as registry:
        heard = registry._link.heard

        def count() -> None:
            nonlocal answers
            answers += 1
            heard()

        monkeypatch.setattr(type(registry._link), "heard", lambda _: count())
        async with watching(registry, 1 + (await registry.snapshot()).revision) as seen:
            await patiently(lambda: answers > 20)
            assert registry.alive
            assert registry.trouble is None
            lease = await registry.create(B, attrs())
            assert (await seen.count(1))[-1] == Put(lease)
        assert len([batch for batch in seen.batches if batch.connected]) == 1
        await registry.release(lease)


async def test_watches_that_come_later_stand_too(url: str) -> None:
    """A proxy makes one watch of many, and its answer to the later ones tells a revision of long ago."""
    async with opened(url) as registry:
        await registry.put_config("first")
        begin = (await registry.config()).mod_revision
        async with watching(registry, begin) as first:
            await first.count(1)
            lease = await registry.create(A, attrs())
            for number in range(10):
                lease = await registry.renew(lease, attrs(f"192.0.2.{number + 1}"))
            await first.until(lambda seen: Put(lease) in seen.events)
            async with watching(registry, begin) as second:
                await second.until(lambda seen: Put(lease) in seen.events)
            async with watching(registry, lease.mod_revision + 1) as third:
                released = await registry.renew(lease, attrs("192.0.2.99"))
                assert await third.count(1) == [Put(released)]
        await registry.release(released)


async def test_compaction_is_a_gap(url: str) -> None:
    async with opened(url) as registry:
        start = (await registry.snapshot()).revision
        revision = await registry.put_config("one")
        request = rpc.CompactionRequest(revision=revision, physical=True)
        await registry._link.ask(lambda wire, **how: wire.kv.Compact(request, **how))
        with pytest.raises(WatchGapError, match="compacted"):
            async with watching(registry, start) as seen:
                await seen.count(1)


async def test_a_learner_that_comes_first_is_left_for_a_member(version: str) -> None:
    try:
        with member(version) as voter, learner(version, voter) as student:
            async with bounded(), opened(student, voter) as registry:
                start = (await registry.snapshot()).revision
                async with watching(registry, start + 1) as seen:
                    lease = await registry.create(A, attrs())
                    assert await seen.count(1) == [Put(lease)]
                    assert await registry.keep_alive(lease) > 0
                assert registry.endpoint == voter
            async with bounded(), opened(student) as registry:
                with pytest.raises(RegistryRefusedError, match="learner"):
                    await registry.snapshot()
                assert registry.alive  # it answers, and refuses
    except MissingError as missing:
        pytest.skip(str(missing))


async def test_a_proxy_whose_etcd_is_gone_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "LIVENESS_S", 0.5)
    with contextlib.ExitStack() as stack:
        inner = contextlib.ExitStack()
        url = inner.enter_context(member("3.5"))
        stack.callback(inner.close)
        through = stack.enter_context(proxy("3.5", url))
        async with opened(through) as registry, watching(registry, 1 + (await registry.snapshot()).revision):
            assert registry.alive
            await asyncio.to_thread(inner.close)
            await patiently(lambda: not registry.alive)
