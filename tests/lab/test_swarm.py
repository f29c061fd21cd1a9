"""``lab swarm``: nodes that are only leases, in a lab's etcd, beside a real agent.

swarm -> etcd ----> h1: a route, a neighbour and an FDB entry for each node, and nothing of them once the swarm is gone
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import netns_lab
from netns_lab.lab import PREFIX, Lab

COMMAND = Path(netns_lab.__file__).parents[1] / "lab"
WITHIN_S = 20.0
_numbers = itertools.count(1)


@pytest.fixture
def lab_name() -> str:
    return f"swm{os.getpid()}-{next(_numbers)}"


@contextlib.asynccontextmanager
async def typed(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """``lab WORDS`` in a terminal of its own, ended at the end of the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(COMMAND), *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def network_of(pid: int) -> int:
    """The inode of the network namespace that a process is in."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


async def routes(lab: Lab) -> set[str]:
    text = await lab.host(1).exec("ip", "route", "show", "dev", "flannel.1")
    return {line.split()[0] for line in text.splitlines()} - {"10.1.0.0/16"}


def subnets(lab: Lab) -> set[str]:
    return {key.rpartition("/")[2].replace("-", "/") for key in lab.etcd.keys(f"{PREFIX}/subnets/")}


@pytest.mark.topology(hosts=1)
async def test_the_agent_follows_a_swarm_and_forgets_it(lab: Lab) -> None:
    await lab.start_agents()
    own = {str(lab.host(1).subnet.cidr)}
    async with typed("swarm", "--nodes=60", "--churn=80", f"--name={lab.name}") as process:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), WITHIN_S) == b"60 nodes are there\n"
        # Nothing of it is in this machine's own network: what the lab's processes send stays in the lab.
        assert network_of(process.pid) == lab.box("etcd").namespace.path.stat().st_ino
        await lab.until(lambda: _many(lab), what="routes to most of the nodes")
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
        assert (process.returncode, err) == (130, b"")
        assert b"the keys are removed" in out
    assert subnets(lab) == own
    await lab.until(lambda: _forgotten(lab), what="no route to any node")
    assert lab.host(1).agent.running
    assert "Traceback" not in lab.host(1).agent.log.read_text()


async def _many(lab: Lab) -> bool:
    return len(await routes(lab)) >= 45


async def _forgotten(lab: Lab) -> bool:
    left = await routes(lab)
    assert left == set(), left
    return True


@pytest.mark.topology(hosts=1, etcd=0)
async def test_a_lab_without_etcd_is_one_line(lab: Lab) -> None:
    async with typed("swarm", "--nodes=3", f"--name={lab.name}") as process:
        out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
    assert (process.returncode, out, err) == (1, b"", b"Error: this topology has no etcd\n")


async def test_a_lab_that_is_not_there_is_one_line() -> None:
    async with typed("swarm", "--nodes=3", "--name=swm-none") as process:
        _, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
    assert process.returncode == 1
    assert err == b"Error: no lab named swm-none is up; netns-lab/lab up makes one\n"
