"""How are peers read by a person? One on a line, the worst first; also a thousand of them, and on a narrow terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime

from flannelpy.commands.columns import LEAST, Row, lay_out, used, widest
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

NAME = 12
"""Columns that a long name is cut to at the most."""


def peers_text(status: Status, now: datetime, width: int, *, bad: bool = False, colours: bool = False) -> str:
    """Each peer on a line, or each ``bad`` one; what does not fit stands below it."""
    peers = [peer for peer in sorted(status.peers, key=place) if not (bad and state_of(peer) in GOOD)]
    chosen, named = any(peer.carrier for peer in peers), any(peer.name for peer in peers)
    heads = [*(["host"] if named else []), "subnet", "PublicIP", "backend", *(["by"] if chosen else []), "state"]
    rows = [Row(_cells(peer, now, chosen=chosen, named=named), STYLES.get(state_of(peer), "yellow")) for peer in peers]
    widths = widest(heads, rows)
    if chosen and used(widths) + LEAST > width:
        heads, rows, widths = _without_backend(heads, rows)
    if named:
        over = used(widths) + LEAST - width
        widths[0] = max(min(NAME, widths[0]), widths[0] - max(0, over))
    return "\n".join(lay_out(heads, rows, widths, width, colours=colours))


def _without_backend(heads: list[str], rows: list[Row]) -> tuple[list[str], list[Row], list[int]]:
    """By what a peer is reached says more than what its lease is for; who is not reached is told by the latter."""
    by = heads.index("by")
    narrow = [Row([*row.cells[: by - 1], row.cells[by] or row.cells[by - 1], *row.cells[by + 1 :]], row.colour) for row in rows]
    heads = [head for head in heads if head != "backend"]
    return heads, narrow, widest(heads, narrow)


def _cells(peer: PeerStatus, now: datetime, *, chosen: bool, named: bool) -> list[str]:
    """What stands in the columns; the last may be long."""
    cells = [peer.name or ""] if named else []
    cells += [both(peer.subnet, peer.subnet6), both(peer.public_ip, peer.public_ipv6), peer.backend_type or "none"]
    said = _said(peer, now)
    if chosen:
        cells.append(peer.carrier or "")
        said += f"; {peer.reason}" if peer.reason else ""
    return [printable(cell) for cell in (*cells, said)]


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
