"""What was checked on a host, and what came of it? The document behind ``flannelpy doctor``: values, their order, their JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

SCHEMA = 1
"""Grows when a name in the document goes, or means something else."""

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"
WORST_FIRST = (FAILED, WARNING, SKIPPED, OK)

WELL, FAULT, LOOK = 0, 3, 4
"""Exit codes: nothing is wrong; a check has failed, so that packets are or will be lost; something wants a look."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its ``name`` (lower-case words, unique but for what is checked), its ``state``, what was found, what to do."""

    name: str
    state: str
    said: str
    remedy: str = ""


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; of one state as they were found."""
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.state))


def counted(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each state."""
    return {state: sum(finding.state == state for finding in findings) for state in WORST_FIRST}


def exit_code(findings: Sequence[Finding]) -> int:
    """By the worst."""
    found = counted(findings)
    return FAULT if found[FAILED] else LOOK if found[WARNING] else WELL


def to_json(findings: Sequence[Finding], version: str) -> str:
    """Indented; ``exitCode`` is what the command ends with."""
    document = {
        "schema": SCHEMA,
        "version": version,
        "exitCode": exit_code(findings),
        "counts": counted(findings),
        "checks": [asdict(finding) for finding in findings],
    }
    return json.dumps(document, indent=2)
