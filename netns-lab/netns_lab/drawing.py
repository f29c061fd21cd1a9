"""What does the lab look like? An SVG from the same value that the lab is built from, and from what agents have written since.

Written by hand, with fonts that every machine has: a picture that needs nothing to be looked at. Hosts stand in rows of at most
five below the private segment; the dashed line between their devices is the overlay; under each host its NAT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from netaddr import IPNetwork

from netns_lab.topology import NAT_ADDRESS, NAT_GATEWAY, OUTSIDE, HostPlan, Topology

IN_A_ROW = 5
SHOWN_CONTAINERS = 6

CARD, GAP, MARGIN = 264, 34, 44
INNER = CARD - 28
BAR, CABLE = 30, 34
CHIP, STEP = 26, 34
HEAD = 62
"""Height of a row's parts, in pixels."""

INK, SOFT, PAPER = "#1f2933", "#627d98", "#ffffff"
SEGMENT, OVERLAY, BRIDGE, CONTAINER, ETCD, GREY = "#2f6f9f", "#b4501e", "#4a7c3a", "#e8f3e4", "#6b4fa0", "#eef2f6"

Env = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mark:
    """One piece of SVG; ``back`` pieces are drawn first, so that cables pass behind boxes."""

    svg: str
    back: bool = False


def draw(topology: Topology, name: str, envs: Mapping[str, Env] | None = None) -> str:
    """The picture as SVG text. ``envs``: each host's subnet.env, where it has one."""
    envs = envs or {}
    hosts = topology.host_plans
    columns = min(IN_A_ROW, len(hosts))
    rows = [hosts[start : start + IN_A_ROW] for start in range(0, len(hosts), IN_A_ROW)]
    heading = _heading(topology, name)
    width = max(2 * MARGIN + columns * CARD + (columns - 1) * GAP, 2 * MARGIN + 13 * len(heading))
    card = _card_height(topology)
    row_height = BAR + CABLE + card + CABLE + CHIP + 40
    top = 132 if topology.etcd else 84
    height = top + len(rows) * row_height + 16
    marks = [_text(MARGIN, 38, heading, size=18, bold=True), *_etcd(topology, top)]
    for index, row in enumerate(rows):
        y = top + index * row_height
        marks += _segment(topology, y, width, first=index == 0)
        if index:
            x = MARGIN / 2 + 6
            marks.append(_line(x, y - row_height + BAR / 2, x, y + BAR / 2, SEGMENT, 4))
            if _overlay_device(topology):
                x = width - MARGIN / 2 - 8
                marks.append(_line(x, _device_y(y - row_height), x, _device_y(y), OVERLAY, 2, dashed=True))
        marks += _overlay(topology, row, y, width, joined=len(rows) > 1)
        for place, host in enumerate(row):
            marks += _host(topology, host, MARGIN + place * (CARD + GAP), y, card, envs.get(host.name, {}))
    return _page(width, height, marks)


# ------------------------------------------------------------------------------------------------------------ parts


def _heading(topology: Topology, name: str) -> str:
    count = f"{topology.hosts} host{'s' if topology.hosts > 1 else ''}"
    return f"lab {name}: {count}, {topology.backend}, overlay {topology.network}"


def _etcd(topology: Topology, bar_y: float) -> Iterable[Mark]:
    plan = topology.etcd_plan
    if plan is None:
        return
    members = "one member" if plan.members == 1 else f"{plan.members} members"
    x, y = MARGIN + 14, 60
    yield from _chip(x, y, INNER + 90, 40, ETCD, "etcd", f"{plan.address.ip}, {members}")
    yield _line(x + INNER / 2, y + 40, x + INNER / 2, bar_y, SEGMENT, 2)


def _segment(topology: Topology, y: float, width: float, *, first: bool) -> Iterable[Mark]:
    text = f"private segment {topology.segment}"
    if topology.segment6:
        text += f" and {topology.segment6}"
    if topology.mtu != 1500:
        text += f", MTU {topology.mtu}"
    yield _box(MARGIN / 2, y, width - MARGIN, BAR, SEGMENT, radius=6)
    yield _text(MARGIN + 14, y + 20, text if first else f"{text} (the same)", colour=PAPER, size=13)


def _overlay(topology: Topology, row: tuple[HostPlan, ...], y: float, width: float, *, joined: bool) -> Iterable[Mark]:
    if not _overlay_device(topology):
        return
    end = width - MARGIN / 2 - 8 if joined else MARGIN + (len(row) - 1) * (CARD + GAP) + CARD / 2
    yield _line(MARGIN + CARD / 2, _device_y(y), end, _device_y(y), OVERLAY, 2, dashed=True)


