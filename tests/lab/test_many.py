"""Does a host of a cluster of fifty thousand start, answer meanwhile, and follow it? It holds a route for each of them.

swarm --> etcd ----> h1          its nodes are leases and nothing else
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from netns_lab.bench_swarm import nodes
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import PATIENCE_S, Log, Vtep, lab_name, no_probes, no_traceback, put_leased, until  # noqa: F401
from tests.lab.host_support import memory_mb
from tests.lab.test_flood import there

NODES = 50_000
READY_S = 30.0
"""On a machine that does nothing else; where it does, as many times as long as the agent waited for a processor."""
SMALL_S, STATUS_S = 5.0, 15.0
"""How long an answer takes at most meanwhile: the plan of all is made in one piece. A status of 50,000 peers is 20 MB of JSON."""
SEEN_S = 15.0
"""Another peer, right after: beside a status, and the first look at all of it."""
MEMORY_MB = 600
LATE = Vtep("10.127.255.64/26", "192.168.50.92", "02:00:00:00:00:92")

pytestmark = [
    pytest.mark.topology(hosts=1, containers=0, network="10.64.0.0/10"),
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("no_probes"),
]


def slower(host: Host) -> float:
    """How many times as long all takes as alone: how long the main thread has waited for a processor (proc(5), schedstat)."""
    worked, waited, _ = map(int, Path(f"/proc/{host.agent.pid}/schedstat").read_text().split())
    return 1 + waited / max(1, worked)


def routes_of(host: Host) -> int:
    return Path(f"/proc/{host.agent.pid}/net/route").read_bytes().count(b"\nflannel.1\t")


async def answers(host: Host) -> bool:
    """Whether it answers at all: with the options it runs by."""
    reader, writer = await asyncio.open_unix_connection(str(host.run_dir / "agent.sock"))
    try:
        writer.write(b"GET /setup HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return (await reader.read()).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


async def asked(what: Callable[[], Awaitable[object]], pause_s: float, took: list[float]) -> None:
    """Ask, for ever; what each answer took."""
    while True:
        began = time.monotonic()
        with suppress(OSError):  # it does not listen yet
            if await what():
                took.append(time.monotonic() - began)
        await asyncio.sleep(pause_s)


async def test_a_host_of_fifty_thousand_starts_answers_and_follows(lab: Lab) -> None:
    await lab.put_config({"Network": "10.64.0.0/10", "SubnetLen": 26, "Backend": {"Type": "vxlan"}})
    host = lab.host(1)
    async with nodes(lab, NODES, "--keep"):
        host.launch_agent()
        began, small, statuses = time.monotonic(), list[float](), list[float]()
        asking = [
            asyncio.create_task(asked(lambda: answers(host), 0.1, small)),
            asyncio.create_task(asked(lambda: host.status(60), 5.0, statuses)),
        ]
        try:
            await host.agent.ready(300)
            ready_s = time.monotonic() - began
            assert routes_of(host) >= NODES
            put_leased(lab, LATE.key, LATE.value)
            put_at = time.monotonic()
            await until(lambda: there(host, LATE), 300, "the late peer", lambda: Log.of(host).text[-2000:])
            seen_s = time.monotonic() - put_at
        finally:
            for each in asking:
                each.cancel()
        held, times = memory_mb(host), slower(host)
        figures = (
            f"ready after {ready_s:.1f} s, another peer reached after {seen_s:.2f} s, {held:.0f} MB, "
            f"{times:.1f} times slower than alone; a small answer of {len(small)} times at most {max(small):.2f} s, "
            f"status of {len(statuses)} at most {max(statuses):.1f} s"
        )
        print(figures)
        assert ready_s < READY_S * times, figures
        assert seen_s < SEEN_S * times, figures
        assert held < MEMORY_MB, figures
        assert max(small) < SMALL_S * times, figures
        assert max(statuses) < STATUS_S * times, figures
        assert len(small) > ready_s, figures
