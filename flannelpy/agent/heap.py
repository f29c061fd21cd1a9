"""What of the memory that a start among thousands takes for a moment is given back? All that the allocator can. mallopt(3), gc.

glibc learns from each large block that is freed to keep the next of its size for later, in a heap that ends where the last block
that is in use does: tables that grow, a listing, a plan of some ten thousand steps would stay resident for ever.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
LARGE = 128 << 10
"""Bytes of a block from which on it is the kernel's again as soon as it is freed: glibc's own beginning, which then stays."""

ARENAS = 1
"""Heaps: one for each thread would be one for each of gRPC's, which hold something for a moment only."""

YOUNG = 20_000
"""Objects that are made before it is looked for cycles among them. At the usual 700 each of a start's half a million is looked at
some ten times, and there are next to none.
"""


def prepare() -> None:
    """To be called before there are threads. Another C library than glibc does as it does."""
    gc.set_threshold(YOUNG, 10, 10)
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """What is free in the middle of the heap goes to the kernel, too; some milliseconds."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
