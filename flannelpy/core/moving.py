"""What stays of the Type before while a network moves to another one? A carrier beside it, until no host sends by it any more.

Pure. Each host says by its lease and beside it (``core.offer``) by what it takes packets; it goes on taking them by the Type before
for as long as it, or any peer, sends that way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Backend, Datapath, Enclosed, Local, Path, StandsBeside
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Ipip, Link, Route
from flannelpy.core.offer import type_of


@runtime_checkable
class Begins(Protocol):
    """What a datapath has besides where packets wait, after it was opened, until its running code has begun.

    Nobody is moved to it before.
    """

    @property
    def begun(self) -> bool: ...


@runtime_checkable
class Retires(Protocol):
    """What a datapath has besides where it leaves something to the next start, which no other would know what to do with."""

    def retire(self) -> None:
        """Another one takes its place: the next ``close`` is to leave nothing."""
        ...


@runtime_checkable
class Succeeds(Protocol):
    """What a datapath has besides where what another one of its kind has done is left for it to undo."""

    def succeed(self, before: Datapath) -> None:
        """It takes the place of this one, which is closed; called before ``open``."""
        ...


class Outgoing:
    """The backend of a Type that the network had before, as a carrier beside the one that it has now; ``text``: that config.

    No route of it is the whole network's: where its peers had none of their own, each gets one here.
    """

    needs_link = needs_answer = False

    def __init__(self, backend: Backend, text: str) -> None:
        self.name = backend.name
        self.backend = backend
        self.text = text
        self._beside = backend.beside() if isinstance(backend, StandsBeside) else None

    def attrs(self, local: Local) -> LeaseAttrs:
        return self.backend.attrs(local)

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return self.backend.devices(config)

    def mtu(self, local: Local) -> int:
        return self.backend.mtu(local)

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return self.backend.identities(attrs)

    def host(self, local: Local) -> HostState:
        if self._beside is not None:
            return self._beside.host(local)
        return HostState.from_iterable(item for item in self.backend.host(local) if not isinstance(item, Route))

    def path(self, lease: Lease, local: Local) -> Path:
        if self._beside is not None:
            return self._beside.path(lease, local)
        path = self.backend.path(lease, local)
        if len(path.routes):
            return path
        wide = [item for item in self.backend.host(local) if isinstance(item, Route) and item.kind == "unicast"]
        own = (replace(route, dst=net) for net in _nets(lease) for route in wide if net in route.dst)
        return replace(path, routes=HostState.from_iterable(own))


def _nets(lease: Lease) -> Iterator[IPNetwork]:
    if lease.subnet.prefixlen:
        yield lease.subnet
    if lease.subnet6 is not None:
        yield lease.subnet6


def beside(old: Backend, new: Backend) -> bool:
    """True where these two can stand beside each other on a host, as far as that is known without one."""
    return isinstance(old, Enclosed) and isinstance(new, Enclosed) and {old.name, new.name} != {"ipip", "udp"}


def obstacle(before: tuple[NetworkConfig, Backend], after: tuple[NetworkConfig, Backend], local: Local) -> str:
    """Why two backends cannot stand beside each other on this host; empty where they can. ``local`` has a lease and all that either
    needs.
    """
    (old, outgoing), (new, backend) = before, after
    if _cut(old) != _cut(new):
        return "the subnets are others, too"
    for each in (outgoing, backend):
        if not isinstance(each, Enclosed):
            return f"{each.name} has a way of its own"
    try:
        theirs, ours = Outgoing(outgoing, "").host(local), backend.host(local)
        _ = theirs | ours
        _ = outgoing.attrs(local)  # host-gw: no more, where NAT has come
    except (FlannelpyError, ValueError) as error:
        return str(error)
    if shared := _tunnels(theirs) & _tunnels(ours):
        return f"the kernel has one ipip device for each local address, and both want {shared.pop()}"
    return ""


def _cut(config: NetworkConfig) -> list[tuple[IPNetwork, int]]:
    """What is cut into subnets, and how long these are; whichever of them are handed out, none of them is another for it."""
    return [(pool.network, pool.length) for pool in (config.v4, config.v6) if pool is not None]


def _tunnels(state: HostState) -> set[IPAddress]:
    return {item.detail.local for item in state if isinstance(item, Link) and isinstance(item.detail, Ipip)}


def named(attrs: LeaseAttrs, name: str) -> LeaseAttrs:
    """``attrs`` with the name of their carrier, which udp's lack."""
    return attrs if type_of(attrs) == name else replace(attrs, backend_type=name)
