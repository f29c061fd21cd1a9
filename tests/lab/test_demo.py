"""Does `make demo` show what it promises, tell a lost ping, and leave nothing behind, also on ctrl-C?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netns_lab import demo
from netns_lab.lab import Lab
from netns_lab.ledger import NETNS, ROOT
from netns_lab.pinging import Ping

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = [sys.executable, "-m", "netns_lab.demo"]
ENV = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'netns-lab'}:{REPOSITORY}"}


def left_of(pid: int) -> list[str]:
    """Namespaces and directories of the demo with this pid."""
    name = f"demo{pid}"
    return [str(path) for path in (*NETNS.glob(f"{name}-*"), *ROOT.glob(name))]


def test_the_demo_pings_over_vxlan_and_udp_and_removes_everything() -> None:
    with subprocess.Popen(WORDS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV) as running:
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    for expected in (
        "vxlan: 6 of 6 pings came back",
        "udp: 6 of 6 pings came back",
        "FLANNEL_SUBNET=10.1.",
        "dev flannel.1",
        "VtepMAC",
    ):
        assert expected in said
    assert "a drawing of it: lab-out/topology.svg" in said
    assert (REPOSITORY / "lab-out" / "topology.svg").read_text().startswith("<svg")
    assert left_of(running.pid) == []


def test_an_interrupted_demo_leaves_nothing() -> None:
    with subprocess.Popen(WORDS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as running:
        deadline = time.monotonic() + 20
        while len(left_of(running.pid)) < 3:
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.005)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, "demo: interrupted; everything is removed\n")
    assert left_of(running.pid) == []


async def test_one_lost_ping_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def all_but_one(lab: Lab, *, wait_s: float = 2.0) -> dict[tuple[str, str], Ping]:
        return {("c1", "c2"): Ping(1, 1, 0.1), ("c2", "c1"): Ping(1, 0)}

    monkeypatch.setattr(Lab, "matrix", all_but_one)
    monkeypatch.setattr(demo, "BACKENDS", ("vxlan",))
    assert await demo.demo() == 1
