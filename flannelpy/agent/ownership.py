"""What of this machine is ours? What we have made and may remove, kept on disk; and what no second agent may have, claimed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.context import Context
from flannelpy.agent.kept import what_is_ours
from flannelpy.agent.sync.scope import find_scope, fou_ports
from flannelpy.core.marks import table_name
from flannelpy.core.model import Lease
from flannelpy.core.objects import Scope
from flannelpy.host.state import State

log = logging.getLogger("flannelpy")

CLAIM_AGAIN_S = 5.0
"""How often it is seen whether another agent has given up what we want."""

LEFT_ALONE_S = 20.0
"""What another agent had is taken only after nobody has had it for so long: an agent that is restarted finds what it left."""


class Ownership:
    """``state`` is what is ours, with everything that may still be in the kernel; ``keep`` writes it to disk."""

    def __init__(self, context: Context, kept: State, keep: Callable[[State], None]) -> None:
        self.state = kept
        self._context = context
        self._keep = keep
        self._wanted: frozenset[str] = frozenset()
        self._refused: tuple[frozenset[str], float] | None = None
        self._told = ""
        self._again: asyncio.TimerHandle | None = None
        self._swept: tuple[object, ...] = ()  # what was swept for last

    def scope(self, carriage: Carriage | None) -> Scope:
        """Where in the kernel what is ours may be."""
        return find_scope(carriage, self.state, self._context.settings.endpoint.prefix)

    # ------------------------------------------------------------------------------------------------ among agents

    def claim(self, carriage: Carriage) -> bool:
        """Make what ``carriage`` needs this agent's; False, with a condition, where another of this machine has a part of it."""
        claims, now = self._context.claims, self._context.clock()
        names, had = self._names(carriage), claims.names
        held = claims.claim(sorted(names))
        if held is not None:
            self._refused = (names, now)
            self._context.reporter.set("claimed", {"": str(held)})
            return False
        if self._refused is not None and self._refused[0] == names and now - self._refused[1] < LEFT_ALONE_S:
            claims.release(claims.names - had)
            return False
        self._refused, self._wanted = None, names
        self._context.reporter.set("claimed", {})
        if claims.without != self._told:
            self._told = claims.without
            if self._told:
                log.warning("%s; nothing keeps two agents of this machine off each other's devices", self._told)
        self._leave_to_others()
        return True

    def _names(self, carriage: Carriage) -> frozenset[str]:
        table = table_name(self._context.settings.endpoint.prefix)
        return frozenset({f"table {table}", *_devices(carriage.devices), *_ports(fou_ports(carriage))})

    def ask_again(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` when it is time to try again; one timer, however often this is asked."""
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(CLAIM_AGAIN_S, wake)

    def _leave_to_others(self) -> None:
        """What an earlier life left is not ours to remove where another agent has it now."""
        devices = tuple(device for device in self.state.devices if self._is_free(*_devices([device])))
        ports = tuple(port for port in self.state.fou_ports if self._is_free(*_ports([port])))
        self.state = replace(self.state, devices=devices, fou_ports=ports)

    def _is_free(self, name: str) -> bool:
        held = self._context.claims.claim([name])
        if held is not None:
            log.info("left by an earlier run of this agent, and let alone: %s", held)
        return held is None

    # --------------------------------------------------------------------------------------------------- on disk

    def own(self, carriage: Carriage, lease: Lease, uplink_mac: str, before: State) -> None:
        """Keep on disk what is ours, beside what was ``before``."""
        owned = what_is_ours(self._context, carriage, lease, before, self.state.macs, uplink_mac)
        if owned != self.state:
            self.state = owned
            self._keep(owned)

    def swept(self, carriage: Carriage, lease: Lease, uplink_mac: str) -> None:
        """The kernel holds what is wanted and nothing else of ours: what was in use before is ours no longer."""
        now = (carriage, lease, uplink_mac, self._wanted, self.state)
        if len(now) == len(self._swept) and all(one is other for one, other in zip(now, self._swept, strict=True)):
            return  # this is called after every round
        self.own(carriage, lease, uplink_mac, State())
        self._swept = (carriage, lease, uplink_mac, self._wanted, self.state)
        in_use = self._wanted | self._names(carriage)  # what is wanted may still wait for its lease
        self._context.claims.release(self._context.claims.names - in_use)


def _devices(names: Iterable[str]) -> list[str]:
    return [f"device {name}" for name in names]


def _ports(numbers: Iterable[int]) -> list[str]:
    return [f"udp-port {number}" for number in numbers]
