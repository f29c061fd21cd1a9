"""What do probes cost an agent? CPU time of the part that asks, with many peers that answer, and with many that do not.

    unshare -n python -m netns_lab.bench_probes --peers 1000 --seconds 60

The peers are addresses of the loopback interface, so that this host's kernel answers for all of them; that is in the figure, too,
where the system's time is told. Those that do not answer are addresses that a rule drops.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import time
from collections.abc import Mapping
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import uvloop
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.context import Context
from flannelpy.agent.probes import Probes
from flannelpy.agent.report import Reporter
from flannelpy.agent.view import Cursor
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.reachability import Target
from flannelpy.kernel.echo import EchoSocket

MTU = 1450
SETTLED_S = 3.0


def leases(count: int) -> Mapping[str, Lease]:
    """Subnet n is at 127.1.n."""
    made = (
        Lease(IPNetwork((0x0A000000 + 256 * n, 24), version=4), LeaseAttrs(IPAddress(0x7F010000 + n))) for n in range(1, count + 1)
    )
    return {lease.key: lease for lease in made}


def aim(lease: Lease) -> Target:
    """The same number in 127.2/16 is its address in the overlay."""
    return Target(IPAddress(int(lease.public_ip) + 0x10000), lease.public_ip, MTU, "UDP 8472")


async def measure(peers: int, seconds: float) -> tuple[float, float]:
    """Parts of a core, in user and in system time."""
    context = SimpleNamespace(
        kernel=SimpleNamespace(echo=EchoSocket), clock=time.monotonic, random=Random(1), reporter=Reporter(time.monotonic)
    )
    probes = Probes(cast("Context", context), Cursor(leases(peers), lambda: None), lambda: aim, lambda _key: True)
    running = asyncio.create_task(probes.run())
    await asyncio.sleep(SETTLED_S)
    before, began = _times(), time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - began
    after = _times()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return (after[0] - before[0]) / took, (after[1] - before[1]) / took


def _times() -> tuple[float, float]:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deaf", action="store_true", help="none of them answers")
    given: Any = parser.parse_args(words)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if given.deaf:
        hook = "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }"
        subprocess.run(["nft", f"{hook}; add rule ip deaf in icmp type echo-request drop"], check=True)
    user, system = uvloop.run(measure(given.peers, given.seconds))
    print(f"{given.peers} peers{', deaf' if given.deaf else ''}: {user:.2%} of a core in user time, {system:.2%} in system time")


if __name__ == "__main__":
    main()
