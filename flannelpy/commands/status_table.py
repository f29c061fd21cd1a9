"""How is an agent's status read by a person? One table of lines, the peers in another. For ``flannelpy status``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from flannelpy.commands import terminal
from flannelpy.commands.peers_text import GOOD, NONE, STYLES, badness, both, peers_text, state_of
from flannelpy.core.backend import DatapathStatus
from flannelpy.core.duration import span
from flannelpy.core.foreign import LINE, printable
from flannelpy.explain.status import (
    BackendStatus,
    ConditionStatus,
    GuardStatus,
    KernelStatus,
    LeaseStatus,
    PeerStatus,
    Status,
    UplinkStatus,
)

Line = tuple[str, Text | str]
"""A heading, empty where it is the one above, and what there is to say."""

STRANGERS = 4
"""How many of them are named."""

WIDE = 132
"""Columns where nobody says how many there are."""

_STYLES = {"error": "red", "warning": "yellow", "info": ""}

LIKE_THESE = 5
"""Of so many conditions of one code each is shown; more are counted."""
_SEVERITIES = ("error", "warning", "info")


def page(status: Status, *, peers: bool, bad: bool = False) -> str:
    """All of it, as wide as the terminal or COLUMNS is; with each peer, or only the ``bad`` ones."""
    now = datetime.now(UTC)
    said = terminal.rendered(table(status, now), wide=WIDE)
    if not (peers or bad) or not status.peers:
        return said
    if bad and all(state_of(peer) in GOOD for peer in status.peers):
        return f"{said}\n\nno peer is bad"
    return f"{said}\n\n{peers_text(status, now, terminal.width(WIDE), bad=bad, colours=terminal.has_colours())}"


def table(status: Status, now: datetime) -> Table:
    """Everything but the peers one by one."""
    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for heading, said in _lines(status, now):
        shown.add_row(heading, said if isinstance(said, Text) else Text(printable(said)))
    return shown


# ------------------------------------------------------------------------------------------------------------- line by line


def _lines(status: Status, now: datetime) -> Iterator[Line]:
    yield "flannelpy", f"{status.version}, process {status.pid}, since {_when(status.since, now)}"
    if status.ready:
        yield "ready", Text("yes", style="green")
    else:
        below = {condition.text: f"{condition.code}, see below" for condition in status.conditions}
        why = "; ".join(dict.fromkeys(below.get(text, text) for text in status.why_not))
        yield "ready", Text(printable(f"no: {why}"), style="red")
    yield status.etcd.name.removeprefix("the "), _etcd(status, now)
    if status.network is not None:
        yield from _network(status)
    if status.backend is not None:
        yield from _backend(status.backend, dict(status.network or {}).get("Backend"))
    if status.pump is not None:
        yield from _pump(status.pump)
    if status.guard is not None:
        yield "guard", _guard(status.guard)
        if status.guard.strangers:
            yield "strangers", _strangers(status.guard.strangers)
    if status.container_source_check is not None:
        count = status.container_source_check.dropped
        yield "containers", f"source checked, dropped {f'{count:,}' if count else 'nothing yet'}"
    if status.uplink is not None:
        yield from _uplink(status.uplink)
    if status.lease is not None:
        yield "lease", _lease(status.lease)
    yield "subnet file", f"{status.subnet_file.path}, {'written' if status.subnet_file.written else 'not written'}"
    if status.kernel is not None:
        yield "peers", _peers(_others(status))
        if status.probes_off is not None:
            yield "probes", f"none: {status.probes_off}"
        yield from _kernel(status.kernel, now)
    yield from _conditions(status.conditions, {peer.key: peer.name for peer in status.peers if peer.name}, now)


def _etcd(status: Status, now: datetime) -> Text | str:
    etcd = status.etcd
    told = f"{etcd.endpoint}, {etcd.prefix}" + ("" if etcd.revision is None else f", revision {etcd.revision}")
    if etcd.reachable:
        return told
    code = next((each.code for each in status.conditions if each.code.startswith("registry-")), None)
    since = "" if etcd.unreachable_since is None else f" since {_when(etcd.unreachable_since, now)}"
    return Text(printable(f"{told}; {'no answer' if code is None else f'{code}, see below,'}{since}"), style="red")


def _network(status: Status) -> Iterator[Line]:
    config = dict(status.network or {})
    for lead, family in (("", "IPv4"), ("IPv6", "IPv6")):
        if f"{lead}Network" in config:
            length, least, most = (config.get(f"{lead}{name}") for name in ("SubnetLen", "SubnetMin", "SubnetMax"))
            yield f"{family} network", f"{config[f'{lead}Network']}, subnets of /{length}, {least} to {most}"


def _backend(backend: BackendStatus, configured: object) -> Iterator[Line]:
    options = {name: value for name, value in configured.items() if name != "Type"} if isinstance(configured, dict) else {}
    yield "backend", f"{backend.type}{f' {json.dumps(options)}' if options else ''}, MTU {backend.mtu}"
    if backend.reason is not None:
        yield "engine", backend.reason.removeprefix(f"{backend.type} engine: ")
    for device in backend.devices:
        yield "device", device


def _pump(pump: DatapathStatus) -> Iterator[Line]:
    missing = f"; not here: {', '.join(pump.missing)}" if pump.missing else ""
    yield "offloads", f"{', '.join(pump.offloads) or 'none'}{missing}"
    for worker in pump.workers:
        who = "not running" if worker.pid is None else f"process {worker.pid}"
        yield "worker", who + (f", replaced {_times(worker.restarts)}" if worker.restarts else "")
    yield from _counters({name: count for name, count in pump.counters.items() if count})


def _guard(guard: GuardStatus) -> str:
    if guard.dropped is None:
        return f"{guard.rule}, drops unknown"
    told = [f"{count:,} {name.replace('_', ' ')}" for name, count in guard.dropped.items() if count]
    return f"{guard.rule}, dropped {', '.join(told) or 'nothing yet'}"


def _strangers(counted: Mapping[str, int]) -> str:
    """Who sent most, and how many others there were."""
    first = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count:,} of {address}" for address, count in first[:STRANGERS]]
    return ", ".join(told) + (f", and {len(first) - STRANGERS} more" if len(first) > STRANGERS else "")


def _counters(counted: Mapping[str, int]) -> Iterator[Line]:
    """``outbound_dropped_no_peer`` is told under outbound; what is neither that nor inbound, by itself."""
    for heading in ("outbound", "inbound", "counters"):
        told = [
            f"{count:,} {name.removeprefix(f'{heading}_').replace('_', ' ')}"
            for name, count in counted.items()
            if name.startswith(f"{heading}_") or (heading == "counters" and not name.startswith(("outbound_", "inbound_")))
        ]
        if told or heading != "counters":
            yield heading, ", ".join(told) or "nothing yet"


def _uplink(uplink: UplinkStatus) -> Iterator[Line]:
    for number, reason in enumerate(uplink.reasons):
        yield "" if number else "uplink", reason


def _lease(lease: LeaseStatus) -> str:
    held = {"held": "", "unconfirmed": ", not confirmed", "lost": ", lost and asked for again", "from-disk": ", as kept on disk"}
    ends = ""
    if lease.reservation:
        ends = ", a reservation"
    elif lease.seconds_left is not None:
        ends = f", ends in {span(lease.seconds_left)} unless extended"
    name = f" [{lease.name}]" if lease.name else ""
    at = f"{both(lease.subnet, lease.subnet6)} at {both(lease.public_ip, lease.public_ipv6)}{name}"
    return f"{at}{held.get(lease.state, '')}{ends}"


def _others(status: Status) -> list[PeerStatus]:
    """The peers but those that have our own address: an older lease of this host is no peer."""
    own = set() if status.lease is None else {status.lease.public_ip, status.lease.public_ipv6} - {NONE, None}
    return [peer for peer in status.peers if not own & {peer.public_ip, peer.public_ipv6}]


def _peers(peers: Sequence[PeerStatus]) -> str:
    counted = Counter(state_of(peer) for peer in peers)
    odd = sorted((state for state in counted if state != "in-sync"), key=lambda state: badness(STYLES, state))
    return "; ".join([f"{len(peers):,}", *(f"{counted[state]:,} {state}" for state in odd)])


def _kernel(kernel: KernelStatus, now: datetime) -> Iterator[Line]:
    desired, in_sync = sum(kernel.desired.values()), sum(kernel.in_sync.values())
    kinds = ", ".join(
        f"{kind} {count:,}" if kernel.in_sync.get(kind) == count else f"{kind} {kernel.in_sync.get(kind, 0):,} of {count:,}"
        for kind, count in kernel.desired.items()
    )
    yield "kernel", f"{in_sync:,} of {desired:,} objects in sync ({kinds})"
    if kernel.last_repair is not None:
        yield "repaired", f"{_times(kernel.repairs)}, last {_when(kernel.last_repair.at, now)}: {kernel.last_repair.step}"


def _conditions(conditions: tuple[ConditionStatus, ...], names: Mapping[str, str], now: datetime) -> Iterator[Line]:
    """``names``: of peers, by their leases' keys."""
    if not conditions:
        yield "conditions", "none"
    worst_first = sorted(conditions, key=lambda condition: badness(_SEVERITIES, condition.severity))
    alike, left = Counter[str](), Counter(condition.code for condition in conditions)
    for number, condition in enumerate(worst_first):
        code = condition.code
        alike[code] += 1
        if alike[code] >= LIKE_THESE and left[code] > LIKE_THESE:
            if alike[code] == LIKE_THESE:
                yield "" if number else "conditions", f"{condition.severity}: {left[code] - LIKE_THESE + 1:,} more of {code}"
            continue
        name = f" [{names[condition.subject]}]" if condition.subject in names else ""
        told = printable(f"{condition.severity}: {condition.text}{name}", LINE)  # it ends in the command that mends it
        yield "" if number else "conditions", Text(told, style=_STYLES.get(condition.severity, ""))
        yield "", Text(printable(f"{condition.code}, since {_when(condition.since, now)}: {condition.remedy}"), style="dim")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _when(moment: str, now: datetime) -> str:
    """A moment in local time, and how long ago that was."""
    try:
        then = datetime.fromisoformat(moment)
        return f"{then.astimezone():%Y-%m-%d %H:%M:%S} ({span((now - then).total_seconds())})"
    except (ValueError, TypeError):
        return json.dumps(moment)
