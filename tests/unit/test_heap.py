"""Is the memory of a moment given back? In processes of their own, with and without."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import subprocess
import sys

import pytest

from flannelpy.agent import heap
from flannelpy.agent.sync import audit as module
from tests.unit.virtual_time import run

ASKED = """
import ctypes, sys
from flannelpy.agent import heap

class Info(ctypes.Structure):  # struct mallinfo2, malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "prepared":
    heap.prepare()
for _ in range(4):
    del bytearray(4 << 20)[:]  # from which the allocator learns to keep what is smaller
before = libc.mallinfo2().hblks
table = bytearray(1 << 20)
print(libc.mallinfo2().hblks - before)
"""


def mapped(how: str) -> int:
    """How many blocks were taken from the kernel, to be given back as soon as they are freed, for a table of 1 MB."""
    words = [sys.executable, "-c", ASKED, how]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library has no mallinfo2(3)")
def test_what_is_large_is_the_kernels_as_soon_as_it_is_freed() -> None:
    assert (mapped("prepared"), mapped("not")) == (1, 0)
    heap.give_back()


def test_it_is_not_looked_for_cycles_while_it_is_imported_and_seldom_after() -> None:
    before = gc.get_threshold()
    try:
        heap.prepare()
        assert not gc.isenabled()
        heap.keep()
        assert gc.isenabled()
        assert gc.get_threshold() == heap.GENERATIONS
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()
        gc.set_threshold(*before)


def test_it_is_given_back_once_after_each_full_look(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    class Loop:
        settled = False
        looks = 0

        def resync(self) -> None:
            self.looks += 1

        def look_at_silent(self) -> None: ...

    async def play() -> None:
        clock = asyncio.get_running_loop().time
        monkeypatch.setattr(module, "give_back", lambda: given.append(clock()))
        loop = Loop()
        task = asyncio.create_task(module.audit(loop))  # type: ignore[arg-type]
        await asyncio.sleep(60.0)
        assert given == []  # nothing has been looked at
        loop.settled, settled_at = True, clock()
        await asyncio.sleep(60.0)
        assert len(given) == 1
        assert given[0] >= settled_at + module.SETTLES_S  # what other threads hold still is not free yet
        await asyncio.sleep(2 * module.AUDIT_S)
        assert len(given) == 1 + loop.looks
        assert loop.looks >= 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(play())
