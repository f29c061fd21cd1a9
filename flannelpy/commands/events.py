"""What happened on this host lately? The agent's events, for ``flannelpy events``."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from flannelpy.commands.ask import ask
from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.core.printable import printable
from flannelpy.explain.status import EVENTS_PAGE, SOCKET

EVERY_S = 1.0
"""How often the agent is asked while somebody follows."""

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400}


def show(run_dir: Path, *, since: str | None, follow: bool, as_json: bool) -> int:
    """Print them, the oldest first; with ``follow``, and those that come, until ctrl-C. Raises FlannelpyError in one line."""
    start = 0.0 if since is None else time.time() - _seconds(since)
    path, seen = run_dir / SOCKET, 0
    while True:
        for event in _read(path):
            if event["number"] > seen and event["at"] >= start:
                click.echo(json.dumps(event) if as_json else _line(event))
            seen = max(seen, event["number"])
        if not follow:
            return 0
        time.sleep(EVERY_S)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        events: list[dict[str, Any]] = json.loads(ask(path, EVENTS_PAGE))["events"]
        return [event for event in events if isinstance(event["at"], float | int) and isinstance(event["number"], int)]
    except (ValueError, KeyError, TypeError) as error:
        raise FlannelpyError(f"{path}: {error!r:.80}; is the agent of another version? Restart it after an upgrade") from None


def _line(event: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(event["at"], UTC).astimezone()
    return f"{when:%Y-%m-%d %H:%M:%S}  {printable(str(event.get('kind')), 12):<9} {printable(str(event.get('text')), 300)}"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9})(s|min|m|h|d)", text.strip())
    if match is None:
        raise UsageError(f"--since {text!r}: expected a time like 90s, 30min, 1h or 2d")
    return float(int(match[1]) * _UNITS[match[2]])
