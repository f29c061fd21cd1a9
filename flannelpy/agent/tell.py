"""What does the agent tell of itself? The document behind ``flannelpy status``, put together, and the socket that gives it out."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flannelpy import __version__
from flannelpy.agent.cluster import REGISTRY_CODES, Cluster
from flannelpy.agent.keeper import Keeper
from flannelpy.agent.reconcile import HOST, Reconciler
from flannelpy.agent.start import Situation
from flannelpy.agent.supervise import DatapathSupervisor
from flannelpy.core.claims import EVERYTHING
from flannelpy.core.conditions import Active, Health
from flannelpy.core.model import Lease
from flannelpy.core.objects import Link
from flannelpy.explain import status as tells
from flannelpy.explain.status import SOCKET, Status
from flannelpy.explain.wall_clock import Calendar

if TYPE_CHECKING:
    from flannelpy.agent.surroundings import Surroundings
    from flannelpy.settings import Settings

log = logging.getLogger("flannelpy")

_SECRET = re.compile("psk|pass|secret|token|key", re.IGNORECASE)
"""Names of options of a backend, ours or not, whose values are nobody's business."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a node is made of, as far as there is something to tell of it. ``lost``: the lease is asked for again."""

    situation: Situation
    cluster: Cluster
    reconciler: Reconciler
    pump: DatapathSupervisor
    keeper: Keeper | None
    lease: Lease | None
    lost: bool
    published: bool


@asynccontextmanager
async def answering(run_dir: Path, make: Callable[[], Status]) -> AsyncIterator[None]:
    """Answer ``flannelpy status`` for the time of the block; where no socket can be had, say so and do without."""
    from flannelpy.explain.http import bound, serve_on

    def page() -> tuple[int, str, str]:
        return 200, "application/json", tells.to_json(make())

    path = run_dir / SOCKET
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(bound(path))
        except OSError as error:
            log.warning("%s: %s; flannelpy status cannot ask this agent, all else goes on", path, error.strerror or error)
            yield
            return
        server = await serve_on(listener, {tells.PAGE: page})
        try:
            yield
        finally:
            await server.close()


def tell(around: Surroundings, parts: Parts | None, ready: bool, born: float, now: float) -> Status:
    """The agent as it is. ``born``: when it began, on its clock; ``now``: in seconds since the epoch."""
    health, clock, calendar = around.reporter.health, around.clock(), Calendar(now)
    unreachable = [clock - active.since for active in health if active.condition.code in REGISTRY_CODES]
    if unreachable or not around.registry.alive:
        unreachable.append(around.registry.silent_s)
    endpoint = around.settings.endpoint
    status = Status(
        version=__version__,
        pid=os.getpid(),
        since=calendar.ago(clock - born),
        ready=ready,
        why_not=() if ready else _why_not(parts, health),
        etcd=tells.EtcdStatus(
            reachable=not unreachable,
            endpoint=around.registry.endpoint,
            endpoints=endpoint.urls,
            prefix=endpoint.prefix,
            unreachable_since=calendar.ago(max(unreachable)) if unreachable else None,
            revision=(parts.cluster.revision or None) if parts else None,
        ),
        subnet_file=_subnet_file(around.settings, parts, health),
        conditions=tuple(_condition(active, calendar.ago(clock - active.since)) for active in health),
    )
    if parts is None:
        return status
    return replace(
        status,
        network=_network(parts.situation, around.settings),
        backend=_backend(parts),
        pump=parts.pump.status(),
        uplink=_uplink(parts.situation),
        lease=None if parts.lease is None else _lease(parts, parts.lease, health, clock),
        peers=tuple(_peers(parts, health)),
        kernel=_kernel(parts.reconciler, calendar),
    )


def _why_not(parts: Parts | None, health: Health) -> tuple[str, ...]:
    """What keeps the agent from being ready: what is wrong, or else the step of the start that is under way."""
    wrong = tuple(active.text for active in health if active.condition.unready)
    if wrong:
        return wrong
    if any(health.holds(code) for code in REGISTRY_CODES):
        return ("waiting for etcd",)
    if parts is None:
        return ("waiting for the network config",)
    return ("waiting for a lease" if parts.lease is None else "waiting for the kernel to take everything",)


def _subnet_file(settings: Settings, parts: Parts | None, health: Health) -> tells.SubnetFileStatus:
    written = parts is not None and parts.published and not health.holds("subnet-file") and settings.subnet_file.exists()
    return tells.SubnetFileStatus(str(settings.subnet_file), written)


