"""Does it connect where etcd is far away or hard to reach? Long round trips, endpoints that say nothing, or that come up late."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from flannelpy.core.errors import RegistryUnavailableError, WatchGapError
from flannelpy.registry import Event, Put
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.registry.etcd.stream import Pace
from netns_lab.etcd import Etcd, make_certificates

from .proxies import Proxy, mute
from .registry_place import attrs, bounded, net, patiently, watching

A = net("10.5.1.0/24")


async def test_three_endpoints_with_tls_and_a_round_trip_of_0_7_s_are_reached(tmp_path: Path) -> None:
    """TCP, TLS, HTTP/2 and the question are four round trips, 2.8 s: more than a third of the deadline of 5 s."""
    with Etcd(tls=make_certificates(tmp_path)) as etcd:
        async with contextlib.AsyncExitStack() as stack:
            ways = [await stack.enter_async_context(Proxy(etcd.ports[0], round_trip_s=0.7)) for _ in range(3)]
            endpoint = etcd.endpoint("/far", urls=tuple(f"https://127.0.0.1:{way.port}" for way in ways))
            registry = EtcdRegistry(endpoint)
            stack.push_async_callback(registry.close)
            async with bounded(12):  # 8 are enough where the machine has nothing else to do
                assert (await registry.config()).text is None
                start = (await registry.snapshot()).revision
                lease = await registry.create(A, attrs())
                async with watching(registry, start + 1) as seen:
                    assert await seen.count(1) == [Put(lease)]
            assert registry.alive


async def test_a_connection_that_takes_longer_than_a_call_is_used_by_the_next(shared_etcd: Etcd, prefix: str) -> None:
    async with Proxy(shared_etcd.ports[0], round_trip_s=0.4) as way:
        url = f"http://127.0.0.1:{way.port}"
        registry = EtcdRegistry(shared_etcd.endpoint(prefix, urls=(url,), timeout_s=0.5))
        with pytest.raises(RegistryUnavailableError, match="no answer in time") as caught:
            await registry.config()
        assert not caught.value.undecided  # nothing was sent
        async with bounded():
            while await gives_up(registry.config()):
                pass
        assert way.connections == 1
        await registry.close()


async def gives_up(call: Awaitable[object]) -> bool:
    try:
        await call
    except RegistryUnavailableError:
        return True
    return False


async def test_endpoints_that_say_nothing_cost_a_moment_each(shared_etcd: Etcd, prefix: str) -> None:
    with mute() as one, mute() as two:
        registry = EtcdRegistry(shared_etcd.endpoint(prefix, urls=(one, two, shared_etcd.urls[0]), timeout_s=5.0))
        started = time.monotonic()
        assert (await registry.config()).text is None
        assert time.monotonic() - started < 4.0  # two thirds of the deadline, if each were waited for
        assert registry.endpoint == shared_etcd.urls[0]
        await registry.close()


async def test_an_endpoint_that_comes_up_while_others_are_silent_is_found(shared_etcd: Etcd, prefix: str) -> None:
    """It was refused in the first round; the silent one is still waited for."""
    with mute() as silent, socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        late = reserved.getsockname()[1]
        registry = EtcdRegistry(
            shared_etcd.endpoint(prefix, urls=(f"http://127.0.0.1:{late}", silent), timeout_s=1.0), Pace(backoff_s=0.05)
        )
        with pytest.raises(RegistryUnavailableError, match=r"connection refused; .*no answer in time"):
            await registry.config()
        reserved.close()

        async with Proxy(shared_etcd.ports[0], listen=late), bounded(), watching(registry, 1):
            assert registry.endpoint == f"http://127.0.0.1:{late}"
        await registry.close()


async def test_what_was_not_needed_is_closed(shared_etcd: Etcd, prefix: str) -> None:
    """Of the connections that were tried side by side one is kept, and at the end none; no task is left behind."""
    (url,) = shared_etcd.urls
    before = asyncio.all_tasks()
    with mute() as silent:
        registry = EtcdRegistry(shared_etcd.endpoint(prefix, urls=(silent, url, url.replace("127.0.0.1", "localhost"))))
        await registry.config()
        await patiently(lambda: len(registry._link._wires) == 1 and not registry._link._closing)
        await registry.close()
        await patiently(lambda: asyncio.all_tasks() == before)


async def test_closing_while_nobody_stands_is_prompt(shared_etcd: Etcd) -> None:
    with mute() as silent:
        registry = EtcdRegistry(shared_etcd.endpoint("/t", urls=(silent,)))
        asking = asyncio.ensure_future(registry.config())
        await patiently(lambda: registry._link._connecting is not None)
        async with bounded(2):
            await registry.close()
            with pytest.raises(RegistryUnavailableError, match="closed"):
                await asking


async def test_a_connection_that_was_closed_between_two_calls_costs_none_of_them(shared_etcd: Etcd, prefix: str) -> None:
    async with Proxy(shared_etcd.ports[0]) as way:
        registry = EtcdRegistry(shared_etcd.endpoint(prefix, urls=(f"http://127.0.0.1:{way.port}",)))
        for times in range(1, 4):
            await registry.config()
            assert way.connections == times
            wire = registry._link._wire
            assert wire is not None
            way.cut()
            await patiently(lambda wire=wire: not wire.stands)
        await registry.close()


# ------------------------------------------------------------------------------------------------- an etcd that takes its time


Slow = tuple[EtcdRegistry, list[Proxy]]


@contextlib.asynccontextmanager
async def slow(etcd: Etcd, prefix: str, endpoints: int, thinks_s: float, pace: Pace | None = None) -> AsyncIterator[Slow]:
    """A registry at so many endpoints, of which each answers ``thinks_s`` late; connections are made at once."""
    async with contextlib.AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(Proxy(etcd.ports[0], answer_s=thinks_s)) for _ in range(endpoints)]
        urls = tuple(f"http://127.0.0.1:{way.port}" for way in ways)
        registry = EtcdRegistry(etcd.endpoint(prefix, urls=urls, timeout_s=0.6), pace)
        stack.push_async_callback(registry.close)
        yield registry, ways


@pytest.mark.parametrize(("endpoints", "thinks_s"), [(1, 0.4), (2, 0.5), (3, 0.3), (3, 0.5)])
async def test_an_etcd_that_is_slow_at_every_endpoint_is_waited_for_longer(
    shared_etcd: Etcd, prefix: str, endpoints: int, thinks_s: float
) -> None:
    """Each endpoint has its share of the deadline, a compare-and-swap twice at one. What none of them does in its share is asked
    for longer the next time, or an etcd with slow disks would answer nobody, ever.
    """
    async with slow(shared_etcd, prefix, endpoints, thinks_s) as (registry, ways):
        for call in (registry.config, lambda: registry.create(A, attrs())):
            for turns in range(1, 6):
                if not await gives_up(call()):
                    break
                assert turns < 5
        late = registry._link.late["ask"]
        for way in ways:
            way.answer_s = 0.75 * 0.6 / endpoints  # in time, but hardly
        for _ in range(3):
            await registry.config()
        assert registry._link.late["ask"] == late
        for way in ways:
            way.answer_s = 0.0
        for number in range(2, 5):  # what etcd is thinking about still comes late
            await registry.config()
            await registry.create(net(f"10.5.{number}.0/24"), attrs())
        assert not any(registry._link.late.values())


@pytest.mark.parametrize("endpoints", [1, 2])
async def test_a_watch_whose_etcd_is_slow_stands_all_the_same(shared_etcd: Etcd, prefix: str, endpoints: int) -> None:
    """What is not answered in time is deaf, and the next stream is more patient: else each would be given up as the one before."""
    pace = Pace(silence_s=0.1, answer_s=0.2, backoff_s=0.05, backoff_max_s=0.1)
    direct = EtcdRegistry(shared_etcd.endpoint(prefix))
    start = (await direct.snapshot()).revision
    seen = list[Event]()

    async def follow() -> None:
        while True:
            with contextlib.suppress(WatchGapError):  # streams that died at one revision; whoever follows lists then
                async for batch in registry.watch(start + 1):
                    seen.extend(batch.events)

    async with slow(shared_etcd, prefix, endpoints, 0.65, pace) as (registry, ways):
        following = asyncio.create_task(follow())
        await patiently(lambda: registry._link.late["watch"] // endpoints == 2)
        lease = await direct.create(A, attrs())
        await patiently(lambda: Put(lease) in seen)
        made = sum(way.connections for way in ways)
        for thinks_s in (0.65, 0.15, 0.65):
            for way in ways:
                way.answer_s = thinks_s
            await asyncio.sleep(1.5)
        assert sum(way.connections for way in ways) == made
        for way in ways:
            way.answer_s = 0.0
        await patiently(lambda: registry._link.late["watch"] == 0)
        for way in ways:
            way.go_deaf()
        await patiently(lambda: sum(way.connections for way in ways) > made)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await direct.close()
