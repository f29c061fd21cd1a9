"""Does `make soak-udp` run, say what it saw, and leave nothing behind, also on ctrl-C? A short run tests the pump as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netns_lab.ledger import NETNS, ROOT, Ledger

REPOSITORY = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'netns-lab'}:{REPOSITORY}"}
ENDS_WITHIN_S = 60
OUT = REPOSITORY / "lab-out"


@contextmanager
def soaking(minutes: str) -> Iterator[subprocess.Popen[str]]:
    """A soak that is ended, and so cleaned up, where the block leaves it running."""
    words = [sys.executable, "-m", "netns_lab.soak_udp", "--minutes", minutes]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV) as running:
        try:
            yield running
        finally:
            running.terminate()
            with suppress(subprocess.TimeoutExpired):
                running.wait(ENDS_WITHIN_S)
            if running.poll() is None:  # a test that failed leaves nothing behind either
                running.kill()
                running.wait()
                Ledger(f"soak{running.pid}").remove()


def left_of(pid: int) -> list[str]:
    """Namespaces and directories of the soak with this pid."""
    return [str(path) for path in (*NETNS.glob(f"soak{pid}-*"), *ROOT.glob(f"soak{pid}"))]


def test_a_short_soak_finds_nothing_wrong() -> None:
    with soaking("0.3") as running:
        said, _ = running.communicate(timeout=110)
    assert running.returncode == 0, said
    for expected in ("h1 agent", "h2 worker 1", "nothing grew", "written: lab-out/soak-udp.json"):
        assert expected in said
    report = json.loads((OUT / "soak-udp.json").read_text())
    assert report["wrong"] == []
    assert all(len(samples) > 20 for samples in report["processes"].values())
    tally = report["tally"]
    for kind in ("streams", "connections", "datagrams", "pings", "unknown", "garbage", "changes"):
        assert tally[kind] > 0, kind
    for reason in ("inbound_dropped_outer_source", "outbound_dropped_no_peer"):
        assert tally["counted"][reason] > 0, reason
    assert (OUT / "soak-udp.svg").read_text().startswith("<svg")
    assert left_of(running.pid) == []


def test_an_interrupted_soak_says_what_there_is() -> None:
    with soaking("10") as running:
        swarm = ROOT / f"soak{running.pid}" / "swarm.log"
        deadline = time.monotonic() + 40
        while not swarm.exists():  # by then it soaks
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=40)
    assert running.returncode == 130, said
    assert "interrupted after" in said
    assert "h1 worker 1" in said
    assert left_of(running.pid) == []
