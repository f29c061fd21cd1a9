"""Does a day pass in a moment, in the right order, and does a standstill end?"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.virtual_time import NothingLeftError, VirtualLoop, run

DAY_S = 86_400.0


def test_a_day_of_waiting_takes_no_time_and_is_a_day_on_the_loop() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        for _ in range(24):
            await asyncio.sleep(DAY_S / 24)
        return loop.time()

    began = time.process_time()
    assert run(main()) == pytest.approx(DAY_S)
    assert time.process_time() - began < 5


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_whatever_is_waited_for_ends_in_order_and_at_its_time(waits: list[float]) -> None:
    ended: list[tuple[float, float]] = []

    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)
        ended.append((seconds, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(*map(wait, waits))

    run(main())
    assert [seconds for seconds, _ in ended] == sorted(waits)
    for seconds, when in ended:
        assert when == pytest.approx(seconds, abs=1e-3)


def test_a_deadline_passes_without_anybody_waiting_for_it() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(3600)


def test_work_for_a_thread_is_done_before_the_clock_moves() -> None:
    async def main() -> tuple[object, float]:
        asyncio.get_running_loop().call_later(1, lambda: None)
        return await asyncio.to_thread(threading.current_thread), asyncio.get_running_loop().time()

    assert run(main()) == (threading.current_thread(), 0.0)


def test_what_fails_in_a_thread_fails_where_it_is_awaited() -> None:
    async def main() -> None:
        await asyncio.to_thread(int, "seven")

    with pytest.raises(ValueError, match="seven"):
        run(main())


def test_what_is_readable_comes_before_time_passes() -> None:
    async def main() -> float:
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            other.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.call_later(100, lambda: None)
            reading = asyncio.create_task(loop.sock_recv(one, 10))
            await asyncio.sleep(0)
            await loop.sock_sendall(other, b"now")
            assert await reading == b"now"
            return loop.time()

    assert run(main()) == 0.0


def test_a_standstill_is_an_error_and_not_for_ever() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingLeftError):
        run(main())


def test_timers_that_are_pending_are_counted_and_cancelled_ones_are_not() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen = [len(loop.timers)]
        handle = loop.call_later(5, lambda: None)
        seen.append(len(loop.timers))
        handle.cancel()
        return [*seen, len(loop.timers)]

    assert run(main()) == [0, 1, 0]


def test_each_run_begins_anew() -> None:
    async def main() -> float:
        await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    def times(*mains: Coroutine[Any, Any, float]) -> list[float]:
        return [run(each) for each in mains]

    assert times(main(), main()) == [pytest.approx(1), pytest.approx(1)]
