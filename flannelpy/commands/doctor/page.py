"""What does a person see of it? A table with the worst first, what to do below it, and a line that counts.

Made without rich, whose import takes a fifth of the time of it all.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import click

from flannelpy.commands import terminal
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding, counted, sorted_findings

WIDE = 132
NAMES = 28
"""Columns of a check's name at the least, else a third of all; a longer one goes on in the next line."""
LEAST = 20
_STATES = max(map(len, (FAILED, WARNING, SKIPPED, OK)))
_STYLES = {FAILED: "red", WARNING: "yellow", SKIPPED: "bright_black", OK: "green"}


def show(findings: Sequence[Finding]) -> None:
    """Print it, as wide as the terminal or COLUMNS is."""
    click.echo("\n".join(page(findings, terminal.width(WIDE), colours=terminal.has_colours())))


def page(findings: Sequence[Finding], width: int, *, colours: bool) -> list[str]:
    """Table, remedies, count: the lines, none longer than ``width`` where that is wide enough for words."""
    worst_first = sorted_findings(findings)
    names = min(max(NAMES, width // 3), max((len(finding.name) for finding in worst_first), default=0))
    bold = (lambda text: click.style(text, bold=True)) if colours else str
    lines = [bold(f"{'state':{_STATES}}  {'check':{names}}  found".rstrip())]
    for finding in worst_first:
        state = f"{finding.state:{_STATES}}"
        shown = click.style(state, fg=_STYLES[finding.state]) if colours else state
        for at, row in enumerate(_rows(finding.name, finding.said, names, width - _STATES - 2)):
            lines.append(f"{shown if at == 0 else ' ' * _STATES}  {row}".rstrip())
    remedies = [finding for finding in worst_first if finding.remedy and finding.state in (FAILED, WARNING)]
    if remedies:
        lines += ["", bold("what to do")]
        for finding in remedies:
            lines += _rows(finding.name, finding.remedy, names, width)
    return [*lines, "", ", ".join(f"{count} {state}" for state, count in counted(findings).items() if count)]


def _rows(name: str, text: str, names: int, width: int) -> Iterator[str]:
    """A name in its column, and text beside it, each over as many lines as it takes."""
    left = textwrap.wrap(name, names, break_on_hyphens=False) or [""]
    right = textwrap.wrap(text, max(LEAST, width - names - 2), break_on_hyphens=False) or [""]
    for at in range(max(len(left), len(right))):
        begin = left[at] if at < len(left) else ""
        yield f"{begin:{names}}  {right[at] if at < len(right) else ''}".rstrip()
