"""Does a caller ever let two threads into libnftables at a time? That ends the process: it is tried in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .kernel_support import real_only

ROOT = Path(__file__).resolve().parents[2]
TURNS = 150

PROGRAM = """
import asyncio, random, sys
from flannelpy.core.errors import KernelError
from flannelpy.kernel.nft import Nft

how, chance = sys.argv[1], random.Random(int(sys.argv[2]))
ELEMENTS = "add element inet t s { " + ", ".join(f"10.0.{n // 250}.{n % 250}" for n in range(2000)) + " }"


async def main():
    nft = Nft(command=None)
    await nft.ask("add table inet t\\nadd set inet t s { type ipv4_addr; }\\n" + ELEMENTS + "\\n")
    for turn in range(int(sys.argv[3])):
        asked = asyncio.create_task(nft.everything() if chance.random() < 0.5 else nft.ask("list ruleset\\n"))
        await asyncio.sleep(chance.uniform(0, 0.01))
        asked.cancel()
        if how == "close" and chance.random() < 0.3:
            nft.close()
        if how == "late":
            await asyncio.sleep(chance.uniform(0, 0.01))
        await asyncio.gather(asked, return_exceptions=True)
    print(len((await nft.everything()).split("10.0.")) - 1)
    nft.close()


asyncio.run(main())
"""


@real_only
@pytest.mark.parametrize("how", ["cancel", "late", "close"])
@pytest.mark.parametrize("seed", [1, 2])
def test_who_no_longer_waits_for_an_answer_lets_nobody_else_in(how: str, seed: int) -> None:
    """Cancelled at any moment, and asked again at once; or closed meanwhile."""
    words = ["unshare", "-n", sys.executable, "-X", "faulthandler", "-c", PROGRAM, how, str(seed), str(TURNS)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "2000\n"), done.stderr[-2000:]
