"""Work for a disk: one piece after the other, whoever asks; a disk that does not answer is told, and holds one thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from flannelpy.core.errors import FlannelpyError
from flannelpy.host.disk import Disk


@pytest.mark.parametrize("count", [2, 3, 20])
async def test_many_that_ask_at_once_are_all_served_one_by_one(count: int) -> None:
    disk, running, most = Disk(30.0), 0, 0
    lock = threading.Lock()

    def work(number: int) -> Callable[[], int]:
        def do() -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1
            return number

        return do

    assert await asyncio.gather(*(disk.do(work(number), "it") for number in range(count))) == list(range(count))
    assert most == 1


async def test_a_disk_that_does_not_answer_is_told_to_all_and_works_again_when_it_does() -> None:
    disk, gate = Disk(0.05), threading.Event()
    outcomes = await asyncio.gather(*(disk.do(gate.wait, "the file") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, FlannelpyError) and "the file: the disk does not answer" in str(each) for each in outcomes)
    gate.set()
    await disk.drain()
    assert await Disk(30.0).do(lambda: 7, "it") == 7


async def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise FlannelpyError("no space")

    with pytest.raises(FlannelpyError, match="no space"):
        await Disk(30.0).do(fail, "it")
