"""What does the kernel hold, and how is it changed? The kernel as the agent sees it; ``netlink`` is real, ``fake`` is verified.

Both pass the same tests (tests/contract). Nothing outside this room knows of netlink, nft or /proc/sys.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.core.forwarding import Hindrance
from flannelpy.core.lookup import Found, Lookup
from flannelpy.core.model import Family
from flannelpy.core.objects import HostState, Key, Object, Route, Scope
from flannelpy.core.packet_filter import Ruleset
from flannelpy.core.plan import Step
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.core.secret import Secret
from flannelpy.core.uplink import EVERYTHING, FactsQuery, HostFacts, RouteAnswer


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one step; ``error`` None is success."""

    step: Step
    error: KernelError | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What the kernel says was touched. Its parts are independent of each other: whoever listens handles each for itself."""

    objects: Mapping[Key, Object | None] = field(default_factory=dict)
    """Inside the scope: as it is now, None for gone."""
    resync: bool = False
    """Notifications were lost, or something of ours vanished unannounced: everything must be observed."""
    lost: bool = False
    """Notifications were lost: whatever was known of the host may be wrong, too."""
    links: Mapping[int, str] = field(default_factory=dict)
    """Interfaces that are not ours (index and name) which came, went, changed, or whose addresses did."""
    default_route: bool = False
    """A default route of the main table changed."""
    routed: frozenset[int] = frozenset()
    """IP versions of which a route of the main table that is not ours changed, or a policy rule."""
    addressed: bool = False
    """An address of an interface that is not ours came or went, one that other links know, too."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer, or (``request``) a request of another agent. ``size``: in bytes with the IP header."""

    address: IPAddress
    token: int
    size: int
    request: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """What became of a request: this host's own kernel says that nobody is there. ``why``: its words."""

    token: int
    why: str


class PacketTooLargeError(KernelError):
    """A packet is larger than its way is known to carry: ``mtu`` in bytes, 0 where that was not said."""

    def __init__(self, mtu: int) -> None:
        super().__init__(f"the path carries packets of {mtu} bytes", errno.EMSGSIZE)
        self.mtu = mtu


class Echo(Protocol):
    """Sends echo requests of one family, which are not fragmented, and hears the answers."""

    def listen(self, heard: Callable[[], None]) -> None:
        """Call this, in the loop that runs, whenever something may have come in."""
        ...

    def hear_requests(self, wanted: bool) -> None:
        """Have other agents' requests, too, or not, where that can be had."""
        ...

    def send(self, address: IPAddress, token: int, size: int) -> None:
        """A request of ``size`` bytes, with its IP header. Raises KernelError; PacketTooLargeError where the way carries less."""
        ...

    def receive(self) -> Iterable[Heard | Refused]:
        """What has come in; nothing, where nothing has."""
        ...

    def close(self) -> None:
        """May be called twice."""
        ...


class Notices(Protocol):
    """A subscription: notices as they come, until it is closed.

    What goes wrong on the way is tried again by the iteration itself, with pauses; ``lost`` is told afterwards.
    """

    def __aiter__(self) -> AsyncIterator[Notice]: ...

    def close(self) -> None:
        """End it; whoever waits for the next notice gets StopAsyncIteration. May be called twice."""
        ...


