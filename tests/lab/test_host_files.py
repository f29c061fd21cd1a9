"""Does subnet.env stay what it is, whoever touches it?

c1 - h1 ==== vxlan ==== h2 - c2         h1's subnet.env is removed, emptied, written over, and becomes a directory
"""

from __future__ import annotations

from pathlib import Path

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, settled_overlay, until  # noqa: F401
from tests.lab.host_support import WITHIN_S, lives, until_nothing_is_wrong

FOREIGN = "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n"


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


HOW = {
    "removed": Path.unlink,
    "emptied": lambda path: path.write_text(""),
    "another subnet": lambda path: path.write_text(FOREIGN),
}


@pytest.mark.topology(hosts=2)
async def test_whatever_becomes_of_the_subnet_file_it_is_put_back(overlay: Lab) -> None:
    one = overlay.host(1)
    before, text, log = lives(overlay.hosts), one.subnet_file.read_bytes(), Log.from_now(one)
    async with losing_nothing(overlay, "c1", "c2"):
        for how, spoil in HOW.items():
            spoil(one.subnet_file)
            await until(
                lambda: one.subnet_file.exists() and one.subnet_file.read_bytes() == text,
                WITHIN_S,
                f"put back: {how}",
                lambda: log.text,
            )
    await until_nothing_is_wrong(one)
    assert lives(overlay.hosts) == before


@pytest.mark.topology(hosts=2)
async def test_a_directory_in_place_of_the_subnet_file_is_set_aside_with_what_is_in_it(overlay: Lab) -> None:
    """Docker makes one where a container is to be given a file that is not there yet."""
    one = overlay.host(1)
    text, log = one.subnet_file.read_bytes(), Log.from_now(one)
    make_directory(one.subnet_file)
    (one.subnet_file / "kept").write_text("somebody's")
    await until(lambda: one.subnet_file.is_file() and one.subnet_file.read_bytes() == text, WITHIN_S, "put back")
    aside = one.subnet_file.with_name("subnet.env.corrupt")
    assert (aside / "kept").read_text() == "somebody's"
    words = "was a directory, set aside as subnet.env.corrupt; written anew"
    await until(lambda: len(log.lines(words)) == 1, WITHIN_S, "it is told, after it was done")
    await until_nothing_is_wrong(one)
