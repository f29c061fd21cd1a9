"""Does the agent stay well, small and quiet whatever is written into etcd? And does it see what comes after?

c1 10.66.11.2 - h1 ==== vxlan ==== h2 - c2 10.66.12.2         flood --> etcd ----> h1, h2
                                                              etcd apart; a full disk is its own matter, so its quota is raised

Of each flood is held: no ping between the containers is lost, the state of a peer that is nothing but a key never goes, both agents
hold less than MEMORY_MB and write less than LOG_BYTES, and a lease that comes after it is programmed within SEEN_S; the kernel says
whether others have slowed it down. FLOOD=10 makes the floods so many times as large (make flood).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.chaos.chaos_support import cut_off
from tests.lab.agent_support import PATIENCE_S, Log, Vtep, lab_name, no_probes, no_traceback, put_leased, remember_subnet, until  # noqa: F401
from tests.lab.host_support import conditions, memory_mb, told, until_condition, until_nothing_is_wrong

ROOT = Path(__file__).resolve().parents[2]
TIMES = int(os.environ.get("FLOOD", "1"))
MEMORY_MB = 300
LOG_BYTES = 1_000_000
SEEN_S, ALONE = 5.0, 2.0
"""Seconds, by a clock that stands while others have the agent's processor, as long as it has that half of the time itself."""
FLAPPING_S = 15.0
"""Of the processor, where others slow all down: behind 10,000 leases that were deleted at the end their 50,000 kernel objects are
taken away first.
"""
RATE = int(os.environ.get("FLOOD_RATE", "1500"))
GOOD = Vtep("10.66.1.0/24", "192.168.50.91", "02:00:00:00:00:91")
LATE = Vtep("10.66.2.0/24", "192.168.50.92", "02:00:00:00:00:92")

NETWORK = "10.64.0.0/10"

pytestmark = [
    pytest.mark.topology(hosts=2, network=NETWORK),
    pytest.mark.timeout(600 * TIMES),
    pytest.mark.usefixtures("no_probes"),  # the peers are nothing but keys
]


async def flood(lab: Lab, kind: str, *words: str) -> None:
    """Write it, beside etcd; its own figures are printed."""
    command = (sys.executable, "-m", "netns_lab.flood", lab.etcd.urls[0], kind, *words)
    done = await lab.box("etcd").attempt("env", f"PYTHONPATH={ROOT}:{ROOT}/netns-lab", *command, timeout_s=200)
    print(done.stdout)
    assert done.code == 0, done.stderr[-2000:]


