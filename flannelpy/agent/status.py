"""What does the agent say of itself? The document behind ``flannelpy status``, put together from the parts that know."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import isinf
from typing import Any

from flannelpy import __version__
from flannelpy.agent import peers
from flannelpy.agent.carriage import Carriage
from flannelpy.agent.context import Context
from flannelpy.agent.network import Network
from flannelpy.agent.probes import Probes
from flannelpy.agent.readiness import why_not
from flannelpy.agent.sync.fragments import HOST
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.backend import Guarded
from flannelpy.core.claims import EVERYTHING
from flannelpy.core.errors import KernelError
from flannelpy.core.guard import COUNTERS, refused, strangers
from flannelpy.core.health import Active, Health
from flannelpy.core.model import Lease
from flannelpy.core.objects import Link
from flannelpy.core.rules import SOURCE
from flannelpy.core.secret import shown
from flannelpy.core.tally import Histogram
from flannelpy.explain import status as documents
from flannelpy.explain.metrics import Measured
from flannelpy.explain.status import Status
from flannelpy.explain.wall_clock import Calendar
from flannelpy.kernel import Kernel
from flannelpy.registry.health import UNREACHABLE
from flannelpy.settings import Settings


def document(context: Context, network: Network | None, ready: bool, born: float, now: float) -> Status:
    """The agent as it is. ``born``: when it began, on its clock; ``now``: in seconds since the epoch."""
    health, clock, calendar = context.reporter.health, context.clock(), Calendar(now)
    unreachable = [clock - active.since for active in health if active.condition.code == UNREACHABLE and active.ended is None]
    if network and network.facts.down and not (verdict := network.registry_health.verdict).answers:
        unreachable.append(clock - verdict.since)  # the condition that is told is the link's
    if unreachable:  # a condition begins some time after the silence
        unreachable.append(context.registry.silent_s)
    endpoint = context.settings.endpoint
    status = Status(
        version=__version__,
        pid=os.getpid(),
        since=calendar.ago(clock - born),
        ready=ready,
        why_not=() if ready else why_not(network, health),
        etcd=documents.EtcdStatus(
            reachable=not unreachable,
            endpoint=context.registry.endpoint,
            endpoints=endpoint.urls,
            prefix=endpoint.prefix,
            unreachable_since=calendar.ago(max(unreachable)) if unreachable else None,
            revision=(network.cluster.revision or None) if network else None,
            name=context.settings.registry_name.value,
        ),
        subnet_file=_subnet_file(context.settings, network, health),
        conditions=tuple(_condition(active, calendar.ago(clock - active.since)) for active in health),
    )
    carriage = network.steering.carriage if network else None
    if network is None or carriage is None:
        return status
    lease = network.steering.lease
    return replace(
        status,
        network=_network(carriage, context.settings),
        backend=_backend(carriage, network.reconciler),
        pump=network.datapath.status(),
        guard=_guard(carriage),
        uplink=_uplink(carriage),
        lease=None if lease is None else _lease(network, lease, health, clock),
        peers=tuple(_peer(row, network, calendar, clock) for row in _rows(network)),
        probes_off=network.probes.off or None,
        kernel=_kernel(network.reconciler, calendar),
    )


def measured(status: Status, network: Network | None, silent_s: float, now: float) -> Measured:
    """What Prometheus may read of the agent. ``now``: in seconds since the epoch."""
    if network is None:
        return Measured(status, {}, {}, Histogram(), Histogram(), silent_s, now)
    standing = network.reconciler.standing
    calls = network.registry_health.calls
    context = network.context
    ttl_s = float(context.settings.lease_ttl_s)
    return Measured(status, standing.steps, calls, standing.convergence, context.lateness, silent_s, now, ttl_s)


def _subnet_file(settings: Settings, network: Network | None, health: Health) -> documents.SubnetFileStatus:
    written = network is not None and network.ready and not health.holds("subnet-file") and settings.subnet_file.exists()
    return documents.SubnetFileStatus(str(settings.subnet_file), written)


def _condition(active: Active, since: str) -> documents.ConditionStatus:
    condition = active.condition
    return documents.ConditionStatus(
        condition.code,
        condition.severity.name.lower(),
        active.subject,
        active.text,
        condition.remedy,
        since,
        condition.unready,
    )


def _network(carriage: Carriage, settings: Settings) -> dict[str, Any]:
    config = carriage.config
    options: dict[str, Any] = {**config.backend_options, **settings.host_options.get(carriage.backend.name, {})}
    return {**config.to_dict(), "Backend": {"Type": config.backend_type, **shown(options)}}


def _backend(carriage: Carriage, reconciler: Reconciler) -> documents.BackendStatus:
    devices = [str(item) for item in reconciler.desired.fragment(HOST) if isinstance(item, Link)]
    engine = carriage.engine
    return documents.BackendStatus(
        carriage.backend.name,
        carriage.mtu,
        tuple(devices),
        None if engine is None else engine.engine,
        None if engine is None else engine.reason,
    )


def _guard(carriage: Carriage) -> documents.GuardStatus | None:
    guard = carriage.backend.guarded if isinstance(carriage.backend, Guarded) else None
    return None if guard is None else documents.GuardStatus(guard.rule)


async def with_drops(status: Status, kernel: Kernel, table: str) -> Status:
    """The document with what our nft table has dropped, or udp's workers have by peer; unknown where nobody says."""
    if status.backend is None:
        return status
    if status.pump is not None:
        status = _by_peer(status, status.pump.refused or {})
    try:
        counted = await kernel.counted(table)
    except KernelError:
        return status
    check = documents.SourceCheckStatus(counted[SOURCE]) if SOURCE in counted else None
    status = replace(status, container_source_check=check)
    if status.guard is None:
        return status
    dropped = {name: counted[name] for name in COUNTERS if name in counted} or None
    if not dropped or not any(dropped.values()):
        return replace(status, guard=replace(status.guard, dropped=dropped, strangers=dropped and {}))
    try:
        apart = [await _by_source(kernel, table, name) for name in (strangers, refused)]
    except KernelError:
        return replace(status, guard=replace(status.guard, dropped=dropped))
    return _by_peer(replace(status, guard=replace(status.guard, dropped=dropped, strangers=apart[0])), apart[1])


