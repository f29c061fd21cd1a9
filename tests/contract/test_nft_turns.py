"""What of ours would make libnftables end the process? Two threads in it at a time; a file whose number select(2) does not take.

Each is tried in a process of its own.
"""

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


MANY = """
import asyncio, os, resource, sys
from flannelpy.core.errors import KernelError
from flannelpy.kernel.nft import Nft

files, first, command = int(sys.argv[1]), sys.argv[2], sys.argv[3]
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))


async def main():
    nft = Nft(command=command)
    if first == "used before":
        await nft.ask("add table inet before\\n")
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(files)]
    try:
        await nft.ask("add table inet t\\nadd set inet t s { type ipv4_addr; }\\nadd element inet t s { 10.0.0.1 }\\n")
        print("10.0.0.1" in await nft.everything())
    except KernelError as error:
        print(error)
    for each in kept:
        os.close(each)
    print("10.0.0.1" in await nft.everything())
    nft.close()


asyncio.run(main())
"""
LITTLE = "nftables: about 1024 files are open, more than libnftables can do with, and the nft command is not there\nFalse\n"


def with_files(files: int, first: str, command: str) -> str:
    words = ["unshare", "-n", sys.executable, "-X", "faulthandler", "-c", MANY, str(files), first, command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@real_only
@pytest.mark.parametrize("first", ["used before", "first used then"])
@pytest.mark.parametrize("files", [10, 980, *range(1008, 1030, 3), 2000])
def test_files_of_any_number_may_be_open(first: str, files: int) -> None:
    assert with_files(files, first, "nft") == "True\nTrue\n"


@real_only
@pytest.mark.parametrize("first", ["used before", "first used then"])
def test_where_so_many_are_open_and_there_is_no_command_that_is_said(first: str) -> None:
    assert with_files(1100, first, "no-such-nft") == LITTLE
