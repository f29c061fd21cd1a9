"""Who reaches whom in a lab? An SVG from what every agent says of its peers: hosts on a ring, a line for each pair.

A line has the colour of the worse of its two directions; of few hosts it tells the round trip of both. Dark where the reader's
surroundings are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any

SAID_UP_TO, WORDS_UP_TO = 5, 16
"""Of more hosts than the first, round trips are in the lines' titles only; of more than the second, a host's word is its subnet."""

SILENT = "no agent answers"
_WORST_FIRST = ("bad", "odd", "unasked", "good")
_MOODS = {"reachable": "good", "unreachable": "bad", "silent": "odd"}
_DIRECT = frozenset({"host-gw", "alloc"})
_MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"
_MARGIN, _LABEL, _TOP, _DOT = 30, 210, 62, 19
_ABOVE = {False: 50, True: 150}
"""Room for words above the ring and below it, in pixels; whether there are many."""

_STYLE = """
.paper{fill:#fff}.ink{fill:#1f2933}.soft{fill:#52677a}.halo{fill:#fff;opacity:.85}
.l{fill:none}.l.good{stroke:#2f8f4e}.l.bad{stroke:#c62828}.l.odd{stroke:#b26a00}.l.unasked{stroke:#8795a1}
.f.good{fill:#2f8f4e}.f.bad{fill:#c62828}.f.odd{fill:#b26a00}.f.unasked{fill:#8795a1}.in{fill:#fff}
@media (prefers-color-scheme:dark){
.paper{fill:#14181d}.ink{fill:#e6ebf0}.soft{fill:#9fb0c0}.halo{fill:#14181d}
.l.good{stroke:#5cc27f}.l.bad{stroke:#ff6b6b}.l.odd{stroke:#f0b04a}.l.unasked{stroke:#7b8894}
.f.good{fill:#5cc27f}.f.bad{fill:#ff6b6b}.f.odd{fill:#f0b04a}.f.unasked{fill:#7b8894}.in{fill:#14181d}}
"""

Document = Mapping[str, Any]
"""What ``flannelpy status --json`` prints; empty where no agent answers."""


@dataclass(frozen=True, slots=True)
class Way:
    """One direction: how it is, in a word of ``_WORST_FIRST``, and in words; whether packets go as they are."""

    mood: str
    said: str
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a host stands."""

    x: float
    y: float
    angle: float


def draw(name: str, documents: Mapping[str, Document]) -> str:
    """The picture as SVG text. ``documents``: by host."""
    hosts = list(documents)
    many = len(hosts) > WORDS_UP_TO
    radius = max(190.0, len(hosts) * 15.0)
    width, height = 2 * (_MARGIN + _LABEL + radius), _TOP + 2 * radius + 2 * _ABOVE[many] + 50
    middle_x, middle_y = width / 2, _TOP + radius + _ABOVE[many]
    spots = {}
    for number, host in enumerate(hosts):
        angle = 2 * math.pi * number / max(1, len(hosts)) - math.pi / 2
        spots[host] = Spot(middle_x + radius * math.cos(angle), middle_y + radius * math.sin(angle), angle)
    ways = {(one, other): _way(documents[one], documents[other]) for one in hosts for other in hosts if one != other}
    pairs = sorted(combinations(hosts, 2), key=lambda pair: _WORST_FIRST.index(_worse(ways, pair)), reverse=True)
    marks = [f'<rect class="paper" width="{width:g}" height="{height:g}"/>']
    marks.append(_text(_MARGIN, 38, f"lab {name}: who reaches whom", size=18, bold=True))
    for pair in pairs:  # the worst last, above the others
        marks += _line(ways, pair, spots, len(hosts))
    for host in hosts:
        marks += _host(host, documents[host], spots[host], many=many)
    marks += _legend(height - 24)
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="DejaVu Sans, Verdana, Arial, sans-serif">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *marks, "</svg>", ""])


def _way(one: Document, other: Document) -> Way:
    """What one host says of another."""
    lease = other.get("lease") or {}
    subnets = {lease.get("subnet"), lease.get("subnet6")} - {None}
    peer = next((each for each in one.get("peers", ()) if subnets & {each.get("subnet"), each.get("subnet6")}), None)
    if not one:
        return Way("bad", SILENT)
    if peer is None:
        return Way("odd", "not known")
    direct = (peer.get("carrier") or peer.get("BackendType")) in _DIRECT
    probe = peer.get("probe")
    if peer.get("state") != "in-sync":
        return Way("bad" if peer.get("state") == "refused" else "odd", str(peer.get("state")), direct)
    if not probe or probe.get("state") == "unknown":
        return Way("unasked", "not asked", direct)
    rtt = probe.get("rttMs")
    said = f"{rtt:.1f} ms" if probe.get("state") == "reachable" and rtt is not None else str(probe.get("state"))
    return Way(_MOODS.get(str(probe.get("state")), "unasked"), said, direct)


def _worse(ways: Mapping[tuple[str, str], Way], pair: tuple[str, str]) -> str:
    there, back = ways[pair], ways[pair[1], pair[0]]
    return min(there.mood, back.mood, key=_WORST_FIRST.index)


def _line(ways: Mapping[tuple[str, str], Way], pair: tuple[str, str], spots: Mapping[str, Spot], count: int) -> Iterator[str]:
    one, other = spots[pair[0]], spots[pair[1]]
    there, back = ways[pair], ways[pair[1], pair[0]]
    mood = _worse(ways, pair)
    dash = "" if there.direct and back.direct else ' stroke-dasharray="7 4"'
    place = f'x1="{one.x:.1f}" y1="{one.y:.1f}" x2="{other.x:.1f}" y2="{other.y:.1f}"'
    title = f"{pair[0]} to {pair[1]}: {there.said}; back: {back.said}"
    wide = 2.6 if mood == "bad" else 1.4
    dash += ' opacity="0.3"' if mood == "good" and count > WORDS_UP_TO else ""
    yield f'<line class="l {mood}" {place} stroke-width="{wide}"{dash}><title>{escape(title)}</title></line>'
    for near, far, way in ((one, other, there), (other, one, back)):  # beside the host that says so
        if count > SAID_UP_TO or way.said == SILENT:
            continue
        x, y = near.x + (far.x - near.x) * 0.3, near.y + (far.y - near.y) * 0.3
        half = len(way.said) * 3.4 + 4
        yield f'<rect class="halo" x="{x - half:.1f}" y="{y - 9:.1f}" width="{2 * half:.1f}" height="16" rx="4"/>'
        yield _text(x, y + 3.5, way.said, size=11, anchor="middle", kind=f"f {way.mood}")


def _host(name: str, document: Document, spot: Spot, *, many: bool) -> Iterator[str]:
    ready = bool(document.get("ready"))
    yield f'<circle class="f {"good" if ready else "bad"}" cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="{_DOT}"/>'
    yield _text(spot.x, spot.y + 4, name, size=12, bold=True, anchor="middle", kind="in")
    lease, backend = document.get("lease") or {}, document.get("backend") or {}
    subnet = str(lease.get("subnet") or lease.get("subnet6") or "no lease") if document else SILENT
    if many:
        yield _outward(spot, subnet)
        return
    across = math.cos(spot.angle)
    anchor = "middle" if abs(across) < 0.2 else "start" if across > 0 else "end"
    x = spot.x + (0 if anchor == "middle" else (_DOT + 8) * (1 if across > 0 else -1))
    y = spot.y + (0 if anchor != "middle" else (_DOT + 16) if math.sin(spot.angle) > 0 else -(_DOT + 22))
    yield _text(x, y, subnet, size=12, bold=True, anchor=anchor, mono=True)
    if document:
        more = f"{lease.get('PublicIP') or 'no PublicIP'}, {backend.get('type', 'no backend')}, MTU {backend.get('mtu', '?')}"
        yield _text(x, y + 15, more, size=11, anchor=anchor, kind="soft")


def _outward(spot: Spot, text: str) -> str:
    """Words that lie like spokes, so that those of many hosts do not meet; none of them upside down."""
    degrees, left = math.degrees(spot.angle), math.cos(spot.angle) < 0
    said = _text((-1 if left else 1) * (_DOT + 6), 4, text, size=12, bold=True, mono=True, anchor="end" if left else "start")
    return f'<g transform="translate({spot.x:.1f} {spot.y:.1f}) rotate({degrees + 180 if left else degrees:.1f})">{said}</g>'


def _legend(y: float) -> Iterator[str]:
    x = float(_MARGIN)
    for mood, word in (("good", "reachable"), ("bad", "unreachable"), ("odd", "wants a look"), ("unasked", "not asked")):
        yield f'<circle class="f {mood}" cx="{x + 6:g}" cy="{y - 4:g}" r="5"/>{_text(x + 16, y, word, size=11, kind="soft")}'
        x += 104
    for dash, word in ((' stroke-dasharray="7 4"', "encapsulated"), ("", "direct")):
        yield f'<path class="l unasked" d="M{x:g} {y - 4:g}h30" stroke-width="2"{dash}/>'
        yield _text(x + 36, y, word, size=11, kind="soft")
        x += 130


def _text(
    x: float, y: float, text: str, *, size: int, bold: bool = False, mono: bool = False, anchor: str = "start", kind: str = "ink"
) -> str:
    style = f'class="{kind}" font-size="{size}"'
    style += ' font-weight="bold"' if bold else ""
    style += f' font-family="{_MONO}"' if mono else ""
    style += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