def _host(topology: Topology, host: HostPlan, x: float, y: float, card: float, env: Env) -> Iterable[Mark]:
    middle = x + CARD / 2
    top = y + BAR + CABLE
    yield _line(middle, y + BAR, middle, top, SEGMENT, 2)
    yield _box(x, top, CARD, card, PAPER, edge=SOFT, radius=10, back=True)
    yield _text(x + 14, top + 27, host.name, size=18, bold=True)
    yield _text(x + CARD - 14, top + 20, f"eth1 {host.address.ip}", size=12, end=True, mono=True, colour=SEGMENT)
    if host.address6:
        yield _text(x + CARD - 14, top + 36, str(host.address6.ip), size=11, end=True, mono=True, colour=SEGMENT)
    lease = str(IPNetwork(env["FLANNEL_SUBNET"]).cidr) if "FLANNEL_SUBNET" in env else ""
    at = top + HEAD - 8
    yield _text(x + 14, at, f"lease {lease}" if lease else "no lease", size=12, mono=True, colour=INK if lease else SOFT)
    if "FLANNEL_MTU" in env:
        yield _text(x + CARD - 14, at, f"MTU {env['FLANNEL_MTU']}", size=12, end=True, mono=True)
    at = top + HEAD
    device = _overlay_device(topology)
    yield from _chip(x + 14, at, INNER, CHIP, OVERLAY, device or "routes by eth1", "" if device else topology.backend)
    at += STEP
    bridge = env.get("FLANNEL_SUBNET", "no address")
    yield _line(middle, at - STEP + CHIP, middle, at, SOFT, 2)
    yield from _chip(x + 14, at, INNER, CHIP, BRIDGE, topology.bridge, bridge)
    for slot, (label, detail) in enumerate(_containers(host, env)):
        at += STEP
        yield _line(x + 34, at - STEP + CHIP, x + 34, at, SOFT, 2) if slot == 0 else _line(x + 34, at - 8, x + 34, at, SOFT, 2)
        yield from _chip(x + 14, at, INNER, CHIP, CONTAINER, label, detail, ink=INK, edge=BRIDGE)
    below = top + card
    yield _line(middle, below, middle, below + CABLE, SOFT, 2)
    yield _text(middle + 8, below + 21, f"eth0 {NAT_ADDRESS.ip}", size=12, mono=True, colour=SOFT)
    yield from _chip(x + 14, below + CABLE, INNER, CHIP, GREY, f"NAT {NAT_GATEWAY}", str(OUTSIDE), ink=INK, edge=SOFT)


def _containers(host: HostPlan, env: Env) -> list[tuple[str, str]]:
    base = IPNetwork(env["FLANNEL_SUBNET"]).ip if "FLANNEL_SUBNET" in env else None
    labels = [(item.name, "" if base is None else str(base + item.number)) for item in host.containers]
    if len(labels) <= SHOWN_CONTAINERS:
        return labels
    more = len(labels) - SHOWN_CONTAINERS + 1
    return [*labels[: SHOWN_CONTAINERS - 1], (f"and {more} more", labels[-1][1] and f"to {labels[-1][1]}")]


def _overlay_device(topology: Topology) -> str:
    """The device that carries the overlay; empty where the hosts' routes do."""
    if topology.backend == "vxlan":
        return f"flannel.{topology.network_config['Backend'].get('VNI', 1)}"
    return {"udp": "flannel0", "host-gw": "", "alloc": ""}.get(topology.backend, topology.backend)


def _card_height(topology: Topology) -> float:
    return HEAD + STEP * (2 + min(topology.containers, SHOWN_CONTAINERS)) + 6


def _device_y(row_y: float) -> float:
    return row_y + BAR + CABLE + HEAD + CHIP / 2


# ------------------------------------------------------------------------------------------------------------- ink


def _chip(
    x: float, y: float, width: float, height: float, fill: str, label: str, detail: str, *, ink: str = PAPER, edge: str = ""
) -> Iterable[Mark]:
    yield _box(x, y, width, height, fill, edge=edge, radius=5)
    size = 13 if len(label) + len(detail) <= 24 else 11
    yield _text(x + 10, y + height / 2 + 4.5, label, size=size, bold=True, colour=ink)
    yield _text(x + width - 10, y + height / 2 + 4.5, detail, size=12, end=True, mono=True, colour=ink)


def _box(
    x: float, y: float, width: float, height: float, fill: str, *, edge: str = "", radius: float = 0, back: bool = False
) -> Mark:
    stroke = f' stroke="{edge}"' if edge else ""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
    return Mark(f'<rect {place} fill="{fill}"{stroke}/>', back)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, *, dashed: bool = False) -> Mark:
    dash = ' stroke-dasharray="7 5"' if dashed else ""
    place = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return Mark(f'<line {place} stroke="{colour}" stroke-width="{width:g}"{dash}/>', back=True)


def _text(
    x: float, y: float, text: str, *, size: float, colour: str = INK, bold: bool = False, mono: bool = False, end: bool = False
) -> Mark:
    style = f'font-size="{size:g}" fill="{colour}"'
    style += ' font-weight="bold"' if bold else ""
    style += ' font-family="DejaVu Sans Mono, Menlo, Consolas, monospace"' if mono else ""
    style += ' text-anchor="end"' if end else ""
    return Mark(f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>' if text else "")


def _page(width: float, height: float, marks: Iterable[Mark]) -> str:
    marks = [mark for mark in marks if mark.svg]
    # Cards first, cables over them, everything else on top.
    cards = [mark.svg for mark in marks if mark.back and mark.svg.startswith("<rect")]
    cables = [mark.svg for mark in marks if mark.back and not mark.svg.startswith("<rect")]
    front = [mark.svg for mark in marks if not mark.back]
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="DejaVu Sans, Verdana, Arial, sans-serif">'
    paper = f'<rect width="{width:g}" height="{height:g}" fill="{PAPER}"/>'
    return "\n".join([head, paper, *cards, *cables, *front, "</svg>", ""])
