"""How are peers read by a person? One on a line, the worst first; also a thousand of them, and on a narrow terminal.

A table of rich's takes three seconds for a thousand rows; here a row is a few strings.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from click import style

from flannelpy.core.duration import span
from flannelpy.core.foreign import printable
from flannelpy.explain.status import PeerStatus, ProbeStatus, Status

NONE = "0.0.0.0"
"""The PublicIP of a host that has only an IPv6 address."""

STYLES = {
    "refused": "red",
    "unreachable": "red",
    "pending": "yellow",
    "stale": "yellow",
    "silent": "yellow",
    "excluded": "yellow",
    "in-sync": "",
    "reachable": "green",
}
"""The states of a peer, the worst first; of one that is in sync, what probes say."""

GOOD = ("in-sync", "reachable")

ROOM, LEAST = 36, 24
"""Columns that a state needs beside the others, and that it has at the least: long names of hosts are cut for it."""


def peers_text(status: Status, now: datetime, width: int, *, bad: bool = False, colours: bool = False) -> str:
    """Each peer on a line, or each ``bad`` one; what does not fit stands below it."""
    peers = [peer for peer in sorted(status.peers, key=place) if not (bad and state_of(peer) in GOOD)]
    chosen, named = any(peer.carrier for peer in peers), any(peer.name for peer in peers)
    heads = [*(["host"] if named else []), "subnet", "PublicIP", "backend", *(["by"] if chosen else []), "state"]
    rows = [_cells(peer, now, chosen=chosen, named=named) for peer in peers]
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads) - 1)]
    if named:
        over = sum(widths) + 2 * len(widths) + LEAST - width
        widths[0] = max(12, widths[0] - max(0, over))
    lines = [_line(heads, widths)]
    lines[0] = style(lines[0], bold=True) if colours else lines[0]
    for peer, row in zip(peers, rows, strict=True):
        colour = STYLES.get(state_of(peer), "yellow") if colours else ""
        lines += _row(row, widths, width, colour)
    return "\n".join(lines)


def _cells(peer: PeerStatus, now: datetime, *, chosen: bool, named: bool) -> list[str]:
    """What stands in the columns; the last may be long."""
    cells = [peer.name or ""] if named else []
    cells += [both(peer.subnet, peer.subnet6), both(peer.public_ip, peer.public_ipv6), peer.backend_type or "none"]
    said = _said(peer, now)
    if chosen:
        cells.append(peer.carrier or "")
        said += f"; {peer.reason}" if peer.reason else ""
    return [printable(cell) for cell in (*cells, said)]


def _row(row: Sequence[str], widths: Sequence[int], width: int, colour: str) -> Iterator[str]:
    """A peer's lines: its state beside the rest, or where there is little room for it, in short there and whole below."""
    used = sum(widths) + 2 * len(widths)
    state, more, indent = row[-1], list[str](), used
    if len(state) > width - used:
        if width - used >= ROOM:
            state, *more = textwrap.wrap(state, width - used, break_on_hyphens=False)
        else:
            head, colon, rest = state.partition(": ")
            if len(head) + 1 > width - used:
                head, colon, rest = state.partition(" ")
            state, indent = head + colon.rstrip(), 4
            more = textwrap.wrap(rest, width - indent, break_on_hyphens=False)
    first = _line([*row[:-1], ""], widths, padded=True)
    yield first + (style(state, fg=colour) if colour else state)
    for line in more:
        yield " " * indent + (style(line, fg=colour) if colour else line)


def _line(cells: Sequence[str], widths: Sequence[int], *, padded: bool = False) -> str:
    line = "".join(f"{_fitted(cell, wide):<{wide}}  " for cell, wide in zip(cells, widths, strict=False)) + cells[-1]
    return line if padded else line.rstrip()


def _fitted(cell: str, wide: int) -> str:
    return cell if len(cell) <= wide else f"{cell[: wide - 3]}..."


def state_of(peer: PeerStatus) -> str:
    """What there is to say of it in a word: what probes say, where nothing else is the matter."""
    if peer.state != "in-sync" or peer.probe is None or peer.probe.state == "unknown":
        return peer.state
    return peer.probe.state


def place(peer: PeerStatus) -> tuple[int, str]:
    """The worst first, and of these the longest silent."""
    since = peer.probe.since if peer.probe is not None else None
    return badness(STYLES, state_of(peer)), since or "~"


def badness(worst_first: Iterable[str], one: str) -> int:
    """A place in the order; what is not known comes first."""
    return next((place for place, each in enumerate(worst_first) if each == one), -1)


def _said(peer: PeerStatus, now: datetime) -> str:
    if (state := state_of(peer)) != peer.state and peer.probe is not None:
        return _probed(peer.probe, state, now)
    left = "" if peer.seconds_left is None else f" for {span(peer.seconds_left)} more"
    dropped = f"; {peer.dropped:,} of its packets dropped" if peer.dropped else ""
    return f"{peer.state}{left}{f': {peer.why}' if peer.why else ''}{dropped}"


def _probed(probe: ProbeStatus, state: str, now: datetime) -> str:
    if state != "reachable":
        return f"{state}{f' for {ago(probe.since, now)}' if probe.since else ''}: {probe.why}"
    told = "reachable" if probe.rtt_ms is None else f"reachable {probe.rtt_ms:.{1 if probe.rtt_ms < 10 else 0}f} ms"
    return told + (f", {probe.loss:.0%} lost" if probe.loss else "")


def both(one: str | None, other: str | None) -> str:
    there = [each for each in (one, other) if each is not None]
    return " and ".join([each for each in there if each != NONE] or there)


def ago(moment: str | None, now: datetime) -> str:
    """How long ago that was."""
    try:
        return span((now - datetime.fromisoformat(moment or "")).total_seconds())
    except (ValueError, TypeError):
        return json.dumps(moment)
