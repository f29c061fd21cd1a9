"""What does Prometheus get to read? Real documents of the agent, read back with prometheus-client's own parser."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from flannelpy.core.conditions import CONDITIONS
from flannelpy.core.tally import BOUNDS_S, Histogram
from flannelpy.explain import metrics
from flannelpy.explain.metrics import METRICS, Durations, Measured
from flannelpy.explain.status import GuardStatus, PeerStatus, ProbeStatus, SourceCheckStatus, Status
from flannelpy.registry.memory import MemoryStore

from .agents import VXLAN, HostInMemory, until, vxlan_value
from .test_status import PEER, WHOLE, YOUNG

NOON = 1_795_262_400.0  # 2026-11-21T12:00:00+00:00
ROOT = Path(__file__).parents[2]


def measured(status: Status, steps: dict[tuple[str, str, str], int] | None = None) -> Measured:
    return Measured(status, steps or {}, {}, Histogram(), Histogram(), 0.25, NOON, 86400.0)


def read(page: str) -> dict[str, dict[tuple[str, ...], float]]:
    """name -> label values, in the order of their names -> value; by Prometheus' own parser."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sample.labels.values())
            assert labels not in series, f"{sample.name}{labels} twice"
            series[labels] = sample.value
    return found


def test_what_an_agent_says_is_what_prometheus_reads() -> None:
    status = replace(WHOLE, guard=GuardStatus("default", {"inner_source": 7}), container_source_check=SourceCheckStatus(5))
    found = read(metrics.page(measured(status, {("route", "add", "done"): 3, ("route", "add", "refused"): 1})))
    assert found["flannelpy_info"] == {("udp", "pump", "0.1.0"): 1.0}
    assert found["flannelpy_ready"] == {(): 1.0}
    assert found["flannelpy_peers"] == {("in-sync",): 1, ("pending",): 0, ("refused",): 0, ("excluded",): 1, ("stale",): 1}
    assert found["flannelpy_lease_state"] == {("held",): 1, ("unconfirmed",): 0, ("lost",): 0, ("from-disk",): 0}
    assert found["flannelpy_lease_remaining_seconds"] == {(): 85000.5}
    assert found["flannelpy_lease_ttl_seconds"] == {(): 86400}
    assert found["flannelpy_mtu_bytes"] == {(): 1472}
    assert found["flannelpy_registry_up"] == {(): 0}
    assert found["flannelpy_registry_silent_seconds"] == {(): 42.0}
    assert found["flannelpy_registry_revision"] == {(): 42}
    assert found["flannelpy_kernel_objects"] == {("link",): 1, ("route",): 1}
    assert found["flannelpy_kernel_objects_missing"] == {("link",): 0, ("route",): 1}
    assert found["flannelpy_kernel_repairs_total"] == {(): 2}
    assert found["flannelpy_kernel_steps_total"] == {("route", "add", "done"): 3, ("route", "add", "refused"): 1}
    assert found["flannelpy_reconciler_silent_seconds"] == {(): 0.25}
    assert found["flannelpy_guard_dropped_packets_total"] == {("inner_source",): 7, ("container_source",): 5}
    assert found["flannelpy_pump_packets_total"] == {("inbound",): 0, ("outbound",): 12345}
    assert found["flannelpy_pump_dropped_packets_total"] == {("outbound", "no_peer"): 3}
    assert found["flannelpy_pump_restarts_total"] == {(): 2}


def test_what_probes_have_brought_back() -> None:
    def probed(state: str, rtt_ms: float | None, loss: float) -> PeerStatus:
        return replace(PEER, probe=ProbeStatus(state, "", None, rtt_ms, loss, 1450, None, None))

    peers = (*(probed("reachable", float(number), 0.0) for number in range(1, 100)), probed("unreachable", None, 1.0), PEER)
    found = read(metrics.page(measured(replace(WHOLE, peers=peers))))
    assert found["flannelpy_peers_probed"] == {("reachable",): 99, ("unreachable",): 1, ("silent",): 0, ("unknown",): 0}
    assert found["flannelpy_probe_rtt_seconds"] == {("0.5",): 0.05, ("0.95",): 0.095, ("1",): 0.099}
    assert found["flannelpy_probe_loss_ratio"] == {(): 0.01}
    nobody = read(metrics.page(measured(replace(WHOLE, peers=(PEER,)))))
    assert not {"flannelpy_peers_probed", "flannelpy_probe_rtt_seconds", "flannelpy_probe_loss_ratio"} & nobody.keys()


def test_what_is_not_known_yet_is_left_out() -> None:
    found = read(metrics.page(measured(YOUNG)))
    assert found["flannelpy_ready"] == {(): 0.0}
    assert found["flannelpy_registry_up"] == {(): 1.0}
    assert not {"flannelpy_mtu_bytes", "flannelpy_registry_revision", "flannelpy_pump_packets_total"} & found.keys()