class Kernel(Protocol):
    """This host's kernel, in the namespace where the agent runs."""

    async def facts(self, query: FactsQuery = EVERYTHING) -> HostFacts:
        """Interfaces with addresses, and default routes, as far as ``query`` asks for them. Raises KernelError.

        Interfaces that come and go meanwhile are no error: each one that is told was there.
        """
        ...

    async def route_to(self, address: IPAddress) -> RouteAnswer | None:
        """How the kernel would reach an address (``ip route get``), or None where it would not."""
        ...

    async def look_up(self, lookups: Sequence[Lookup]) -> Sequence[Found]:
        """Where these packets would go, an answer each: by which route of which table. Raises KernelError.

        Cheap: no dump, and a send for many. The caller keeps it to some hundred at a time.
        """
        ...

    async def policy_rule(self, lookup: Lookup) -> PolicyRule | None:
        """The rule by which this packet is not sent as the main table says; None where it is. Raises KernelError.

        Not cheap: the rules are read, and of each table that they name the routes. For packets that go astray.
        """
        ...

    async def settings(self, names: Iterable[str]) -> Mapping[str, str]:
        """What these settings (sysctl(8), names with slashes) hold; one that is not there is left out."""
        ...

    async def routes_at(self, routes: Iterable[Route]) -> Sequence[Route]:
        """The main table's routes, whoever's, with a destination and metric of these, in its order: to say who is in their way.

        A dump of each IP version among them, however many they are. Raises KernelError.
        """
        ...

    async def nexthops(self) -> bool:
        """True where it has nexthop objects (Linux 5.3), and tells of routes by them in full. Raises KernelError."""
        ...

    async def reintroduce(self, index: int) -> None:
        """Ask each neighbour that is known on this link for its address, so that it learns ours there. Raises KernelError."""
        ...

    async def hindrances(self) -> Sequence[Hindrance]:
        """Chains of the host's own firewall that drop what is forwarded (``core.forwarding``). Raises KernelError.

        Cheap: a listing of chains, and of the base chains of hook forward.
        """
        ...

    async def filter_rules(self) -> Ruleset:
        """All rules of all tables, and what is in their sets: to say what would become of a packet. Raises KernelError.

        Not cheap: 10,000 elements take 0.1 s. The agent never asks for it.
        """
        ...

    async def firewall_state(self) -> Hashable:
        """Another value after each change of the host's firewall, whoever's. Cheap: one message, and iptables-legacy's command
        where that is in use.
        """
        ...

    async def foreign_rules(self) -> Ruleset:
        """The rules of all tables that filter and are not ours, and what is in their sets. Raises KernelError.

        Listed by another process, and read beside the loop: 8,000 rules take the one 0.4 s, and this one 0.2 s.
        """
        ...

    async def counted(self, table: str) -> Mapping[str, int]:
        """Packets by the name of the counter in our nft table, since that was made. Raises KernelError.

        Cheap: one netlink dump.
        """
        ...

    async def counted_by_source(self, table: str, name: str) -> Mapping[str, int]:
        """Packets by the address that a set of our nft table counts them for; none without such a set. Raises KernelError."""
        ...

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        """What is there of what may be ours. With ``keys`` at least those are looked at; what is not there is left out.

        Everything that is told was there; where the kernel's tables would not stand still for long enough, something may be
        missing, and ``incomplete`` is set: look again in a second. Raises KernelError where the kernel cannot be asked.
        """
        ...

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        """Carry out the steps in order, packed; one that fails does not stop the others. One result a step, in order.

        An ``add`` is exclusive for routes and nexthop objects: a route of somebody else with the same destination, or a nexthop
        object with the same number, is EEXIST, never overwritten; and then no route goes by it.
        """
        ...

    async def rehearse(self, steps: Sequence[Step]) -> Sequence[Result]:
        """Could these be carried out? Tried in an empty network namespace, and undone; one result a step, in order.

        Where no namespace can be made (CAP_SYS_ADMIN), they are tried here: the names in them must be nobody's. What is there
        already counts as done, and stays.
        """
        ...

    async def public_key(self, private: Secret[bytes]) -> str:
        """The public key, in base64, that the kernel's WireGuard derives from a private one (32 bytes): tried as ``rehearse`` does.

        Raises KernelError, above all where the kernel has no WireGuard.
        """
        ...

    def echo(self, version: Family) -> Echo:
        """What asks hosts whether they are there. Raises KernelError where the agent may not."""
        ...

    def notices(self, scope: Scope) -> Notices:
        """Changes from now on, coalesced as they are read. Subscribed when this returns: call it before ``observe``."""
        ...

    async def close(self) -> None:
        """Give back sockets. May be called twice."""
        ...
