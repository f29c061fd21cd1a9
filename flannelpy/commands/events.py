"""What does ``flannelpy events`` do? It asks the agent on this host what has happened, and goes on asking where it is to follow."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from flannelpy.commands.ask import ask
from flannelpy.core.errors import FlannelpyError, MalformedError, UsageError
from flannelpy.core.foreign import printable
from flannelpy.explain.events import PAGE, Event, Events, from_json, to_lines
from flannelpy.explain.status import SOCKET

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
POLL_S = 20
"""How long the agent is asked to wait for something new."""
AGAIN_S = 1.0
"""Between two attempts while the agent is away."""


def show(run_dir: Path, *, since: str | None, follow: bool, as_json: bool) -> int:
    """Print the events; with ``follow`` until ctrl-C. Raises UsageError, and FlannelpyError in one line where there is no agent."""
    path = run_dir / SOCKET
    query = "" if since is None else f"?since={seconds(since)}"
    found = _ask(path, query)
    if found.forgotten and since is None and not as_json:
        click.echo(f"flannelpy: {found.forgotten:,} earlier events are not kept any more", err=True)
    _print(found.events, as_json)
    if not follow:
        return 0
    try:
        _follow(path, found, as_json)
    except KeyboardInterrupt:
        return 0  # it is how following ends


def seconds(text: str) -> int:
    """``30s``, ``10m``, ``1h``, ``2d``. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,9})\s*(s|m|min|h|d)", text.strip())
    if match is None:
        raise UsageError(f"--since {text!r}: expected a length of time like 30s, 10m, 1h or 2d")
    return int(match[1]) * _UNITS[match[2]]


def _follow(path: Path, found: Events, as_json: bool) -> NoReturn:
    """Print what is new, for ever; an agent that is started anew is waited for, and begins with its first event."""
    away = False
    while True:
        try:
            found = _ask(path, f"?life={found.life}&after={found.last}&wait={POLL_S}", POLL_S + 10)
        except FlannelpyError as error:
            if not away:
                click.echo(f"flannelpy: {printable(str(error))}; waiting for it", err=True)
            away = True
            time.sleep(AGAIN_S)
            continue
        away = False
        _print(found.events, as_json)


def _ask(path: Path, query: str, within_s: float | None = None) -> Events:
    try:
        return from_json(ask(path, PAGE + query, within_s))
    except MalformedError as error:
        raise FlannelpyError(f"{path}: {error}; is the agent of another version? Restart it after an upgrade") from None


def _print(events: tuple[Event, ...], as_json: bool) -> None:
    text = to_lines(events) if as_json else "".join(f"{line(event)}\n" for event in events)
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def line(event: Event) -> str:
    """``2026-11-21 12:00:00 peer-joined  peer 10.1.9.0/24 at 192.168.50.12 joined (vxlan)``, in local time."""
    return f"{when(event.at)}  {printable(event.kind, 20):<11}  {printable(event.told)}"


def when(at: str) -> str:
    """A moment in local time, to the second."""
    from datetime import datetime

    try:
        return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return printable(at, 30)
