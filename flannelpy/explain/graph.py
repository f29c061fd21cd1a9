"""What does the overlay look like from this host? An SVG of a status: whom it reaches, by what, how fast, and whom not.

This host stands in the middle, the peers in two columns, the worst first. Nothing outside of the file is needed to show it; where
the reader's surroundings are dark, it is dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from flannelpy.core.foreign import cut, printable
from flannelpy.explain.status import PeerStatus, Status

MOST = 60
"""Peers that are drawn one by one; of more, the worst, and how many others there are."""

_DIRECT = frozenset({"host-gw", "alloc"})
"""What puts nothing around a packet."""
_WORST_FIRST = ("bad", "odd", "unasked", "good")
_STATES = {"reachable": "good", "unreachable": "bad", "silent": "odd", "unknown": "unasked"}
_KERNEL = {"refused": "bad", "pending": "odd", "stale": "odd", "excluded": "odd"}

CARD, HIGH, GAP, HUB, BETWEEN, MARGIN, TOP = 268, 44, 10, 260, 130, 24, 64
NAMED = 15
"""How much higher cards are that have a name in them."""
_HUB_HIGH = 132
_MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"

_STYLE = """
.paper{fill:#fff}.ink{fill:#1f2933}.soft{fill:#52677a}.card{fill:#f6f8fa;stroke:#c3ccd5}
.good{stroke:#2f8f4e}.bad{stroke:#c62828}.odd{stroke:#b26a00}.unasked{stroke:#8795a1}
.f.good{fill:#2f8f4e}.f.bad{fill:#c62828}.f.odd{fill:#b26a00}.f.unasked{fill:#8795a1}.f{stroke:none}
@media (prefers-color-scheme:dark){
.paper{fill:#14181d}.ink{fill:#e6ebf0}.soft{fill:#9fb0c0}.card{fill:#1e252d;stroke:#3c4854}
.good{stroke:#5cc27f}.bad{stroke:#ff6b6b}.odd{stroke:#f0b04a}.unasked{stroke:#7b8894}
.f.good{fill:#5cc27f}.f.bad{fill:#ff6b6b}.f.odd{fill:#f0b04a}.f.unasked{fill:#7b8894}.f{stroke:none}}
"""


def draw(status: Status) -> str:
    """The picture as SVG text."""
    peers = sorted(status.peers, key=lambda peer: (_WORST_FIRST.index(mood_of(peer)), peer.key))
    shown, more = peers[:MOST], max(0, len(peers) - MOST)
    left, right = shown[1::2], shown[::2]
    high = HIGH + (NAMED if any(peer.name for peer in shown) else 0)
    rows = max(len(left), len(right), 1)
    body = max(rows * (high + GAP) - GAP, _HUB_HIGH)
    conditions = [each for each in status.conditions if each.severity != "info"][:6]
    width = 2 * (MARGIN + CARD + BETWEEN) + HUB
    height = TOP + body + 56 + 22 * len(conditions) + (22 if more else 0)
    middle = TOP + body / 2
    marks = [f'<rect class="paper" width="{width}" height="{height:g}"/>', _text(MARGIN, 36, _heading(status), size=18, bold=True)]
    for column, x in ((left, MARGIN), (right, width - MARGIN - CARD)):
        start = middle - (len(column) * (high + GAP) - GAP) / 2
        squeeze = min(1.0, 0.8 * _HUB_HIGH / max(1, len(column) * (high + GAP)))
        for place, peer in enumerate(column):
            marks += _peer(peer, x, start + place * (high + GAP), high, width, middle, squeeze)
    marks += _hub(status, (width - HUB) / 2, middle - _HUB_HIGH / 2)
    at = TOP + body + 30
    if more:
        marks.append(_text(MARGIN, at, f"and {more:,} more, none of them worse than those above", size=13, soft=True))
        at += 22
    marks += _legend(at, width)
    for each in conditions:
        at += 22
        mood = "bad" if each.severity == "error" else "odd"
        marks.append(f'<circle class="f {mood}" cx="{MARGIN + 6}" cy="{at - 5:g}" r="5"/>')
        marks.append(_text(MARGIN + 20, at, cut(printable(each.text), 130), size=13))
    size = f'width="{width}" height="{height:g}" viewBox="0 0 {width} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="DejaVu Sans, Verdana, Arial, sans-serif">'
    return "\n".join([head, f"<title>{escape(_heading(status))}</title>", f"<style>{_STYLE}</style>", *marks, "</svg>", ""])


def _heading(status: Status) -> str:
    network = dict(status.network or {})
    whole = [str(network[name]) for name in ("Network", "IPv6Network") if network.get(name)]
    backend = "no backend yet" if status.backend is None else status.backend.type
    count = len(status.peers)
    return f"{' and '.join(whole) or 'no network yet'}, {backend}, {count:,} peer{'' if count == 1 else 's'}"


def mood_of(peer: PeerStatus) -> str:
    """How it is with a peer: bad, odd, unasked or good."""
    if peer.state in _KERNEL:
        return _KERNEL[peer.state]
    return "unasked" if peer.probe is None else _STATES.get(peer.probe.state, "unasked")


def _peer(peer: PeerStatus, x: float, y: float, high: int, width: float, middle: float, squeeze: float) -> Iterator[str]:
    """A card, so ``high``, and the line to it. ``squeeze``: how much closer together lines are at this host."""
    mood, by = mood_of(peer), peer.carrier or peer.backend_type or "none"
    leftmost = x < width / 2
    edge, hub = (x + CARD, (width - HUB) / 2) if leftmost else (x, (width + HUB) / 2)
    centre = y + high / 2
    bend, end = (edge + hub) / 2, middle + (centre - middle) * squeeze
    dash = "" if by in _DIRECT else ' stroke-dasharray="7 4"'
    curve = f"M{edge:g} {centre:g}C{bend:g} {centre:g} {bend:g} {end:g} {hub:g} {end:g}"
    yield f'<path class="{mood}" d="{curve}" fill="none" stroke-width="{2.4 if mood == "bad" else 1.6}"{dash}/>'
    yield f'<g><title>{escape(_whole(peer))}</title><rect class="card" x="{x:g}" y="{y:g}" width="{CARD}" height="{high}" rx="6"/>'
    yield f'<rect class="f {mood}" x="{x:g}" y="{y:g}" width="6" height="{high}" rx="3"/>'
    subnets = [each for each in (peer.subnet, peer.subnet6) if each]
    yield _text(x + 16, y + 18, cut(printable(" ".join(subnets)), 22), size=13, bold=True, mono=True)
    yield _text(x + CARD - 10, y + 18, _fast(peer), size=12, end=True, mood=mood)
    address = peer.public_ip if peer.subnet is not None or not peer.public_ipv6 else peer.public_ipv6
    yield _text(x + 16, y + 35, cut(printable(address), 26), size=12, mono=True, soft=True)
    probe = peer.probe
    carries = f", {probe.size} bytes" if probe is not None and probe.size_passes else ""
    yield _text(x + CARD - 10, y + 35, cut(printable(f"{by}{carries}"), 22), size=12, end=True, soft=True)
    yield (_text(x + 16, y + 51, cut(printable(peer.name), 36), size=12) if peer.name else "") + "</g>"


def _fast(peer: PeerStatus) -> str:
    """In a word or a number."""
    probe = peer.probe
    if peer.state in _KERNEL or probe is None:
        return peer.state
    if probe.state != "reachable" or probe.rtt_ms is None:
        return "not asked yet" if probe.state == "unknown" else probe.state
    lost = f", {probe.loss:.0%} lost" if probe.loss else ""
    return f"{probe.rtt_ms:.{1 if probe.rtt_ms < 100 else 0}f} ms{lost}"


def _whole(peer: PeerStatus) -> str:
    """What a pointer that rests on it tells."""
    why = peer.why or (peer.probe.why if peer.probe is not None else "") or peer.reason or ""
    return printable(f"{peer.key}: {peer.state}{f', {why}' if why else ''}")


def _hub(status: Status, x: float, y: float) -> Iterator[str]:
    mood = "good" if status.ready else "bad"
    yield f'<rect class="card" x="{x:g}" y="{y:g}" width="{HUB}" height="{_HUB_HIGH}" rx="10"/>'
    yield f'<rect class="f {mood}" x="{x:g}" y="{y:g}" width="{HUB}" height="8" rx="4"/>'
    lease, uplink, backend = status.lease, status.uplink, status.backend
    lines: Sequence[tuple[str, str]] = (
        (_own_name(status), "ready" if status.ready else "not ready"),
        (cut(printable((lease.subnet or lease.subnet6 or "") if lease is not None else "no lease yet"), 24), ""),
        ("no uplink" if uplink is None else uplink.interface, "" if uplink is None else uplink.address or uplink.address6 or ""),
        ("" if backend is None else backend.type, "" if backend is None else f"MTU {backend.mtu}"),
        (status.etcd.name.removeprefix("the "), "answers" if status.etcd.reachable else "does not answer"),
    )
    for place, (word, value) in enumerate(lines):
        at = y + 31 + place * 23
        yield _text(x + 14, at, word, size=14 if place < 2 else 12, bold=place < 2, mono=place == 1, soft=place > 1)
        wrong = (place == 0 and not status.ready) or (place == 4 and not status.etcd.reachable)
        moods = "bad" if wrong else "good" if place == 0 else ""
        yield _text(x + HUB - 14, at, cut(printable(value), 26), size=12, end=True, mono=place == 2, mood=moods)


def _own_name(status: Status) -> str:
    name = None if status.lease is None else status.lease.name
    return cut(printable(name), 22) if name else "this host"


def _legend(y: float, width: float) -> Iterator[str]:
    words = (("good", "reachable"), ("bad", "unreachable"), ("odd", "wants a look"), ("unasked", "not asked"))
    x = float(MARGIN)
    for mood, word in words:
        yield f'<circle class="f {mood}" cx="{x + 6:g}" cy="{y - 4:g}" r="5"/>{_text(x + 17, y, word, size=12, soft=True)}'
        x += 120
    for dash, word in ((' stroke-dasharray="7 4"', "encapsulated"), ("", "direct")):
        yield f'<path class="unasked" d="M{x:g} {y - 4:g}h34" stroke-width="2"{dash}/>{_text(x + 42, y, word, size=12, soft=True)}'
        x += 150
    yield _text(width - MARGIN, y, "ms: round trip; bytes: pass whole", size=12, end=True, soft=True)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    bold: bool = False,
    mono: bool = False,
    end: bool = False,
    soft: bool = False,
    mood: str = "",
) -> str:
    kind = f"f {mood}" if mood else "soft" if soft else "ink"
    style = f'class="{kind}" font-size="{size}"'
    style += ' font-weight="bold"' if bold else ""
    style += f' font-family="{_MONO}"' if mono else ""
    style += ' text-anchor="end"' if end else ""
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>' if text else ""
