"""Does it connect where etcd is far away or hard to reach? Long round trips, endpoints that say nothing, or that come up late."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from flannelpy.core.errors import RegistryUnavailableError
from flannelpy.registry import Put
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