async def _by_source(kernel: Kernel, table: str, name: Callable[[int], str]) -> dict[str, int]:
    """What both families' sets of that name have counted."""
    return {**await kernel.counted_by_source(table, name(4)), **await kernel.counted_by_source(table, name(6))}


def _by_peer(status: Status, counted: Mapping[str, int]) -> Status:
    """The document with packets by PublicIP. What hosts share an address send, by NAT, is told of each."""
    if not counted:
        return status

    def told(peer: documents.PeerStatus) -> documents.PeerStatus:
        found = [counted[address] for address in (peer.public_ip, peer.public_ipv6) if address is not None and address in counted]
        return replace(peer, dropped=sum(found)) if found else peer

    return replace(status, peers=tuple(map(told, status.peers)))


def _uplink(carriage: Carriage) -> documents.UplinkStatus:
    uplink = carriage.uplink
    addresses = (uplink.address, uplink.address6, uplink.public_ip, uplink.public_ipv6)
    return documents.UplinkStatus(uplink.name, uplink.mtu, carriage.uplink_reasons, *map(_text, addresses))


def _lease(network: Network, lease: Lease, health: Health, clock: float) -> documents.LeaseStatus:
    keeper = network.steering.keeper
    state, left = "held", None
    if keeper is None or keeper.held is None:
        state = "from-disk"
    elif keeper.lost:
        state = "lost"
    else:
        state = "unconfirmed" if health.holds("lease-unconfirmed") else "held"
        left = None if isinf(keeper.sure_until) else round(max(0.0, keeper.sure_until - clock), 1)
    name = lease.holder or network.context.settings.hostname or None
    return documents.LeaseStatus(*_identity(lease), state=state, reservation=lease.reserved, seconds_left=left, name=name)


def _identity(lease: Lease) -> tuple[str, str | None, str | None, str, str | None]:
    """Key, subnets and addresses."""
    subnet = None if lease.subnet == EVERYTHING else str(lease.subnet)
    return lease.key, subnet, _text(lease.subnet6), str(lease.public_ip), _text(lease.attrs.public_ipv6)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _rows(network: Network) -> Iterator[peers.Peer]:
    return peers.rows(network.cluster, network.reconciler, network.datapath.refused)


def _peer(row: peers.Peer, network: Network, calendar: Calendar, clock: float) -> documents.PeerStatus:
    left = None if row.seconds_left is None else round(row.seconds_left, 1)
    probe, name = _probe(network.probes, row.lease.key, calendar, clock), network.cluster.names.of(row.lease) or None
    carrier, reason = (None, None) if row.path is None else (row.path.carrier, row.path.reason)
    told = (*_identity(row.lease), row.lease.attrs.backend_type, row.state, row.why, left)
    return documents.PeerStatus(*told, carrier=carrier, reason=reason, probe=probe, name=name)


def _probe(probes: Probes, key: str, calendar: Calendar, clock: float) -> documents.ProbeStatus | None:
    if (known := probes.of(key)) is None:
        return None
    seen, verdict = known

    def ago(moment: float | None) -> str | None:
        return None if moment is None else calendar.ago(clock - moment)

    rtt_ms = None if seen.rtt_s is None else round(seen.rtt_s * 1000, 3)
    passes = None if seen.full.heard is None and not seen.full.lost else not seen.full.lost
    told = (verdict.state, verdict.why, ago(verdict.since), rtt_ms, round(seen.loss, 3), seen.size, passes)
    return documents.ProbeStatus(*told, ago(seen.heard))


def _kernel(reconciler: Reconciler, calendar: Calendar) -> documents.KernelStatus:
    wanted, held = reconciler.standing.count()
    last = None
    if reconciler.repairs.last is not None:
        when, step = reconciler.repairs.last
        last = documents.RepairStatus(calendar.ago(asyncio.get_running_loop().time() - when), str(step))
    kinds = sorted(wanted)
    said = ({kind: wanted[kind] for kind in kinds}, {kind: held[kind] for kind in kinds})
    return documents.KernelStatus(*said, reconciler.repairs.count, last, reconciler.retries.attempts)