def test_every_code_is_there_whether_it_holds_or_not() -> None:
    found = read(metrics.page(measured(WHOLE)))["flannelpy_conditions"]
    held = Counter(each.code for each in WHOLE.conditions)
    assert {code: count for (code, _), count in found.items()} == {code: held[code] for code in CONDITIONS}
    assert sum(found.values()) == len(WHOLE.conditions) > 0


@given(st.lists(st.text(max_size=40), max_size=20))
def test_what_others_write_into_etcd_adds_no_time_series(foreign: list[str]) -> None:
    """A peer's key, type and reason, a condition's subject and text: none of it is a label."""
    hostile = [
        replace(PEER, key=text, subnet=text, public_ip=text, backend_type=text, state="excluded", why=text) for text in foreign
    ]
    wrong = [replace(WHOLE.conditions[0], subject=text, text=text) for text in foreign]
    before, after = (
        metrics.page(measured(replace(WHOLE, peers=peers, conditions=conditions)))
        for peers, conditions in (((), ()), (tuple(hostile), tuple(wrong)))
    )
    first, second = ({name: set(series) for name, series in read(page).items()} for page in (before, after))
    assert first == second


def test_ten_thousand_peers_are_a_small_page() -> None:
    assert len(metrics.page(measured(replace(WHOLE, peers=(PEER,) * 10_000)))) < 20_000


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_each_once_and_cumulates(durations: list[float]) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.observe(seconds)
    found = read(metrics.page(replace(measured(YOUNG), convergence=histogram)))
    buckets = {float(le): count for (le,), count in found["flannelpy_convergence_seconds_bucket"].items()}
    assert buckets == {bound: sum(each <= bound for each in durations) for bound in (*BOUNDS_S, float("inf"))}
    assert all(a <= b for a, b in pairwise(buckets.values()))
    assert found["flannelpy_convergence_seconds_count"] == {(): len(durations)}
    assert found["flannelpy_convergence_seconds_sum"][()] == pytest.approx(sum(durations))


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("flannelpy_")
        assert metric.help.endswith(".")
        if isinstance(metric, Durations):
            assert metric.name.endswith("_seconds")
        else:
            assert metric.name.endswith("_total") == (metric.type == "counter")


@pytest.mark.parametrize("there", [True, False])
def test_a_lease_that_does_not_end_has_no_time(there: bool) -> None:
    """As a reservation, and one in Kubernetes: there is nothing to compare."""
    assert WHOLE.lease is not None
    lease = replace(WHOLE.lease, seconds_left=None) if there else None
    found = read(metrics.page(measured(replace(WHOLE, lease=lease))))
    assert not [name for name in found if name.startswith("flannelpy_lease_") and name.endswith("_seconds")]


async def test_the_agents_work_is_counted(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    async with host.run():
        assert host.agent is not None

        async def page() -> dict[str, dict[tuple[str, ...], float]]:
            assert host.agent is not None
            code, kind, text = await host.agent._metrics({})
            assert (code, kind) == (200, metrics.CONTENT_TYPE)
            return read(text)

        before = await page()
        assert before["flannelpy_ready"] == {(): 1.0}
        ((ttl_s, left_s),) = [(before[f"flannelpy_lease_{name}_seconds"][()] for name in ("ttl", "remaining"))]
        assert 2 / 3 * ttl_s <= left_s <= ttl_s == 86400
        assert before["flannelpy_kernel_steps_total"]["link", "add", "done"] == 1
        assert before["flannelpy_registry_calls_total"]["write", "answered"] >= 1
        assert sum(before["flannelpy_kernel_objects_missing"].values()) == 0
        for number in range(5):
            host.put_peer(f"10.5.{number + 1}.0-24", vxlan_value(f"192.0.2.{number + 9}", f"aa:bb:cc:dd:ee:{number:02x}"))
        await until(lambda: host.agent is not None and [peer.state for peer in host.agent.status().peers] == ["in-sync"] * 5)
        after = await page()
        assert after["flannelpy_peers"]["in-sync",] == 5
        name = "flannelpy_kernel_steps_total"
        grown = {key: count - before[name].get(key, 0) for key, count in after[name].items()}
        assert grown["route", "add", "done"] == grown["neigh", "add", "done"] == grown["fdb", "add", "done"] == 5
        name = "flannelpy_convergence_seconds_count"
        assert 1 <= after[name][()] - before[name][()] <= 5


# -------------------------------------------------------------------------------------------------- what is shipped with it


def test_the_alerts_and_the_dashboard_ask_for_metrics_that_there_are() -> None:
    known = {metric.name for metric in METRICS}
    known |= {f"{metric.name}{end}" for metric in METRICS if isinstance(metric, Durations) for end in ("_bucket", "_sum", "_count")}
    folder = ROOT / "packaging" / "prometheus"
    texts = [(folder / "alerts.yml").read_text(), json.dumps(json.loads((folder / "dashboard.json").read_text()))]
    for text in texts:
        asked = set(re.findall(r"\bflannelpy_\w+", text))
        assert asked
        assert asked <= known
