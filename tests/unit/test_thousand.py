"""What does a cluster of a thousand hosts cost each of them: to show it, to scrape it, to probe it? CPU time, the best of some."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from flannelpy.commands.status_table import page
from flannelpy.explain import metrics
from flannelpy.explain.status import ProbeStatus, from_json, to_json
from tests.unit.test_metrics import measured
from tests.unit.test_probing import Air
from tests.unit.test_status import PEER, WHOLE

PEERS = 1000


def cpu_s(work: Callable[[], object], times: int = 5) -> float:
    """The least that it took, in seconds."""

    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return min(once() for _ in range(times))


def probed(number: int) -> ProbeStatus:
    state = "unreachable" if number % 10 == 0 else "reachable"
    return ProbeStatus(state, "its host answers" * (state != "reachable"), None, number / 50, 0.0, 1450, None, None)


CLUSTER = replace(WHOLE, peers=tuple(replace(PEER, probe=probed(number)) for number in range(PEERS)))


def test_a_scrape_takes_under_50_ms_and_200_kb() -> None:
    assert len(metrics.page(measured(CLUSTER))) < 200_000
    took = cpu_s(lambda: metrics.page(measured(CLUSTER)))
    print(f"scrape: {took * 1000:.1f} ms")
    assert took < 0.050


def test_status_takes_under_a_second() -> None:
    """What it does after its imports, which are the same for any number of peers: a fifth of a second."""
    document = to_json(CLUSTER)
    took = cpu_s(lambda: page(from_json(document), peers=True, bad=False), 3)
    print(f"status --peers: {took:.2f} s")
    assert took < 0.8


def test_probes_are_under_ten_packets_a_second_and_half_a_per_cent_of_a_core() -> None:
    """The schedule's part; an echo request more or less costs the kernel some microseconds."""
    air, virtual_s = Air(PEERS), 200.0
    air.run(100)
    air.sent.clear()
    took = cpu_s(lambda: air.run(virtual_s), 3)
    print(f"probes: {took / virtual_s:.3%} of a core, {len(air.sent) / 3 / virtual_s:.2f} packets a second")
    assert len(air.sent) / 3 / virtual_s < 10.0
    assert took / virtual_s < 0.005