def processor_s(host: Host) -> float:
    fields = Path(f"/proc/{host.agent.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def there(host: Host, peer: Vtep) -> bool:
    """Asked one by one: a dump of a table that thousands of entries join and leave may miss any of them (ip: "Dump was
    interrupted and may be inconsistent").
    """
    asked = (
        f"ip route get fibmatch {peer.base}; ip neigh get {peer.base} dev flannel.1; bridge fdb get {peer.mac} dev flannel.1 self"
    )
    seen = await host.attempt("sh", "-c", asked)
    route = f"{re.escape(peer.subnet)} (nhid \\d+ )?via "
    return all(re.search(words, seen.stdout) for words in (route, f"lladdr {peer.mac}", f"dst {re.escape(peer.address)} "))


def turns(host: Host) -> tuple[int, int]:
    """For how long the agent's main thread has had a processor, and has waited while others had it, in ns (proc(5), schedstat)."""
    worked, waited, _ = Path(f"/proc/{host.agent.pid}/schedstat").read_text().split()
    return int(worked), int(waited)


def patience_s(slower: float) -> float:
    """Within how many seconds a change is seen, where all takes so many times as long as alone: there most of the flood itself is
    still to be done when it ends.
    """
    return slower * (SEEN_S if slower < ALONE else PATIENCE_S)


class Watched:
    """Was the good peer's route ever gone?"""

    def __init__(self, host: Host) -> None:
        self.looks = self.gaps = 0
        self.over = False
        self._host = host

    async def run(self) -> None:
        while not self.over:
            self.looks += 1
            self.gaps += not await there(self._host, GOOD)
            await asyncio.sleep(0.2)


@asynccontextmanager
async def held(lab: Lab, what: str, work_s: float = SEEN_S) -> AsyncIterator[None]:
    """What has to hold while the block goes on, and after it."""
    host, log, logs = lab.host(1), Log.from_now(lab.host(1)), [Log.from_now(each) for each in lab.hosts]
    watched = Watched(host)
    task = asyncio.create_task(watched.run())
    try:
        async with lab.pinging("c1", "c2") as pings:
            yield
            put_leased(lab, LATE.key, LATE.value)
            began, spent, (worked, waited) = time.monotonic(), processor_s(host), turns(host)
            await until(lambda: there(host, LATE), 300, "the late peer", lambda: log.text[-2000:])
            seen_s, before, (works, waits) = time.monotonic() - began, pings.answers(), turns(host)
            await until(lambda: pings.answers() > before + 10, 100, "pings answered after it", lambda: pings.log.read_text()[-500:])
    finally:
        watched.over = True
        await task
    most_mb, written = max(memory_mb(each) for each in lab.hosts), max(len(each.text.encode()) for each in logs)
    spent_s = processor_s(host) - spent
    within_s = patience_s(slower := 1 + (waits - waited) / max(1, works - worked))
    figures = (
        f"{what}: seen after {seen_s:.2f} s, {spent_s:.2f} s of processor ({slower:.1f} times slower than alone), "
        f"at most {most_mb:.0f} MB, {written:,} bytes of log, the good peer looked at {watched.looks} times, "
        f"{pings.sent:,} pings, {pings.lost} lost"
    )
    print(figures)
    assert pings.lost == 0, (figures, pings.gaps)
    assert watched.looks > 0
    assert watched.gaps == 0, figures
    assert most_mb < MEMORY_MB, figures
    assert written < LOG_BYTES, figures
    assert seen_s < within_s, figures
    assert spent_s < work_s, figures
    await until(lambda: told(host), PATIENCE_S, "an answer of the agent", lambda: log.text[-500:])
    assert (await told(host))["ready"] is True
    put_leased(lab, LATE.key, LATE.value.replace("192.168.50.92", "192.168.50.93"))  # and goes on seeing
    began = time.monotonic()
    moved = Vtep(LATE.subnet, "192.168.50.93", LATE.mac)
    await until(lambda: there(host, moved), 200, "the late peer's move", lambda: log.text[-2000:])


@pytest.fixture
async def one(lab: Lab) -> Host:
    host = lab.host(1)
    for each in lab.hosts:
        remember_subnet(each, f"10.66.1{each.plan.number}.0/24", NETWORK)
    put_leased(lab, GOOD.key, GOOD.value)
    await lab.start_agents()
    await lab.connect_containers()
    await until(lambda: there(host, GOOD), 10, "the good peer")
    return host


async def test_ten_thousand_leases_that_flap(lab: Lab, one: Host) -> None:
    async with held(lab, f"10,000 leases that flap for {15 * TIMES} s", FLAPPING_S):
        await flood(lab, "flap", "--keys=10000", f"--seconds={15 * TIMES}", f"--rate={RATE}")


async def test_a_hundred_thousand_stray_keys(lab: Lab, one: Host) -> None:
    async with held(lab, f"{100_000 * TIMES:,} stray keys"):
        await flood(lab, "strays", f"--keys={100_000 * TIMES}")
    async with held(lab, f"a listing of {100_000 * TIMES:,} stray keys"):
        one.agent.signal(signal.SIGHUP)
        await asyncio.sleep(1)
    seen = (await told(one))["conditions"]
    assert 1 < len(seen) < 1000
    assert "lease-malformed" in await conditions(one)
    for number in range(10 * TIMES):  # of 100,000 in one deletion etcd itself sends the watch one part in 13 s
        lab.etcd.ctl("del", "--prefix", f"/coreos.com/network/subnets/stray{number:03}")
    await until_nothing_is_wrong(one)


async def test_a_backlog_of_a_hundred_megabytes(lab: Lab, one: Host) -> None:
    async with held(lab, f"a backlog of {100 * TIMES} MB"):
        async with cut_off(*lab.hosts):
            for host in lab.hosts:
                await until_condition(host, "registry-unreachable")
            await flood(lab, "backlog", f"--megabytes={100 * TIMES}")
        for host in lab.hosts:
            await until_nothing_is_wrong_but_strays(host)


async def until_nothing_is_wrong_but_strays(host: Host) -> None:
    async def well() -> bool:
        document = await told(host)
        return bool(document.get("ready")) and {each["code"] for each in document["conditions"]} <= {"lease-malformed"}

    await until(well, 60, "well", lambda: Log.of(host).text[-2000:])


@pytest.mark.parametrize("kind", ["junk", "names"])
async def test_a_hundred_megabytes_of_junk_at_the_start(kind: str, lab: Lab, one: Host) -> None:
    """In values, and in the names of keys. The kernel carries on by itself while the agent is away."""
    async with held(lab, f"{100 * TIMES} MB of {kind} at the start"):
        await one.agent.stop()
        await flood(lab, kind, f"--megabytes={100 * TIMES}")
        one.launch_agent()
        began = time.monotonic()
        await one.agent.ready(60)
        print(f"ready after {time.monotonic() - began:.1f} s")
    assert "lease-malformed" in await conditions(one)
    lab.etcd.ctl("del", "--prefix", "/coreos.com/network/subnets/junk")


async def test_a_thousand_broken_configs(lab: Lab, one: Host) -> None:
    right = lab.etcd.get("/coreos.com/network/config")
    async with held(lab, f"{1000 * TIMES:,} broken configs"):
        await flood(lab, "config", f"--keys={1000 * TIMES}", f"--config={right}", "--at-once=1")
    await until_nothing_is_wrong(one)
