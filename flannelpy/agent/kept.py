"""What do we know from our last life? The files of the state directory and the subnet file, as far as they are this machine's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from netaddr import IPNetwork

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.context import Context
from flannelpy.agent.sync.scope import fou_ports, uses_xfrm
from flannelpy.agent.view import View
from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.model import Lease, parse_subnet_key
from flannelpy.host import state as state_file
from flannelpy.host import subnet_env, view_file
from flannelpy.host.machine import foreign, machine
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView
from flannelpy.settings import Settings

log = logging.getLogger("flannelpy")


@dataclass(frozen=True, slots=True)
class Kept:
    """``state`` and ``view`` as they were read, the view without the others' leases; ``previous``: subnets that were ours, the best
    first; ``promised``: our lease as we were going to write it last.
    """

    state: State
    view: KeptView | None
    previous: tuple[IPNetwork, ...]
    promised: Lease | None = None

    @property
    def own(self) -> Lease | None:
        """Our lease as we last wrote it."""
        return None if self.view is None else self.view.own

    def own_part(self, machine: str, uplink_mac: str, address: str, directory: Path) -> Kept:
        """The part that is this machine's: all of it, or, with a word, only the names of what may have to be removed."""
        why = foreign(self.state, machine, uplink_mac, address) if self.state.prefix else ""
        if not why:
            return self
        log.warning("%s is not this machine's: %s; nothing of it is used", directory, why)
        return Kept(replace(self.state, macs={}, lease_key=""), None, ())


def what_is_ours(
    context: Context, carriage: Carriage, lease: Lease, before: State, macs: Mapping[str, str], uplink_mac: str
) -> State:
    """What there is of ours on this host, beside what was ``before``; ``macs`` are those of every device that we ever had."""
    return State(
        context.settings.endpoint.prefix,
        {**macs, **carriage.macs},
        lease.key,
        tuple(sorted({*before.networks, *map(str, carriage.config.networks)})),
        tuple(sorted({*before.devices, *carriage.devices})),
        tuple(sorted({*before.fou_ports, *fou_ports(carriage)})),
        machine(),
        uplink_mac,
        str(lease.public_ip if lease.subnet.prefixlen else lease.attrs.public_ipv6),
        before.policies or uses_xfrm(carriage),
    )


def view_of(context: Context, carriage: Carriage, own: Lease, view: View) -> KeptView:
    """What a start without etcd needs."""
    leases = tuple({own.key: own, **view.peers, **view.leases, own.key: own}.values())  # the first matter most
    former = tuple(each.text for each in carriage.preference.outgoing)
    return KeptView(context.settings.endpoint.prefix, carriage.text, own.key, leases, view.revision, former)


def recall(context: Context) -> Kept:
    """Read everything; what cannot be read is said, and done without."""
    settings = context.settings
    prefix = settings.endpoint.prefix
    state = State()
    try:
        state = state_file.read(settings.state_dir, prefix)
    except FlannelpyError as error:
        context.reporter.begin("state-dir", str(error))
    promised, view = (_view(settings.state_dir, prefix, file, own_only=True) for file in (view_file.PROMISED, view_file.FILE))
    file = subnet_env.read(settings.subnet_file)
    for reason in file.skipped:
        log.warning("%s", reason)
    previous = [file.subnet, file.subnet6]
    if state.lease_key:
        try:
            previous += parse_subnet_key(state.lease_key)
        except MalformedError as error:
            log.warning("%s: %s", settings.state_dir, error)
    return Kept(state, view, tuple(net for net in previous if net is not None), None if promised is None else promised.own)


def whole_view(settings: Settings) -> KeptView | None:
    """The view that was kept, with every lease; what cannot be read is said, and done without."""
    return _view(settings.state_dir, settings.endpoint.prefix, view_file.FILE, own_only=False)


def _view(directory: Path, prefix: str, file: str, *, own_only: bool) -> KeptView | None:
    try:
        return view_file.read(directory, prefix, file, own_only=own_only)
    except FlannelpyError as error:
        log.warning("%s", error)
        return None
