"""Do the neighbours on a link learn our hardware address there from us? In two namespaces, with the kernels' own ARP.

us (us0) ---- them (peer): they hold an entry for us with another MAC, and believe it
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .kernel_support import RealHost, ip, shell

STALE = "02:00:00:00:00:99"
US, THEY = "192.0.2.1", "192.0.2.2"


def device(name: str, run: Callable[[str], str]) -> tuple[int, str]:
    """Its index and its MAC."""
    (found,) = json.loads(run(f"ip -j link show {name}"))
    return found["ifindex"], found["address"]


class Them:
    """The neighbour."""

    def __init__(self, pid: int) -> None:
        self._enter = f"nsenter -t {pid} -n "

    def run(self, command: str) -> str:
        return shell(self._enter + command)

    def believes(self, address: str) -> str:
        """The MAC that they have for this address of ours."""
        words = self.run(f"ip neigh show {address} dev peer").split()
        return words[words.index("lladdr") + 1] if "lladdr" in words else ""


@pytest.fixture
def them(real: RealHost) -> Iterator[Them]:
    ours = Path("/proc/thread-self/ns/net").stat().st_ino
    with subprocess.Popen(["unshare", "-n", "sleep", "300"]) as process:
        try:
            while process.poll() is None and Path(f"/proc/{process.pid}/ns/net").stat().st_ino == ours:
                time.sleep(0.01)
            ip("link add us0 type veth peer name peer")
            ip(f"link set peer netns {process.pid}")
            found = Them(process.pid)
            ip(f"addr add {US}/24 dev us0")
            found.run(f"ip addr add {THEY}/24 dev peer")
            ip("link set us0 up")
            found.run("ip link set peer up")
            yield found
        finally:
            process.kill()


@pytest.mark.parametrize("state", ["reachable", "stale"])
async def test_who_believes_another_address_of_ours_is_put_right(real: RealHost, them: Them, state: str) -> None:
    index, mac = device("us0", shell)
    _, theirs = device("peer", them.run)
    them.run(f"ip neigh replace {US} dev peer lladdr {STALE} nud reachable")
    ip(f"neigh replace {THEY} dev us0 lladdr {theirs} nud {state}")
    assert them.believes(US) == STALE

    async def put_right() -> None:
        while them.believes(US) != mac:
            await real.kernel.reintroduce(index)
            await asyncio.sleep(0.1)

    await asyncio.wait_for(put_right(), 30)


async def test_what_was_not_learned_stays_as_it_is(real: RealHost, them: Them) -> None:
    ip(f"neigh replace 192.0.2.77 dev us0 lladdr {STALE} nud permanent")
    ip(f"neigh replace 192.0.2.78 dev us0 lladdr {STALE} nud noarp")
    ip("neigh add proxy 192.0.2.79 dev us0")
    before = shell("ip neigh show dev us0; ip neigh show proxy dev us0")
    await real.kernel.reintroduce(device("us0", shell)[0])
    assert shell("ip neigh show dev us0; ip neigh show proxy dev us0") == before
    await real.kernel.reintroduce(1)
    await real.kernel.reintroduce(4_000_000)
