"""What the benchmarks make of what they have measured. The measuring itself is their own."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from netns_lab import bench_table, bench_udp_report
from netns_lab.bench_udp import percentiles
from netns_lab.bench_udp_report import BY_NAME, VETH, WIRE, ratio, save, show, verdict
from netns_lab.errors import LabError

LOOK_UPS = bench_table.LookUps(0.1, 0.11, 1.1)


def rounds_of(**ways: list[float]) -> dict[str, list[dict[str, float]]]:
    return {way: [{"tcp1": value, "tcp1_back": value, "retransmits": 0.0} for value in values] for way, values in ways.items()}


def test_a_ratio_is_the_median_of_rounds_that_stood_side_by_side() -> None:
    rounds = rounds_of(c=[1.0, 2.0, 10.0], pump=[5.0, 6.0, 20.0], vxlan=[10.0, 10.0, 10.0])
    assert ratio(rounds, "tcp1") == 3.0
    assert ratio(rounds, "tcp1", "pump", "vxlan") == 0.6
    assert ratio(rounds, "tcp1", "kernel", "vxlan") is None
    assert ratio(rounds, "small") is None
    assert ratio(rounds_of(c=[0.0], pump=[1.0]), "tcp1") is None


@pytest.mark.parametrize(
    ("name", "world", "found", "said"),
    [
        ("tcp1", VETH, 3.9, "missed"),
        ("tcp1", VETH, 4.1, "met"),
        ("tcp1", VETH, 6.1, "aim reached"),
        ("tcp1", WIRE, 2.9, "missed"),
        ("tcp1", WIRE, 3.1, "aim reached"),
        ("rtt50", VETH, 1.9, "missed"),
        ("rtt50", VETH, 1.4, "aim reached"),
        ("rtt50", WIRE, 9.0, ""),
        ("tcp1", WIRE, None, ""),
    ],
)
def test_what_is_enough_depends_on_the_world(name: str, world: str, found: float | None, said: str) -> None:
    assert said in verdict(BY_NAME[name], world, found)
    assert bool(verdict(BY_NAME[name], world, found)) == bool(said)


@pytest.mark.parametrize(
    ("kernel", "mixed", "enough", "said"),
    [
        (4.8, 2.0, True, "kernel FOU to kernel VXLAN 0.96"),
        (4.5, 2.0, False, "kernel FOU to kernel VXLAN 0.90"),
        (4.8, 1.8, False, "FOU to userspace to userspace 0.90"),
    ],
)
def test_on_a_wire_the_engines_are_compared_with_each_other(kernel: float, mixed: float, enough: bool, said: str) -> None:
    rounds = rounds_of(c=[0.5], vxlan=[5.0], pump=[2.0], kernel=[kernel], mixed=[mixed])
    console = Console(file=io.StringIO(), width=240)
    assert show(rounds, WIRE, LOOK_UPS, console) is enough
    assert isinstance(console.file, io.StringIO)
    assert said in console.file.getvalue()
    assert show(rounds, WIRE, replace(LOOK_UPS, ratio=9.0), console) is False


def test_the_report_has_all_ratios_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_udp_report, "OUT", tmp_path)
    rounds = rounds_of(direct=[8.0], vxlan=[5.0], c=[0.5], pump=[2.0], mixed=[1.0])
    written, picture = save(rounds, WIRE, LOOK_UPS, {"cores": 2})
    assert (written.name, picture.name) == ("bench-udp-wire.json", "bench-udp-wire.svg")
    report = json.loads(written.read_text())
    assert [report["ratios"][other]["tcp1"] for other in ("c", "vxlan", "direct")] == [4.0, 0.4, 0.25]
    assert report["compared"]["tcp1: mixed to pump"] == 0.5
    assert report["about"] == {"cores": 2}
    assert "2.00  (4.00)" in picture.read_text()


def test_lost_pings_are_no_round_trips() -> None:
    printed = "\n".join(f"64 bytes: time={number} ms" for number in range(1, 101))
    assert percentiles(printed, 100, least=0.9) == (50.5, 100.0)
    with pytest.raises(LabError, match="100 of 200 pings were lost"):
        percentiles(printed, 200, least=0.9)
