"""What does Prometheus read? One table: a metric's name, what it says, and where it is found in what an agent says of itself.

Names follow https://prometheus.io/docs/practices/naming. Labels take values from lists of ours: what others write into etcd adds
no time series, but for the codes and states that we know ourselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from flannelpy.core.conditions import CONDITIONS
from flannelpy.core.rules import SOURCE
from flannelpy.core.tally import BOUNDS_S, Histogram
from flannelpy.explain import places
from flannelpy.explain.status import Status

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PAGE = places.METRICS
PEER_STATES = ("in-sync", "pending", "refused", "excluded", "stale")
PROBE_STATES = ("reachable", "unreachable", "silent", "unknown")
QUANTILES = (0.5, 0.95, 1.0)
LEASE_STATES = ("held", "unconfirmed", "lost", "from-disk")


@dataclass(frozen=True, slots=True)
class Measured:
    """An agent at one moment. ``steps``: taken in the kernel, by kind of object, what was done, and ``done`` or ``refused``;
    ``calls``: of the registry, by kind and ``answered`` or ``failed``; ``convergence``: from the first news that a round takes up
    until the kernel holds what follows from it; ``lateness``: of a timer of the loop, looked at once a second; ``silent_s``: how
    long the reconciler has not turned; ``now``: seconds since the epoch; ``lease_ttl_s``: what a lease is extended to.
    """

    status: Status
    steps: Mapping[tuple[str, str, str], int]
    calls: Mapping[tuple[str, str], int]
    convergence: Histogram
    lateness: Histogram
    silent_s: float
    now: float
    lease_ttl_s: float | None = None


Sample = tuple[tuple[str, ...], float]
Read = Callable[[Measured], Iterable[Sample]]


@dataclass(frozen=True, slots=True)
class Metric:
    """``type``: gauge or counter. ``read`` gives nothing where it is not known."""

    name: str
    type: str
    help: str
    read: Read
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Durations:
    """A metric that is a histogram of seconds."""

    name: str
    help: str
    read: Callable[[Measured], Histogram]


def _one(read: Callable[[Measured], float | None]) -> Read:
    """A metric without labels."""

    def samples(measured: Measured) -> Iterator[Sample]:
        value = read(measured)
        if value is not None:
            yield (), float(value)

    return samples


def _info(measured: Measured) -> Iterator[Sample]:
    backend = measured.status.backend
    yield (measured.status.version, backend.type if backend else "", (backend.engine or "") if backend else ""), 1.0


def _peers(measured: Measured) -> Iterator[Sample]:
    found = Counter(peer.state for peer in measured.status.peers)
    yield from (((state,), float(found[state])) for state in PEER_STATES)


def _probed(measured: Measured) -> Iterator[Sample]:
    found = Counter(peer.probe.state for peer in measured.status.peers if peer.probe is not None)
    if found:
        yield from (((state,), float(found[state])) for state in PROBE_STATES)


def _rtt(measured: Measured) -> Iterator[Sample]:
    times = sorted(peer.probe.rtt_ms for peer in measured.status.peers if peer.probe is not None and peer.probe.rtt_ms is not None)
    for share in QUANTILES if times else ():
        yield (f"{share:g}",), times[min(len(times) - 1, int(share * len(times)))] / 1000


def _loss(measured: Measured) -> float | None:
    shares = [peer.probe.loss for peer in measured.status.peers if peer.probe is not None]
    return sum(shares) / len(shares) if shares else None


def _lease(measured: Measured) -> Iterator[Sample]:
    lease = measured.status.lease
    yield from (((state,), float(lease is not None and lease.state == state)) for state in LEASE_STATES)


def _lease_ttl_s(measured: Measured) -> float | None:
    lease = measured.status.lease
    return None if lease is None or lease.seconds_left is None else measured.lease_ttl_s


def _conditions(measured: Measured) -> Iterator[Sample]:
    found = Counter(condition.code for condition in measured.status.conditions)
    for condition in CONDITIONS.values():
        yield (condition.code, condition.severity.name.lower()), float(found[condition.code])


def _objects(measured: Measured) -> Iterator[Sample]:
    kernel = measured.status.kernel
    if kernel is not None:
        yield from (((kind,), float(count)) for kind, count in sorted(kernel.desired.items()))


def _missing(measured: Measured) -> Iterator[Sample]:
    kernel = measured.status.kernel
    if kernel is not None:
        yield from (((kind,), float(count - kernel.in_sync.get(kind, 0))) for kind, count in sorted(kernel.desired.items()))


def _guard(measured: Measured) -> Iterator[Sample]:
    guard, check = measured.status.guard, measured.status.container_source_check
    if check is not None:
        yield (SOURCE,), float(check.dropped)
    yield from (((reason,), float(count)) for reason, count in sorted(((guard and guard.dropped) or {}).items()))


def _both_ways(unit: str) -> Read:
    def samples(measured: Measured) -> Iterator[Sample]:
        pump = measured.status.pump
        for direction in ("inbound", "outbound"):
            if pump is not None and f"{direction}_{unit}" in pump.counters:
                yield (direction,), float(pump.counters[f"{direction}_{unit}"])

    return samples


def _pump_drops(measured: Measured) -> Iterator[Sample]:
    pump = measured.status.pump
    for name, count in () if pump is None else pump.counters.items():
        direction, dropped, reason = name.partition("_dropped_")
        if dropped:
            yield (direction, reason), float(count)


def _restarts(measured: Measured) -> float | None:
    pump = measured.status.pump
    return None if pump is None else sum(worker.restarts for worker in pump.workers)


def _silent_s(measured: Measured) -> float:
    since = measured.status.etcd.unreachable_since
    return 0.0 if since is None else max(0.0, measured.now - _epoch_s(since))


def _epoch_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _gauge(name: str, text: str, read: Read, *labels: str) -> Metric:
    return Metric(name, "gauge", text, read, labels)


def _counter(name: str, text: str, read: Read, *labels: str) -> Metric:
    return Metric(name, "counter", text, read, labels)


METRICS: tuple[Metric | Durations, ...] = (
    _gauge("flannelpy_info", "1; version, backend and its engine are labels.", _info, "version", "backend", "engine"),
    _gauge("flannelpy_start_time_seconds", "When the agent began, since the epoch.", _one(lambda m: _epoch_s(m.status.since))),
    _gauge("flannelpy_ready", "1 while packets can flow, as far as is known (/readyz).", _one(lambda m: m.status.ready)),
    _gauge("flannelpy_conditions", "For how many subjects a condition holds; 0 for none.", _conditions, "code", "severity"),
    _gauge("flannelpy_peers", "Leases of other hosts, by what has become of them here.", _peers, "state"),
    _gauge("flannelpy_peers_probed", "Peers that are asked whether they are there, by what is known of them.", _probed, "state"),
    _gauge("flannelpy_probe_rtt_seconds", "Round trip to the peers that answer: half of them, 95 of 100, all.", _rtt, "quantile"),
    _gauge("flannelpy_probe_loss_ratio", "Share of the last echo requests to all peers that had no answer.", _one(_loss)),
    _gauge("flannelpy_lease_state", "1 for the state that our lease is in.", _lease, "state"),
    _gauge(
        "flannelpy_lease_remaining_seconds",
        "Until our lease would end if nobody extended it; absent for a reservation.",
        _one(lambda m: m.status.lease.seconds_left if m.status.lease else None),
    ),
    _gauge(
        "flannelpy_lease_ttl_seconds",
        "What it is extended to, each time a third of that is over (--subnet-lease-ttl); absent for a reservation.",
        _one(_lease_ttl_s),
    ),
    _gauge(
        "flannelpy_mtu_bytes", "What containers should have.", _one(lambda m: m.status.backend.mtu if m.status.backend else None)
    ),
    _gauge(
        "flannelpy_registry_up", "1 while the registry answers: etcd, or the API server.", _one(lambda m: m.status.etcd.reachable)
    ),
    _gauge("flannelpy_registry_silent_seconds", "How long the registry has not answered; 0 while it does.", _one(_silent_s)),
    _gauge(
        "flannelpy_registry_revision",
        "The last revision of the leases that was seen: the same on all hosts, but for what is on its way.",
        _one(lambda m: m.status.etcd.revision),
    ),
    _counter(
        "flannelpy_registry_calls_total",
        "Calls of the registry, by kind (read, write, keep-alive, node; watch: batches of events) and result (answered, failed).",
        lambda m: ((key, float(count)) for key, count in sorted(m.calls.items())),
        "kind",
        "result",
    ),
    _gauge("flannelpy_kernel_objects", "What the kernel should hold, by kind.", _objects, "kind"),
    _gauge("flannelpy_kernel_objects_missing", "What of it the kernel does not hold, as far as is known.", _missing, "kind"),
    _counter(
        "flannelpy_kernel_steps_total",
        "Steps taken in the kernel, by kind of object, what was done with it, and result (done, refused).",
        lambda m: ((key, float(count)) for key, count in sorted(m.steps.items())),
        "kind",
        "op",
        "result",
    ),
    _counter(
        "flannelpy_kernel_repairs_total",
        "What somebody else had changed and the agent has put back.",
        _one(lambda m: m.status.kernel.repairs if m.status.kernel else None),
    ),
    Durations(
        "flannelpy_convergence_seconds",
        "From the first news that a round takes up until the kernel has answered to what follows from it.",
        lambda m: m.convergence,
    ),
    Durations("flannelpy_loop_lateness_seconds", "How late a timer of the event loop is, once a second.", lambda m: m.lateness),
    _gauge(
        "flannelpy_reconciler_silent_seconds",
        "How long the reconciler has not turned; beyond 30 s /healthz is 503.",
        _one(lambda m: m.silent_s),
    ),
    _counter("flannelpy_guard_dropped_packets_total", "Packets that source validation has dropped, by reason.", _guard, "reason"),
    _counter("flannelpy_pump_packets_total", "Packets that udp's workers have moved.", _both_ways("packets"), "direction"),
    _counter("flannelpy_pump_bytes_total", "Bytes of inner packets that they have moved.", _both_ways("bytes"), "direction"),
    _counter(
        "flannelpy_pump_dropped_packets_total", "Packets that they have dropped, by reason.", _pump_drops, "direction", "reason"
    ),
    _counter("flannelpy_pump_restarts_total", "How often a worker was replaced.", _one(_restarts)),
)
"""In the order of docs/metrics.md."""


def families(measured: Measured) -> Iterator[Family]:
    """The metrics as prometheus-client has them; those of which nothing is known are left out."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for metric in METRICS:
        if isinstance(metric, Durations):
            histogram = metric.read(measured)
            yield HistogramMetricFamily(metric.name, metric.help, buckets=_buckets(histogram), sum_value=histogram.total_s)
            continue
        samples = list(metric.read(measured))
        if samples:
            kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in samples:
                family.add_metric(labels, value)
            yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus counts."""
    total, buckets = 0, []
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def page(measured: Measured) -> str:
    """In Prometheus' text format 0.0.4."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterator[Family]:
            return families(measured)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry).decode()
