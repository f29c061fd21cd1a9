"""What does a person see of it? A table with the worst first, what to do below it, and a line that counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding, counted, sorted_findings

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDE = 132
_STYLES = {FAILED: "red", WARNING: "yellow", SKIPPED: "dim", OK: "green"}


def page(findings: Sequence[Finding]) -> list[RenderableType]:
    """Table, remedies, count."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("state", no_wrap=True)
    shown.add_column("check", overflow="fold", max_width=28)
    shown.add_column("found", overflow="fold")
    worst_first = sorted_findings(findings)
    for finding in worst_first:
        shown.add_row(Text(finding.state, style=_STYLES[finding.state]), Text(finding.name), Text(finding.said))
    parts: list[RenderableType] = [shown]
    remedies = [finding for finding in worst_first if finding.remedy and finding.state in (FAILED, WARNING)]
    if remedies:
        todo = Table(box=None, pad_edge=False, header_style="bold")
        todo.add_column("what to do", overflow="fold", max_width=28)
        todo.add_column("", overflow="fold")
        for finding in remedies:
            todo.add_row(Text(finding.name, style=_STYLES[finding.state]), Text(finding.remedy))
        parts += [Text(), todo]
    counts = ", ".join(f"{count} {state}" for state, count in counted(findings).items() if count)
    return [*parts, Text(), Text(counts)]
