"""What does a clock that jumps do to leases and peers?

c1 - h1 ==== vxlan 1 ==== h2 - c2         the agents' wall clock jumps by hours and days; one agent has booted two days earlier
"""

from __future__ import annotations

import ast
import asyncio
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import flannelpy
from netns_lab.lab import Lab
from tests.chaos.chaos_support import LATE, put_peer, unharmed
from tests.lab.agent_support import Log, lease_of, time_to_live, until, until_programmed, until_said, vtep

ROOT = Path(flannelpy.__file__).parent
HOUR_S, DAY_S = 3600, 86400

JUMPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file >= 0) offset = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, at);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
"""What libfaketime does, for one clock, with an offset that can change while the process runs."""


class WallClock:
    """The wall clock of the processes that are started with ``env``."""

    def __init__(self, folder: Path) -> None:
        source, library, self._file = folder / "jumping.c", folder / "jumping.so", folder / "offset"
        source.write_text(JUMPING)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=30)
        self._file.write_bytes(struct.pack("=q", 0))
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._file)}

    def jump(self, seconds: int) -> None:
        """So far from the true time, at once, for all of them."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", seconds))


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the clock that jumps")
@pytest.mark.topology(hosts=2)
async def test_the_wall_clock_jumps_by_hours_and_days(lab: Lab, tmp_path: Path) -> None:
    """Leases of 6 s are extended every 2 s all the while, no question to etcd times out early, none waits for days."""
    one, two, wall = lab.host(1), lab.host(2), WallClock(tmp_path)
    for host in lab.hosts:
        host.launch_agent("--subnet-lease-ttl=6", env=wall.env)
    await asyncio.gather(*(host.agent.ready() for host in lab.hosts))
    await lab.connect_containers()
    own, log = await vtep(one), Log.from_now(one)
    put_peer(lab, LATE)
    await until_programmed(one, LATE)
    async with unharmed(lab, "the agents' wall clock jumps by +1 h, -1 h, +2 days, -2 days", leaving=[LATE]):
        for number, jump in enumerate((HOUR_S, -HOUR_S, 2 * DAY_S, -2 * DAY_S)):
            wall.jump(jump)
            peer = type(LATE)(f"10.1.{80 + number}.0/24", f"192.168.50.{80 + number}", f"02:00:00:00:00:8{number}")
            put_peer(lab, peer)
            await until_programmed(one, peer, timeout_s=3)
            await until_programmed(two, peer, timeout_s=3)
            await asyncio.sleep(2.5)
        # A route that goes is told: the log shows that the clock did jump.
        await one.exec("ip", "route", "del", LATE.subnet)
        await until_said(log, "repair")
        await until_programmed(one, LATE)
        assert log.lines("repair")[0].split()[0] != Log.of(one).text.split()[0]  # another date
        assert time_to_live(lab, lease_of(lab, own.key))[1] >= 2
    assert lab.etcd.get(own.key) == own.value
    assert log.lines("etcd") == []


@pytest.mark.topology(hosts=2)
async def test_a_host_that_booted_two_days_ago_and_one_that_booted_now(lab: Lab) -> None:
    """Monotonic clocks mean nothing to anybody else: they are never compared between hosts, nor with etcd's."""
    one, two = lab.host(1), lab.host(2)
    ahead = ["unshare", "-T", "--boottime", str(2 * DAY_S), "--monotonic", str(2 * DAY_S), "--fork", "--kill-child"]
    if (await one.attempt(*ahead, "true")).code:
        pytest.skip("the kernel has no time namespaces")
    agent = one.launch_agent(program=[*ahead, *one.agent_words("--subnet-lease-ttl=6")])
    two.launch_agent("--subnet-lease-ttl=6")
    await asyncio.gather(agent.ready(), two.agent.ready())
    await lab.connect_containers()
    own, log = await vtep(one), Log.from_now(one)
    async with unharmed(lab, "one agent's boottime and monotonic clocks two days ahead"):
        await asyncio.sleep(8)  # longer than the lease
        assert lab.etcd.get(own.key) == own.value
        put_peer(lab, LATE)
        await until_programmed(one, LATE, timeout_s=3)
        await until(lambda: time_to_live(lab, lease_of(lab, own.key))[1] >= 3, 5, "the lease is extended")
    assert log.lines("warning:") == []


def test_no_rule_looks_at_the_wall_clock() -> None:
    """Only log lines and events bear the wall clock's time; what decides takes monotonic clocks, or ``now`` as an argument.

    A certificate is valid by the wall clock (RFC 5280, 4.1.2.5): what is said of one that is not has to ask it, and so
    has the doctor, who holds this host's clock against etcd's. What Kubernetes reads and writes has calendar times in it.
    A frame that was caught bears the kernel's stamp (socket(7), SO_TIMESTAMPNS).
    """
    found = []
    for room in ("core", "agent", "registry", "kernel", "host"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.relative_to(ROOT).as_posix() in BEARS_IT:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
                if isinstance(node, ast.ImportFrom) and node.module in ("datetime", "time"):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: from {node.module}")
    assert found == []


BEARS_IT = (
    "agent/events.py",
    "kernel/sniff.py",
    *(f"registry/etcd/{name}.py" for name in ("examine", "tls", "validity")),
    *(f"registry/kube/{name}.py" for name in ("client", "registry")),
)
WALL = ("time.time", "time.time_ns", "time.CLOCK_REALTIME", "time.localtime", "time.gmtime", "datetime.datetime")
