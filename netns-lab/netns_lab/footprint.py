"""Does a process grow? Descriptors, threads and resident memory over time, and what their course says (proc(5))."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

WARM_UP_SHARE, WARM_UP_MOST_S = 0.3, 90.0
"""What is taken at the start, when caches fill and pools of threads start, is not judged."""
LEAST_SAMPLES = 6
_TCP = {"01": "established", "02": "syn-sent", "04": "fin-wait-1", "05": "fin-wait-2", "08": "close-wait", "0A": "listening"}
GROWTH_KB = 2048
"""Most that the straight line through the resident memory may rise from the warm-up to the end."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look; ``at_s`` counts from the first."""

    at_s: float
    descriptors: int
    threads: int
    resident_kb: int


@dataclass(slots=True)
class Footprint:
    """A process and its samples, oldest first."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def look(self, at_s: float) -> bool:
        """Add a sample; False where the process is gone."""
        try:
            descriptors = sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return False
        status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        if "VmRSS" not in status:  # a zombie has none
            return False
        self.samples.append(Sample(at_s, descriptors, int(status["Threads"][0]), int(status["VmRSS"][0])))
        return True

    @property
    def judged(self) -> list[Sample]:
        """The samples after the warm-up; none where they are too few to say anything."""
        if not self.samples:
            return []
        start = min(self.samples[-1].at_s * WARM_UP_SHARE, WARM_UP_MOST_S)
        after = [sample for sample in self.samples if sample.at_s >= start]
        return after if len(after) >= LEAST_SAMPLES else []

    @property
    def growth_kb(self) -> float:
        """How far the straight line through the resident memory (least squares) rises while it is judged."""
        if not (judged := self.judged):
            return 0.0
        times = [sample.at_s for sample in judged]
        slope = statistics.linear_regression(times, [sample.resident_kb for sample in judged]).slope
        return slope * (times[-1] - times[0])

    @property
    def complaints(self) -> list[str]:
        """What grew, one line each; empty where nothing did."""
        judged = self.judged
        found = []
        for what in ("descriptors", "threads"):
            before, after = levels([getattr(sample, what) for sample in judged])
            if after > before:
                found.append(f"{self.name}: {what} grew from {before} to {after}")
        if (growth := self.growth_kb) > GROWTH_KB:
            found.append(f"{self.name}: resident memory grew by {growth / 1024:.1f} MB, at most {GROWTH_KB / 1024:g} are allowed")
        return found


def descriptors(pid: int) -> str:
    """What a process holds open: how many of what, with the state of TCP connections (proc(5)). Empty where it is gone."""
    sockets: dict[str, str] = {}
    for kind in ("tcp", "tcp6", "udp", "udp6", "unix", "netlink", "packet"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
                fields = line.split()
                where = 9 if kind[:3] in ("tcp", "udp") else 6 if kind == "unix" else 8 if kind == "packet" else 9
                state = f" {fields[2]} {_TCP.get(fields[3], fields[3])}" if kind[:3] == "tcp" else ""
                sockets[f"socket:[{fields[where]}]"] = kind + state
    found: Counter[str] = Counter()
    with suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(each.readlink())
                found[sockets.get(target, target.split("[")[0])] += 1
    return ", ".join(f"{count} {what}" for what, count in found.most_common())


def processor_s(pid: int) -> float:
    """Seconds of processor time that the threads of a process have taken so far, to the nanosecond (proc(5), schedstat).

    Those of threads that have ended are not in it. Raises OSError where the process is gone.
    """
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def levels(counts: Sequence[int]) -> tuple[int, int]:
    """The level in the first third and in the last: their lower quartiles, so that what is open for a moment does not count."""
    third = len(counts) // 3
    if not third:
        return 0, 0
    first, last = sorted(counts[:third]), sorted(counts[-third:])
    return first[third // 4], last[third // 4]


def draw(footprints: Sequence[Footprint], title: str) -> str:
    """The course of each process: one panel each for memory, descriptors and threads. SVG."""
    colours = ("#2a9d8f", "#e09f3e", "#457b9d", "#b4501e", "#6b4fa0", "#4a7c3a", "#8d99ae", "#1d3557")
    end = max((each.samples[-1].at_s for each in footprints if each.samples), default=0) or 1.0
    panels = (("resident memory, MB", "resident_kb", 1024.0), ("descriptors", "descriptors", 1.0), ("threads", "threads", 1.0))
    marks = [f'<text x="20" y="28" font-size="16">{title}</text>']
    for place, (each, colour) in enumerate(zip(footprints, colours, strict=False)):
        x, y = 20 + 165 * (place % 4), 50 + 18 * (place // 4)
        marks.append(
            f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/><text x="{x + 15}" y="{y}">{each.name}</text>'
        )
    y = 80 + 18 * ((len(footprints) - 1) // 4)
    for text, what, unit in panels:
        top = max((getattr(sample, what) / unit for each in footprints for sample in each.samples), default=0) * 1.1 or 1.0
        marks.append(f'<text x="20" y="{y + 10}" font-weight="bold">{text}</text>')
        marks += [
            f'<line x1="60" y1="{y + 150 - 130 * share:g}" x2="680" y2="{y + 150 - 130 * share:g}" stroke="#d9e2ec"/>'
            f'<text x="55" y="{y + 154 - 130 * share:g}" text-anchor="end">{top * share:.0f}</text>'
            for share in (0, 0.5, 1)
        ]
        for each, colour in zip(footprints, colours, strict=False):
            points = " ".join(
                f"{60 + 620 * sample.at_s / end:.1f},{y + 150 - 130 * getattr(sample, what) / unit / top:.1f}"
                for sample in each.samples
            )
            marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        marks.append(f'<text x="680" y="{y + 168}" text-anchor="end">{end / 60:.1f} minutes</text>')
        y += 185
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{y}" font-family="DejaVu Sans, sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="700" height="{y}" fill="white"/>', *marks, "</svg>", ""])
