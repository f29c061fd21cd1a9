"""What does the kernel hold, and how is it changed? The kernel as the agent sees it; ``netlink`` is real, ``fake`` is verified.

Both pass the same tests (tests/contract). Nothing outside this room knows of netlink, nft or /proc/sys.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import HostState, Key, Object, Route, Scope
from flannelpy.core.plan import Step
from flannelpy.core.uplink import EVERYTHING, FactsQuery, HostFacts, RouteAnswer


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one step; ``error`` None is success."""

    step: Step
    error: KernelError | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What the kernel says was touched, inside the scope: the object as it is now, or None for one that is gone.

    The parts are independent of each other. ``resync`` asks for a full observation: notifications were ``lost``, or something of
    ours went without a word. ``links`` are interfaces that are not ours, by index, which came, went or changed, or whose addresses
    did; ``default_route`` says that a default route has changed, ``routed`` of which IP versions a route has that is not ours.
    """

    objects: Mapping[Key, Object | None] = field(default_factory=dict)
    resync: bool = False
    lost: bool = False
    links: Mapping[int, str] = field(default_factory=dict)
    default_route: bool = False
    routed: frozenset[int] = frozenset()


class Notices(Protocol):
    """A subscription: notices as they come, until it is closed."""

    def __aiter__(self) -> AsyncIterator[Notice]: ...

    def close(self) -> None:
        """End it; whoever waits for the next notice gets StopAsyncIteration. May be called twice."""
        ...


class Kernel(Protocol):
    """This host's kernel, in the namespace where the agent runs."""

    async def facts(self, query: FactsQuery = EVERYTHING) -> HostFacts:
        """Interfaces with addresses, and default routes: what the choice of uplink is made from, as far as is asked for."""
        ...

    async def route_to(self, address: IPAddress) -> RouteAnswer | None:
        """How the kernel would reach an address (``ip route get``), or None where it would not."""
        ...

    async def route_at(self, dst: IPNetwork) -> Route | None:
        """The main table's route to exactly ``dst``, whoever's: to say who is in the way of ours."""
        ...

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        """What is there of what may be ours. With ``keys`` at least those are looked at; what is not there is left out.

        Raises KernelError where the kernel cannot be asked.
        """
        ...

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        """Carry out the steps in order, packed; one that fails does not stop the others. One result a step, in order.

        An ``add`` is exclusive for routes: a route of somebody else with the same destination is EEXIST, never overwritten.
        """
        ...

    async def rehearse(self, steps: Sequence[Step]) -> Sequence[Result]:
        """Could these be carried out? Tried in an empty network namespace, and undone; one result a step, in order.

        Where no namespace can be made (CAP_SYS_ADMIN), they are tried here: the names in them must be nobody's. What is there
        already counts as done, and stays.
        """
        ...

    def notices(self, scope: Scope) -> Notices:
        """Changes from now on, coalesced as they are read. Subscribed when this returns: call it before ``observe``."""
        ...

    async def close(self) -> None:
        """Give back sockets. May be called twice."""
        ...
