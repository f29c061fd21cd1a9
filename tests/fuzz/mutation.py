"""How is any input at all made? From seeds that are in order, bent at random; a seed of the generator gives the same again.

``FUZZ_MINUTES`` is how long all targets together may have a processor; without it each tries a fixed number, the same at each run
(``FUZZ_SEED``: others). An input that fails is printed; put into ``seeds/``, it is tried first from then on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

SEED = int(os.environ.get("FUZZ_SEED", "1"))
MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
TARGETS = 10
"""Tests that share the time."""
SEEDS = Path(__file__).parent / "seeds"

_ODD_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF, 0x0A, 0x22, 0x5B, 0x7B)
_ODD_RUNS = (
    b"[" * 500,
    b"9" * 400,
    b"\xff\xff\xff\xff",
    b"\x00" * 8,
    b"\xed\xa0\x80",
    b"1e999",
    b"-",
    b"null",
    b"\r\n",
    b"\xe2\x80\xae",
)


def kept(target: str) -> list[bytes]:
    """Inputs that once went wrong, or that nobody would think of: a file each, as hexadecimal digits."""
    return [bytes.fromhex(path.read_text()) for path in sorted((SEEDS / target).glob("*.hex"))]


def rounds(count: int, seed: int = SEED) -> Iterator[Random]:
    """A generator of its own for each try, which ``seed`` and its number give again; ``count`` of them, or what time allows."""
    began = time.process_time()
    end = began + MINUTES * 60 / TARGETS
    number = 0
    while time.process_time() < end if MINUTES else number < count:
        yield Random(seed << 32 | number)
        number += 1
    print(f"{number:,} tries in {(time.process_time() - began) / 60:.1f} minutes of the processor")


def inputs(seeds: Sequence[bytes], count: int) -> Iterator[bytes]:
    """Each seed as it is, then bent ones."""
    yield from seeds
    for random in rounds(count):
        yield bent(random, seeds)


def bent(random: Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with some things changed."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        at = random.randrange(len(data) + 1)
        to = min(len(data), at + random.randrange(1, 20))
        match random.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1 if at < len(data):
                data[at] = random.choice(_ODD_BYTES)
            case 2 if at < len(data):
                data[at] = random.randrange(256)
            case 3:
                data[at:at] = random.choice(_ODD_RUNS)
            case 4:
                del data[at:to]
            case 5:
                data[at:at] = data[at:to] * random.randrange(1, 4)
            case 6:
                other = random.choice(seeds)
                data[at:] = other[random.randrange(len(other) + 1) :]
            case 7:
                del data[at:]
    return bytes(data)
