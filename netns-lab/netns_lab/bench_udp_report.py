"""What has ``bench_udp`` found, and is it enough? Table, JSON and picture.

Absolute figures say more about the machine; what counts are ratios of ways that alternate in one run, each the median over rounds
in which both stood side by side.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from netns_lab import bench_table
from netns_lab.bench_udp_ways import ROOT, WAYS

OUT = ROOT / "lab-out"

VETH, WIRE = "veth", "wire"
WORLDS = {
    VETH: "over veth, where a super-packet crosses whole",
    WIRE: "over a wire: packets of MTU size, gathered where they arrive",
}

Values = dict[str, float]
Rounds = Mapping[str, Sequence[Values]]


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the report. ``goals``, by world: what the ratio of userspace to the C pump must be, and what it is to become."""

    name: str
    text: str
    unit: str
    digits: int
    more_is_better: bool
    goals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


_TCP = {VETH: (4.0, 6.0), WIRE: (3.0, 3.0)}

MEASURES = (
    Measure("tcp1", "TCP, one stream", "Gbit/s", 2, True, _TCP),
    Measure("tcp1_back", "TCP, one stream, the other way", "Gbit/s", 2, True, _TCP),
    Measure("tcp4", "TCP, four streams", "Gbit/s", 2, True, _TCP),
    Measure("tcp4_back", "TCP, four streams, the other way", "Gbit/s", 2, True, _TCP),
    Measure("small", "64 bytes by sendmmsg, delivered", "k/s", 1, True, {VETH: (2.0, 2.5)}),
    Measure("small_back", "64 bytes by sendmmsg, the other way", "k/s", 1, True),
    Measure("udp64", "64 bytes by iperf3, delivered", "k/s", 1, True, {VETH: (1.6, 1.6)}),
    Measure("udp1400", "1400 bytes by iperf3, delivered", "k/s", 1, True),
    Measure("rtt50", "round trip while idle, p50", "ms", 3, False, {VETH: (1.8, 1.5)}),
    Measure("rtt99", "round trip while idle, p99", "ms", 3, False, {VETH: (1.0, 0.7)}),
    Measure("loaded50", "round trip beside a TCP stream, p50", "ms", 2, False),
    Measure("loaded99", "round trip beside a TCP stream, p99", "ms", 2, False),
    Measure("retransmits", "TCP retransmits", "per GB", 1, False, {VETH: (0.01, 0.01)}),
    Measure("cpu", "CPU of both pumps, TCP", "s/GB", 2, False, {VETH: (0.35, 0.2), WIRE: (0.5, 0.35)}),
)
BY_NAME = {measure.name: measure for measure in MEASURES}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways in one measure, and what their ratio must be."""

    way: str
    other: str
    measure: str
    least: float


COMPARISONS = {
    VETH: (),
    WIRE: (
        Comparison("kernel", "vxlan", "tcp1", 0.95),
        Comparison("kernel", "vxlan", "tcp1_back", 0.95),
        Comparison("mixed", "pump", "tcp1", 0.95),
    ),
}
"""By world. ``mixed`` is from the kernel to userspace."""


def medians(rounds: Rounds) -> dict[str, Values]:
    """By way and measure."""
    return {
        kind: {name: statistics.median(each[name] for each in values) for name in values[0]}
        for kind, values in rounds.items()
        if values
    }


def ratio(rounds: Rounds, name: str, way: str = "pump", other: str = "c") -> float | None:
    """One way's to another's: the median over the rounds. None where either was not measured, or was nothing."""
    pairs = [
        (ours[name], theirs[name])
        for ours, theirs in zip(rounds.get(way, ()), rounds.get(other, ()), strict=False)
        if name in ours and name in theirs
    ]
    if name == "retransmits":  # a single round of ours has often none
        ours, theirs = (sum(side) for side in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
        return ours / theirs if theirs else None
    return statistics.median(ours / theirs for ours, theirs in pairs) if pairs and all(theirs for _, theirs in pairs) else None


def verdict(measure: Measure, world: str, found: float | None) -> str:
    """The ratio against its goals, with colours for rich."""
    if found is None or world not in measure.goals:
        return ""
    target, aim = measure.goals[world]
    met = found >= target if measure.more_is_better else found <= target
    reached = found >= aim if measure.more_is_better else found <= aim
    return "[green]aim reached[/]" if reached else "[green]met[/]" if met else "[red]missed[/]"


def show(rounds: Rounds, world: str, look_ups: bench_table.LookUps, console: Console) -> bool:
    """The report, as a table; False where a target was missed."""
    middle = medians(rounds)
    table = Table(title=f"udp {WORLDS[world]}: medians of one run on this machine, the ways in turn")
    table.add_column("measured")
    for kind in middle:
        table.add_column(WAYS[kind].label, justify="right")
    others = [other for other in ("c", "vxlan", "direct") if other in middle and "pump" in middle]
    for column in (*(f"userspace / {WAYS[other].label}" for other in others), "target (aim)", ""):
        table.add_column(column, justify="right")
    verdicts = []
    for measure in MEASURES:
        cells = [f"{values[measure.name]:.{measure.digits}f}" if measure.name in values else "" for values in middle.values()]
        ratios = [ratio(rounds, measure.name, "pump", other) for other in others]
        sign = "≥" if measure.more_is_better else "≤"
        wanted = "{} {:g} ({:g})".format(sign, *measure.goals[world]) if world in measure.goals else ""
        verdicts.append(verdict(measure, world, ratio(rounds, measure.name)))
        shown = ["" if found is None else f"{found:.2f}" for found in ratios]
        table.add_row(f"{measure.text}, {measure.unit}", *cells, *shown, wanted, verdicts[-1])
    console.print(table)
    for each in COMPARISONS[world]:
        found = ratio(rounds, each.measure, each.way, each.other)
        if found is not None:
            verdicts.append("[green]met[/]" if found >= each.least else "[red]missed[/]")
            names = f"{WAYS[each.way].label} to {WAYS[each.other].label}"
            console.print(f"{BY_NAME[each.measure].text}: {names} {found:.2f}, target ≥ {each.least:g}: {verdicts[-1]}")
    missed = look_ups.ratio > bench_table.TARGET
    verdicts.append("[red]missed[/]" if missed else "[green]met[/]")
    console.print(
        f"a million look-ups of a peer: {look_ups.few_s:.3f} s among {bench_table.FEW}, {look_ups.many_s:.3f} s among "
        f"{bench_table.MANY:,}; ratio {look_ups.ratio:.2f}, target ≤ {bench_table.TARGET:g}: {verdicts[-1]}"
    )
    return not any("missed" in each for each in verdicts)


def draw(rounds: Rounds, world: str) -> str:
    """Bars of each way for each measure, each measure on a scale of its own; a dot for each round. SVG."""
    middle = medians(rounds)
    marks: list[str] = []
    y = 72
    for measure in MEASURES:
        present = [kind for kind in middle if measure.name in middle[kind]]
        if not present:
            continue
        most = max(each[measure.name] for kind in present for each in rounds[kind]) or 1.0
        better = "more is better" if measure.more_is_better else "less is better"
        marks.append(f'<text x="20" y="{y}" font-weight="bold">{measure.text}, {measure.unit} ({better})</text>')
        y += 10
        for kind in present:
            value = middle[kind][measure.name]
            found = ratio(rounds, measure.name, kind) if kind != "c" else None
            beside = f"{value:.{measure.digits}f}" + ("" if found is None else f"  ({found:.2f})")
            marks.append(f'<text x="20" y="{y + 12}">{WAYS[kind].label}</text>')
            marks.append(f'<rect x="140" y="{y}" width="{480 * value / most:.1f}" height="15" fill="{WAYS[kind].colour}"/>')
            for each in rounds[kind]:
                x = 140 + 480 * each[measure.name] / most
                marks.append(f'<circle cx="{x:.1f}" cy="{y + 7.5}" r="2.5" fill="#1d3557" fill-opacity="0.6"/>')
            marks.append(f'<text x="635" y="{y + 12}">{beside}</text>')
            y += 19
        y += 26
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{y}" font-family="DejaVu Sans, sans-serif" font-size="12">'
    title = (
        f'<text x="20" y="24" font-size="16">udp {WORLDS[world]}</text>'
        '<text x="20" y="41">bars are medians, dots are rounds; in brackets the ratio to the C pump</text>'
    )
    return "\n".join([head, f'<rect width="800" height="{y}" fill="white"/>', title, *marks, "</svg>", ""])


def save(
    rounds: Rounds, world: str, look_ups: bench_table.LookUps, about: Mapping[str, object], suffix: str = ""
) -> tuple[Path, Path]:
    """lab-out/bench-udp.json and .svg, of a wire bench-udp-wire; where they are."""
    OUT.mkdir(exist_ok=True)
    base = f"bench-udp{'' if world == VETH else f'-{world}'}{suffix}"
    names = [measure.name for measure in MEASURES]
    ratios = {other: {name: ratio(rounds, name, "pump", other) for name in names} for other in ("c", "vxlan", "direct")}
    compared = {
        f"{one.measure}: {one.way} to {one.other}": ratio(rounds, one.measure, one.way, one.other) for one in COMPARISONS[world]
    }
    report = {
        "about": about,
        "medians": medians(rounds),
        "ratios": ratios,
        "compared": compared,
        "look_ups": asdict(look_ups),
        "rounds": rounds,
    }
    paths = OUT / f"{base}.json", OUT / f"{base}.svg"
    paths[0].write_text(json.dumps(report, indent=1) + "\n")
    paths[1].write_text(draw(rounds, world))
    return paths
