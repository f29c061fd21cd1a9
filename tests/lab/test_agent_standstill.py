"""Does it harm anybody that the agent stands still for longer than its lease, deaf to a flood of notices, or is ended as it starts?

c1 - h1 ==== vxlan or udp ==== h2 - c2         etcd apart; h1's agent is stopped (SIGSTOP), or ended (SIGTERM) while it starts
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, routes, settled_overlay, until  # noqa: F401
from tests.lab.host_support import until_nothing_is_wrong

NOTICES = 200_000
MOMENTS, LONGEST = 30, 1.3
"""So many, from the beginning of a start on until so many times what one takes."""

pytestmark = pytest.mark.timeout(300)


@pytest.mark.topology(hosts=2, agent_options=("--subnet-lease-ttl=6",))
async def test_who_stood_still_has_the_same_subnet_and_repairs_what_it_did_not_hear_of(overlay: Lab) -> None:
    one, key = overlay.host(1), overlay.host(1).lease_key
    before, pid, log = await routes(one, "proto 102"), one.agent.pid, Log.from_now(one)
    async with losing_nothing(overlay, "c1", "c2"):
        one.agent.signal(signal.SIGSTOP)
        await until(lambda: overlay.etcd.get(key) is None, 60, "its lease is over")
    lines = (f"route add blackhole 172.{16 + at // 65536}.{at // 256 % 256}.{at % 256} table 77\n" for at in range(NOTICES // 2))
    await one.exec("ip", "-batch", "-", stdin="".join(lines), timeout_s=120)
    await one.exec("ip", "route", "flush", "table", "77", timeout_s=120)
    await one.exec("ip", "route", "flush", "proto", "102")
    began = time.monotonic()
    one.agent.signal(signal.SIGCONT)

    async def repaired() -> bool:
        return await routes(one, "proto 102") == before

    await until(repaired, 30, "its routes are back", lambda: log.text[-2000:])
    print(f"{NOTICES:,} notices not heard: routes are back after {time.monotonic() - began:.2f} s")
    await until(lambda: overlay.etcd.get(key) is not None, 30, "its lease is back", lambda: log.text[-2000:])
    await until_nothing_is_wrong(*overlay.hosts)
    async with losing_nothing(overlay, "c1", "c2"):
        pass
    assert (one.agent.pid, one.lease_key) == (pid, key)


def inside(host: Host) -> list[str]:
    """The processes in a host's namespace."""
    home, found = host.namespace.path.stat().st_ino, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "ns/net").stat().st_ino == home and (text := (path / "cmdline").read_text()):
                found.append(text.replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.topology(hosts=1, containers=0, backend="udp", agent_options=("--udp-engine=pump",))
async def test_at_whatever_moment_of_its_start_it_is_ended_nothing_is_left(lab: Lab) -> None:
    host, codes, slowest_s = lab.host(1), [], 0.0
    began = time.monotonic()
    await host.start_agent()
    start_s = time.monotonic() - began
    await host.agent.stop()
    for number in range(MOMENTS):
        agent = host.launch_agent()
        await asyncio.sleep(number / MOMENTS * LONGEST * start_s)  # the moment is what is varied
        began = time.monotonic()
        agent.signal(signal.SIGTERM)
        codes.append(await agent.process.wait(30))
        slowest_s = max(slowest_s, time.monotonic() - began)
        await until(lambda: inside(host) == [], 10, "nothing of it runs", lambda: inside(host))
    print(f"a start takes {start_s:.2f} s; {MOMENTS} ended by then: {codes}, the slowest took {slowest_s:.2f} s")
    assert 0 in codes
    assert set(codes) <= {0, -signal.SIGTERM}  # before it has said what is to be done, the kernel's own way
    await host.start_agent()
    await until_nothing_is_wrong(host)
    assert len(lab.etcd.keys("/coreos.com/network/subnets")) == 1
