"""Which of the network's preferred carriers can this host offer? Those that work here, each tried as far as that needs trying.

One that it offers no longer stays set up for a while, for its peers send that way until they have heard of it. It says that, too:
they have to let its own last packets in.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from flannelpy.agent.keys import HostKeys
from flannelpy.core.backend import Backend, Beside, Keyed, Local
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import FlannelpyError, KernelError
from flannelpy.core.model import LeaseAttrs
from flannelpy.core.moving import Outgoing, named
from flannelpy.core.offer import Offer
from flannelpy.core.select import Preferring
from flannelpy.core.wireguard import KeyPair

LINGER_S = 10.0
"""How long what is offered no longer stays set up."""

LACKING_S = 30.0
"""How often it is tried again to offer what the kernel lacks a module for, which may be loaded at any time."""


@dataclass(frozen=True, slots=True)
class Preference:
    """What stands beside the Type here. ``order``: what the network prefers; ``carriers``: those of them that this host offers;
    ``withheld``: the others, and why; ``retiring``: those that it only takes packets by any more. ``keys``: by what the peers know
    us, where a carrier needs that; ``lacking``: one is withheld that may be had yet.

    While the network moves to another Type, ``outgoing`` are those that it had before, the last one first; ``up``: which of all
    these Types are set up here, and ``needed``: which of the outgoing peers are still sent to by.
    """

    order: tuple[str, ...] = ()
    carriers: Mapping[str, Beside] = field(default_factory=dict)
    withheld: Mapping[str, str] = field(default_factory=dict)
    retiring: Mapping[str, Beside] = field(default_factory=dict)
    keys: KeyPair | None = None
    lacking: bool = False
    outgoing: tuple[Outgoing, ...] = ()
    up: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()

    @property
    def aside(self) -> Mapping[str, Beside]:
        """All of ``Prefer`` that is set up."""
        return {**self.retiring, **self.carriers}

    @property
    def standing(self) -> Mapping[str, Beside]:
        """All that is set up."""
        return {**{each.name: each for each in self.outgoing}, **self.aside}

    @property
    def leaving(self) -> tuple[str, ...]:
        """The names of the Types before."""
        return tuple(each.name for each in self.outgoing)

    def over(self, backend: Backend) -> Backend | Preferring:
        """``backend`` with these beside it."""
        if not self.order and not self.standing:
            return backend
        standing = {name: carrier for name, carrier in self.standing.items() if name != backend.name}
        ready = not self.outgoing or backend.name in self.up
        return Preferring(backend, standing, self.order, self.withheld, frozenset(self.carriers), self.leaving, ready)

    def published(self, backend: Backend) -> Backend:
        """Whose our lease is: ``backend``'s once that is set up, and until then that of the Type before."""
        if backend.name in self.up:
            return backend
        return next((each.backend for each in self.outgoing if each.name in self.up), backend)

    def offer(self, own: LeaseAttrs, local: Local, backend: Backend) -> Offer | None:
        """What is to stand beside our lease, whose value is ``own``; None where nothing is offered."""
        told: dict[str, Beside | Backend] = {each.name: each for each in self.outgoing if each.name in self.up & self.needed}
        if self.outgoing and backend.name in self.up:
            told[backend.name] = backend
        told |= self.carriers
        going = {name: carrier for name, carrier in self.retiring.items() if name not in told and name != backend.name}
        if not told and not going:
            return None
        both = ([named(carrier.attrs(local), name) for name, carrier in each.items()] for each in (told, going))
        return Offer.of(own, *both)


async def prefer(wanted: Mapping[str, Beside], local: Local, host_keys: HostKeys) -> Preference:
    """What this host can offer of ``wanted``."""
    carriers: dict[str, Beside] = {}
    withheld: dict[str, str] = {}
    keys, lacking = local.keys, False
    for name, carrier in wanted.items():
        try:
            if isinstance(carrier, Keyed) and keys is None:
                keys = await host_keys.pair()  # which the kernel derives, where it has WireGuard
            here = replace(local, keys=keys)
            carrier.mtu(here)
            carrier.attrs(here)
        except FlannelpyError as error:
            withheld[name] = str(error)
            lacking |= isinstance(error, KernelError) and error.code == errno.EOPNOTSUPP
        else:
            carriers[name] = carrier
    return Preference(tuple(wanted), carriers, withheld, keys=keys, lacking=lacking)


class Retirement:
    """Decides what is offered, and how long each stays set up that is no longer: ``wake`` is called when one's time is over, and
    when one may be had that could not be.

    ``none``: the operator wants nothing offered.
    """

    def __init__(self, wake: Callable[[], None], none: bool) -> None:
        self._wake = wake
        self._none = none
        self._until: dict[str, float] = {}
        self._again: asyncio.TimerHandle | None = None

    async def settle(
        self,
        wanted: Mapping[str, Beside],
        local: Local,
        host_keys: HostKeys,
        before: Preference | None,
        left: Collection[str],
    ) -> Preference:
        """What this host offers of ``wanted``, and what it still takes packets by. ``before``: what it was, None for a life that
        begins; then devices that were ``left`` say it.
        """
        none = self._none
        usable = {name: carrier for name, carrier in wanted.items() if not none or _left(carrier, local.config, left)}
        found = await prefer(usable, local, host_keys)
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(LACKING_S, self._wake) if found.lacking else None
        had = found.carriers if before is None else before.aside
        if none:
            off = dict.fromkeys(wanted, "switched off here (--prefer none)")
            found = replace(found, order=tuple(wanted), carriers={}, withheld=off)
        retiring = self._linger(had, found, local.config)
        return replace(found, retiring=retiring, keys=found.keys or (before.keys if before is not None and retiring else None))

    def _linger(self, had: Mapping[str, Beside], now: Preference, config: NetworkConfig) -> Mapping[str, Beside]:
        for name in now.carriers:
            self._until.pop(name, None)
        loop, found = asyncio.get_running_loop(), dict[str, Beside]()
        for name, carrier in had.items():
            if name in now.carriers or not carrier.devices(config):
                continue  # what has no device of its own takes packets by any
            if name not in self._until:
                self._until[name] = loop.time() + LINGER_S
                loop.call_at(self._until[name], self._wake)
            if loop.time() < self._until[name]:
                found[name] = carrier
        return found


def _left(carrier: Beside, config: NetworkConfig, devices: Collection[str]) -> bool:
    return any(name in devices for name in carrier.devices(config))
