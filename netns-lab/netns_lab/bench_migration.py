"""How long does a TCP stream stand still while a network moves from Type to Type? Three hosts, a stream and pings all the time.

    make bench-migration

Of each move the longest time without a byte is told, beside the longest of the same span of time before it, in which nothing
happened: what a busy machine does to a stream it does without us as well. Pings are 100 a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time

from netns_lab.lab import PREFIX, Lab
from netns_lab.streaming import streaming
from netns_lab.topology import Topology

NETWORK = "10.1.0.0/16"
WITHIN_S = 120.0
CALM_S = 5.0
WALK = ("vxlan", "host-gw", "udp", "vxlan", "udp", "host-gw", "vxlan")


def config(name: str) -> dict[str, object]:
    """The network config of a Type."""
    return {"Network": NETWORK, "Backend": {"Type": name, **({"Engine": "userspace"} if name == "udp" else {})}}


def finished(lab: Lab, name: str) -> bool:
    """True where every lease names this Type, and nothing is carried by another beside it."""

    def under(directory: str) -> list[dict[str, object]]:
        return [json.loads(lab.etcd.get(key) or "{}") for key in lab.etcd.keys(f"{PREFIX}/{directory}")]

    types = {value.get("BackendType", "udp") for value in under("subnets")}
    return types == {name} and not any(value.get("Carriers") for value in under("flannelpy/hosts"))


async def measure(rounds: int) -> int:
    """Walk, and print what was seen; 1 where a ping was lost."""
    lost, stalls = 0, list[float]()
    os.environ["FLANNELPY_PROBE"] = "false"
    async with Lab.up(Topology(hosts=3), name=f"migration{os.getpid()}") as lab:
        await lab.put_config(config(WALK[0]))
        await lab.start_agents()
        await lab.connect_containers()
        await lab.until(lambda: _meet(lab), timeout_s=60, what="they meet")
        target = lab.container("c2")
        print(f"{'move':20} {'calm':>8} {'move':>8} {'pings':>12}")
        for number in range(rounds):
            log = lab.directory / f"stream{number}.log"
            async with streaming(lab.container("c1").namespace, target.namespace, str(target.address), log) as stream:
                for before, name in itertools.pairwise(WALK):
                    async with lab.pinging("c2", "c3") as pings:
                        calm = time.monotonic()
                        await asyncio.sleep(CALM_S)
                        began = time.monotonic()
                        await lab.put_config(config(name))
                        await lab.until(lambda name=name: finished(lab, name), timeout_s=WITHIN_S, what=name)  # type: ignore[misc]
                        ended = time.monotonic()
                        await asyncio.sleep(1.0)
                    lost += pings.lost
                    stalls.append(stream.longest_s(began, ended))
                    words = f"{1000 * stream.longest_s(calm, began):5.0f} ms {1000 * stalls[-1]:5.0f} ms"
                    print(f"{before + ' to ' + name:20} {words} {pings.sent:6} lost {pings.lost}", flush=True)
            print(f"the stream: {stream.sent} bytes sent, {stream.received} received")
    print(f"longest {1000 * max(stalls):.0f} ms, median {1000 * statistics.median(stalls):.0f} ms; {lost} pings lost")
    return 1 if lost or stream.sent != stream.received else 0


async def _meet(lab: Lab) -> bool:
    return all(ping.ok for ping in (await lab.matrix()).values())


def main() -> int:
    """The program's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    return asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    sys.exit(main())
