"""What stands beside the network's Type on a host whose agent does not run? What it would set up first of all, for a forecast.

By what was kept: what peers offer beside their leases is not, so that nobody knows by which carrier each will be reached.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from flannelpy import plugins
from flannelpy.agent.beside import Retirement
from flannelpy.agent.carriage import Carriage, parsed, resolve
from flannelpy.agent.context import Context
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.migration import wider
from flannelpy.core.errors import ConfigError
from flannelpy.core.moving import Outgoing, obstacle
from flannelpy.core.objects import FdbEntry, HostState, Neighbour, Nexthop, Route, WireguardPeer
from flannelpy.core.offer import type_of
from flannelpy.core.plan import Plan, Step
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView

UNKNOWN = "by what each peer is reached that offers something beside its lease is known when etcd has been asked: it stays as it is"


async def alongside(context: Context, carriage: Carriage, view: KeptView, state: State, keys: HostKeys) -> Carriage:
    """``carriage`` with what is preferred to its Type, and with what is left of the Types before. Raises KernelError."""
    settings, asked = context.settings, parsed(context.settings, carriage.text)
    wanted = plugins.preferred(*asked, settings.host_options)
    retirement = Retirement(lambda: None, none=settings.prefer == "none")
    preference = await retirement.settle(wanted, carriage.local(), keys, None, state.devices)
    carriage = replace(carriage, preference=preference, keys=carriage.keys or preference.keys)
    if view.own is None or view.config != carriage.text:
        return carriage
    found: list[Outgoing] = []
    for text in view.former:
        with suppress(ConfigError):  # of a backend that this host cannot have any more
            former = await resolve(context, text, parsed(settings, text), (carriage.uplink, ()), state.macs, keys, None)
            each = Outgoing(former.backend, text)
            both = wider(carriage, former, each)
            if not obstacle((former.config, former.backend), (carriage.config, carriage.backend), both.local(view.own)):
                found.append(each)
                carriage = both
    names = frozenset(each.name for each in found)
    up = names | {type_of(view.own.attrs)} if found else frozenset()
    return replace(carriage, preference=replace(carriage.preference, outgoing=tuple(found), up=up, needed=names))


def left_alone(steps: Plan, carriage: Carriage, observed: HostState) -> tuple[Plan, bool]:
    """The steps without those about by which carrier a peer is reached; and whether there were any."""
    names = {device for each in carriage.preference.standing.values() for device in each.devices(carriage.config)}
    taken = {item.dst for item in observed if isinstance(item, Route) and (item.dev in names or item.dev == carriage.uplink.name)}

    def concerns(step: Step) -> bool:
        if isinstance(step.item, WireguardPeer | Neighbour | FdbEntry | Nexthop):
            return step.op == "remove" and step.item.dev in names
        return isinstance(step.item, Route) and step.item.kind == "unicast" and step.item.dst in taken

    if not carriage.preference.standing:
        return steps, False
    kept = tuple(step for step in steps if not concerns(step))
    return kept, len(kept) < len(steps)
