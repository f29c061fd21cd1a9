"""What do interfaces that come and go cost an agent that has nothing to do with them?

      veth, veth, veth ...  made and deleted on h1 only
        |
c1 - h1 ==== vxlan or udp ==== h2 - c2         etcd apart, with peers that are nothing but keys
     a foreign route stands in the way of one peer, on both hosts: a step that always fails

h2 sees all that h1 sees but the churn, so it is what h1 is compared with; what the notifications themselves cost is measured by a
bare reader beside h1's agent. What fails is tried again by its own times, and not once more. CHURN_PAIRS, CHURN_PER_SECOND and
CHURN_PEERS make it longer (make churn).
"""

from __future__ import annotations

import os
import sys
import time
from math import inf
from pathlib import Path

import pytest

from flannelpy.agent.sync.retries import Retries
from flannelpy.core.objects import Key
from netns_lab.churn import churn, reading
from netns_lab.footprint import processor_s
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, Vtep, lab_name, no_traceback, put_leased  # noqa: F401
from tests.lab.host_support import lives, told, until_condition

PAIRS = int(os.environ.get("CHURN_PAIRS", "300"))
PER_SECOND = float(os.environ.get("CHURN_PER_SECOND", "100"))
PEERS = int(os.environ.get("CHURN_PEERS", "3"))
NETWORK = "10.64.0.0/10"
BLOCKED = Vtep("10.65.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
ROOT = Path(__file__).resolve().parents[2]
TWICE = 2.0
"""The agent may take so many times what the bare reader takes."""
BACKENDS = [
    pytest.param(backend, marks=[pytest.mark.topology(hosts=2, backend=backend, network=NETWORK), pytest.mark.timeout(600)])
    for backend in ("vxlan", "udp")
]


async def swarm(lab: Lab) -> None:
    """The other peers, as bare keys."""
    words = (sys.executable, "-m", "netns_lab.swarm", lab.etcd.urls[0], f"--nodes={PEERS - 1}", "--seconds=0", "--keep")
    paths = f"PYTHONPATH={ROOT}:{ROOT}/netns-lab"
    await lab.box("etcd").exec("env", paths, *words, timeout_s=120)


async def refuse_one(lab: Lab) -> None:
    """A peer whose subnet has a route of somebody else's in its way, on both hosts."""
    for host in lab.hosts:
        await host.exec("ip", "route", "add", BLOCKED.subnet, "via", "192.168.50.5", "proto", "static")
    put_leased(lab, BLOCKED.key, BLOCKED.value)
    for host in lab.hosts:
        await until_condition(host, "kernel-refused")


async def retries(host: Host) -> int:
    count: int = (await told(host))["kernel"]["retries"]
    return count


def due_in(waited_s: float) -> int:
    """How often a thing that is refused each time is tried in so many seconds, the first time included."""
    book, key, now = Retries(), Key("route", "any"), 0.0
    while now <= waited_s:
        book.refused(key, now)
        now = book.next_due or inf
    return book.attempts


@pytest.mark.parametrize("backend", BACKENDS)
async def test_interfaces_that_come_and_go_cost_no_more_than_to_hear_of_them(lab: Lab, backend: str) -> None:
    one = lab.host(1)
    await swarm(lab)
    await lab.start_agents(within_s=60)
    await lab.connect_containers()
    before = lives(lab.hosts)
    tried = [await retries(host) for host in lab.hosts]
    began = time.monotonic()
    if backend == "vxlan":
        await refuse_one(lab)
    with reading(one) as reader:
        async with lab.pinging("c1", "c2", per_second=50) as pings:
            taken = [processor_s(host.agent.pid) for host in lab.hosts]
            await churn(one, PAIRS, PER_SECOND)
            agent, quiet = (processor_s(host.agent.pid) - start for host, start in zip(lab.hosts, taken, strict=True))
        heard = reader.processor_s
    tried = [await retries(host) - start for host, start in zip(lab.hosts, tried, strict=True)]
    due = due_in(time.monotonic() - began) if backend == "vxlan" else 0
    figures = (
        f"{PAIRS} pairs, {PEERS} peers, {backend}: the agent took {agent:.3f} s, of which {quiet:.3f} s without the churn; "
        f"a bare reader {heard:.3f} s; ratio {(agent - quiet) / heard:.2f}; retries {tried}, due {due}"
    )
    print(figures)
    assert lives(lab.hosts) == before, Log.of(one).text[-1500:]
    assert pings.lost == 0, f"lost {pings.lost} of {pings.sent} pings, gaps {pings.gaps}; {figures}"
    assert agent - quiet <= TWICE * heard, figures
    assert all(bool(due) <= count <= due for count in tried), figures