def _condition(active: Active, since: str) -> tells.ConditionStatus:
    condition = active.condition
    return tells.ConditionStatus(
        condition.code,
        condition.severity.name.lower(),
        active.subject,
        active.text,
        condition.remedy,
        since,
        condition.unready,
    )


def _network(situation: Situation, settings: Settings) -> dict[str, Any]:
    fields = situation.config.to_dict()
    options: dict[str, Any] = {**situation.config.backend_options, **settings.host_options.get(situation.backend.name, {})}
    shown = {name: "(not shown)" if _SECRET.search(name) else value for name, value in options.items()}
    return {**fields, "Backend": {"Type": situation.config.backend_type, **shown}}


def _backend(parts: Parts) -> tells.BackendStatus:
    situation = parts.situation
    devices = [str(item) for item in parts.reconciler.desired.fragment(HOST) if isinstance(item, Link)]
    engine = situation.engine
    return tells.BackendStatus(
        situation.backend.name,
        situation.mtu,
        tuple(devices),
        None if engine is None else engine.engine,
        None if engine is None else engine.reason,
    )


def _uplink(situation: Situation) -> tells.UplinkStatus:
    uplink = situation.uplink
    addresses = (uplink.address, uplink.address6, uplink.public_ip, uplink.public_ipv6)
    return tells.UplinkStatus(uplink.name, uplink.mtu, situation.uplink_reasons, *map(_text, addresses))


def _lease(parts: Parts, lease: Lease, health: Health, clock: float) -> tells.LeaseStatus:
    state, left = "held", None
    if parts.keeper is None:
        state = "from-disk"
    elif parts.lost:
        state = "lost"
    else:
        state = "unconfirmed" if health.holds("lease-unconfirmed") else "held"
        left = None if isinf(parts.keeper.sure_until) else round(max(0.0, parts.keeper.sure_until - clock), 1)
    return tells.LeaseStatus(*_identity(lease), state=state, reservation=lease.reserved, seconds_left=left)


def _identity(lease: Lease) -> tuple[str, str | None, str | None, str, str | None]:
    """Key, subnets and addresses."""
    subnet = None if lease.subnet == EVERYTHING else str(lease.subnet)
    return lease.key, subnet, _text(lease.subnet6), str(lease.public_ip), _text(lease.attrs.public_ipv6)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _place(lease: Lease) -> tuple[int, int]:
    """Orders leases as their addresses are."""
    return int(lease.subnet.value or 0), 0 if lease.subnet6 is None else int(lease.subnet6.value or 0)


def _peers(parts: Parts, health: Health) -> Iterable[tells.PeerStatus]:
    """Every lease but our own, and what has become of it here."""
    membership, failing = parts.cluster.membership, parts.reconciler.failing
    told = {active.subject: active.detail for active in health if active.condition.code in ("peer-unreadable", "peer-conflict")}
    for lease in sorted(membership.leases.values(), key=_place):
        key = lease.key
        why = membership.refused.get(key, told.get(key))
        if parts.lease is not None and key == parts.lease.key:
            continue
        departure = parts.cluster.departing.get(key)
        left = None
        if why is not None:
            state, why = "left-out", why.removeprefix(f"{lease}: ") or _nothing_to_report(lease)
        elif departure is not None:
            state, left = departure.state, round(max(0.0, departure.until - asyncio.get_running_loop().time()), 1)
        else:
            state = "kernel-refused" if key in failing else "programmed"
        yield tells.PeerStatus(*_identity(lease), lease.attrs.backend_type, state, why, left)


def _nothing_to_report(lease: Lease) -> str:
    """Why a lease is no peer's although nothing is wrong with it (``core.membership``)."""
    return "a reservation that waits for its host" if lease.reserved and not lease.attrs.backend_type else "it is this host's, too"


def _kernel(reconciler: Reconciler, calendar: Calendar) -> tells.KernelStatus:
    wanted, held = reconciler.count()
    last = None
    if reconciler.last_repair is not None:
        when, step = reconciler.last_repair
        last = tells.RepairStatus(calendar.ago(asyncio.get_running_loop().time() - when), str(step))
    kinds = sorted(wanted)
    return tells.KernelStatus(
        {kind: wanted[kind] for kind in kinds}, {kind: held[kind] for kind in kinds}, reconciler.repairs, last
    )
