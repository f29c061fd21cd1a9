"""What is a backend? The contract of a plugin.

A backend, found by entry point (``flannelpy.plugins``), says what a lease publishes and what the kernel should hold; all pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from netaddr import IPAddress

from flannelpy.core.backend_options import Option
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError
from flannelpy.core.model import Family, Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Key, Object, Route
from flannelpy.core.wireguard import KeyPair

HostOptions = Mapping[str, Mapping[str, Any]]
"""Options of a backend, by its Type, that are this host's and win over the cluster's."""

NO_HOST_OPTIONS: HostOptions = {}


@dataclass(frozen=True, slots=True)
class Uplink:
    """The external interface: where encapsulated packets leave. ``mtu`` in bytes.

    ``address``/``address6`` are on the interface and are what packets carry as source; ``public_ip``/``public_ipv6`` are what
    peers are told to send to. They differ behind NAT.
    """

    name: str
    index: int
    mtu: int
    address: IPAddress | None = None
    address6: IPAddress | None = None
    public_ip: IPAddress | None = None
    public_ipv6: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """What a backend may ask of its host, as data. ``lease`` is None only while the attributes of the first lease are made.

    ``macs``: the stable MAC of each of the backend's devices that has one. ``keys``: the host's key pair, for a backend that needs
    one (``Keyed``). ``on_link``: peers' addresses that the host reaches without a gateway, and by which device, for one whose
    ``wants_on_link`` is true. ``prepared``: of its preparation (``Prepares``). ``answered``: the peers of WireGuard that have,
    where it matters. ``run_dir``: for files of running code.
    """

    config: NetworkConfig
    uplink: Uplink
    lease: Lease | None = None
    macs: Mapping[str, str] = field(default_factory=dict)
    on_link: Mapping[IPAddress, str] = field(default_factory=dict)
    prepared: str | None = None
    keys: KeyPair | None = None
    answered: Collection[Key] = frozenset()
    run_dir: str = ""

    @property
    def own(self) -> Lease:
        """Our lease. Raises BackendError where there is none yet: host and peers are asked for after it."""
        if self.lease is None:
            raise BackendError("no lease yet")
        return self.lease


@dataclass(frozen=True, slots=True)
class Path:
    """How a peer is reached: ``setup`` carries packets to it and takes in its own; ``routes`` send them there, and change alone."""

    setup: HostState = field(default_factory=HostState)
    routes: HostState = field(default_factory=HostState)
    mtu: int = 0
    """Bytes of a packet that goes this way whole; 0 where no packet does."""
    carrier: str = ""
    """Whose routes these are, where there is a choice (``core.select``), and the reason; ``preferred``: as one of ``Prefer``."""
    reason: str = ""
    preferred: bool = False

    @classmethod
    def of(cls, *objects: Object, mtu: int = 0) -> Path:
        """A path of exactly these. Raises ValueError where two claim one key."""
        setup = HostState.from_iterable(item for item in objects if not isinstance(item, Route))
        return cls(setup, HostState.from_iterable(item for item in objects if isinstance(item, Route)), mtu)

    @property
    def state(self) -> HostState:
        """All that the kernel holds for it."""
        return self.setup | self.routes


class Backend(Protocol):
    """One way to carry packets between hosts. Everything is pure; called as often as anybody likes.

    What a backend says nothing of is as it is for most (``flannelpy.core.usual``): a class has what is its own. It is made by
    ``from_options(options)``: the ``Backend`` object of the network config without its Type, of which it passes over keys it does
    not know, as flannel does. That follows from the table ``options``, too: then the class is made with what each row has.
    """

    name: str
    """The canonical Type, lower-case."""
    families: tuple[Family, ...]
    """What it can carry; a config that asks for more is refused with a clear line. An optional attribute ``lease_only``
    (family -> what to warn of, may be empty) names those of which it only takes leases, beside one that it carries."""
    accepts: frozenset[str] | None
    """BackendTypes of peers that it can talk to; None is any (flannel's udp)."""
    wants_on_link: bool
    """True where ``Local.on_link`` decides something (DirectRouting)."""
    options: tuple[Option, ...]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Backend: ...

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        """Names of the devices it needs for this config; the value says whether its MAC is published and must be stable."""
        ...

    def mtu(self, local: Local) -> int:
        """The MTU of the overlay in bytes, for subnet.env (flannel-compat 9.0). Raises ConfigError where nothing is left."""
        ...

    def overhead(self, underlay: Family) -> int:
        """Bytes that encapsulation adds to a packet."""
        ...

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        """What of ``attrs`` only one host may have, by the device that it is of: a MAC, a public key."""
        ...

    def attrs(self, local: Local) -> LeaseAttrs:
        """What our lease publishes. Raises ConfigError where the host cannot do it (host-gw behind NAT)."""
        ...

    def host(self, local: Local) -> HostState:
        """Device, address and network-wide routes."""
        ...

    def path(self, lease: Lease, local: Local) -> Path:
        """How this peer is reached. Raises MalformedError where its lease does not say how."""
        ...

    def datapath(self, local: Local) -> Datapath | None:
        """The part that moves packets in user space, where there is one."""
        ...


SourceRule = Literal["default", "strict", "peers"]
"""What an encapsulated packet must prove.

peers: its outer source is a peer. default: also, an inner source inside the Network lies in that peer's subnet, and the inner
destination in ours; a source outside the Network passes, for that is how hosts, routed clients and NodePorts reach containers where
nobody masquerades. strict: as default, and a source outside the Network is the peer's PublicIP.
"""


SOURCE_RULES: tuple[SourceRule, ...] = ("default", "strict", "peers")


@dataclass(frozen=True, slots=True)
class GuardedPort:
    """A UDP port where the kernel decapsulates. ``name`` says whose packets these are.

    ``datagram`` False: it is no port, but the number of an IP protocol, whose packets have no header of their own.
    ``inner``: bytes from behind the outer IP header (where the UDP header begins) to the inner IP header; ``ethertype``: to the
    inner EtherType, where there is one; ``vni``: the VXLAN network that is ours, others at the port are somebody else's.
    """

    name: str
    number: int
    inner: int
    ethertype: int | None = None
    vni: int | None = None
    datagram: bool = True


@dataclass(frozen=True, slots=True)
class Guard:
    """Only peers may send to this port, by this rule. ``families``: the overlay's that come there, each in its own kind."""

    port: GuardedPort
    rule: SourceRule
    families: tuple[Family, ...] = (4,)


@runtime_checkable
class Guarded(Protocol):
    """What a backend has besides where the firewall guards for it."""

    guarded: Guard | None
    """None where nothing is guarded: it was switched off, or the backend's own datapath does it."""


@runtime_checkable
class Enclosed(Protocol):
    """What a backend has besides where it is known by which devices peers' packets come."""

    enclosed: bool
    """True where that is the backend's own ones and the uplink: whoever else sends as a container of another host lies."""


class Beside(Protocol):
    """A carrier that two hosts may use in a network of another Type (``Prefer``): no route of it but to the peers that use it."""

    name: str
    needs_link: bool
    """Both hosts must be on one link."""
    needs_answer: bool
    """The peer must have answered by it before packets are sent that way."""

    def attrs(self, local: Local) -> LeaseAttrs: ...
    def devices(self, config: NetworkConfig) -> Mapping[str, bool]: ...
    def mtu(self, local: Local) -> int: ...
    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]: ...
    def host(self, local: Local) -> HostState: ...
    def path(self, lease: Lease, local: Local) -> Path: ...


@runtime_checkable
class StandsBeside(Protocol):
    """What a backend has besides where it may be in ``Prefer``."""

    def beside(self) -> Beside:
        """The same, as it is in a network of another Type."""
        ...


@runtime_checkable
class Keyed(Protocol):
    """What a backend has besides where its peers know a host by a key (``Local.keys``)."""

    needs_key: bool
    """Always true."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A backend that has made up its mind, and why. ``refused``: what was asked for and cannot be had, for a condition."""

    backend: Backend
    reason: str
    refused: str = ""
    engine: str = ""
    """Its name."""


@runtime_checkable
class Engines(Protocol):
    """What a backend has besides where more than one engine can do its work (udp: the kernel, or a pump).

    The agent tries ``rehearsal`` where nobody is disturbed, lets the backend choose, and goes on with what was chosen.
    """

    rehearsal: HostState
    """What the kernel must be able to make; empty where nothing depends on it. Its devices have names that nobody uses."""
    fou_ports: frozenset[int]
    """Ports where the kernel may decapsulate for it, by whichever engine it works now: what another one left is removed."""

    def choose(self, refusal: str) -> Chosen:
        """The backend to work with; ``refusal`` is what the kernel said to the rehearsal, empty where all went well."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """What a backend has besides where something must be found out before there is a lease (extension's PreStartupCommand)."""

    preparation: str
    """What it depends on: it is not done again while this is the same."""

    async def prepare(self) -> str | None:
        """Find it out, for ``Local.prepared``. Not pure: it is called once, and again after a BackendError or OSError."""
        ...


class FdStore(Protocol):
    """A place where descriptors outlive the agent: what a pump keeps here, the next start finds, and no packet is lost between.

    What a descriptor stands for (a device, a port) lives on as long as it is kept, whoever else closes it.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """What is kept now."""
        ...

    def take(self, name: str) -> int | None:
        """A descriptor of the caller's own to what is kept under this name, and stays so; None where nothing is."""
        ...

    def keep(self, name: str, fd: int) -> None:
        """Keep this under a name, in place of what has it; ``fd`` stays the caller's. A name has no colon (sd_notify(3))."""
        ...

    async def drop(self, *names: str) -> None:
        """Keep these no longer. When it returns, nobody but the caller holds them."""
        ...


class NoFdStore:
    """The fd store where nobody would keep anything: empty, always."""

    names: tuple[str, ...] = ()

    def take(self, name: str) -> int | None:  # noqa: ARG002 - the contract's
        return None

    def keep(self, name: str, fd: int) -> None:
        pass

    async def drop(self, *names: str) -> None:
        pass


class Datapath(Protocol):
    """Running code of a backend that moves packets itself. One instance serves one (device, socket) pair for its life."""

    async def open(self, fd_store: FdStore) -> None:
        """Make device and socket, or take them over from the fd store; both exist after it, and the fd store holds nothing else.

        Raises BackendError or OSError with one clear line; may be called again.
        """
        ...

    def update(self, peers: Mapping[str, Lease | None]) -> None:
        """Usable peers by lease key that came or changed; None for one that went. Cheap; takes effect soon.

        Of those that there are after it no two share an address.
        """
        ...

    def adopt(self, local: Local, backend: Backend | None = None) -> bool:
        """Go on as ``local`` (another MTU, another lease value) by the options of ``backend`` (None: the same), losing no packet.

        False where it must be opened anew: another address, port or the like. It goes on as before then.
        """
        ...

    async def run(self) -> None:
        """Move packets until cancelled. Raises on what it cannot mend itself (device gone); the agent opens a new one then."""
        ...

    async def close(self) -> None:
        """Give back device and socket. May be called twice."""
        ...


@runtime_checkable
class RefusesPeers(Protocol):
    """What a datapath has besides where it may fail for one peer and not for another."""

    def listen(self, listener: Callable[[Mapping[str, str]], None]) -> None:
        """Call this whenever they are others: the peers that it fails for by lease key, and how."""
        ...


@runtime_checkable
class LeavesBehind(Protocol):
    """What a datapath has besides where packets go on when it is closed: it had somebody else move them."""

    leaves_behind: bool
    """Always true."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A process that moves packets. ``pid`` is None between two of them; ``restarts``: how often one died and was replaced."""

    pid: int | None
    restarts: int


@dataclass(frozen=True, slots=True)
class DatapathStatus:
    """What a pump does now. ``offloads``: what the kernel does for it in bulk, by name, and ``missing`` what it does not here.

    ``counters``: everything it counted, by name; names with ``dropped`` in them are packets that went nowhere, by reason.
    ``refused``: packets that peers sent and that source validation dropped, by the peer's address.
    """

    device: str
    offloads: tuple[str, ...]
    missing: tuple[str, ...]
    workers: tuple[WorkerStatus, ...]
    counters: Mapping[str, int]
    refused: Mapping[str, int] | None = None


@runtime_checkable
class HasStatus(Protocol):
    """What a pump has besides where it can say what it does, for ``flannelpy status``."""

    def status(self) -> DatapathStatus:
        """As things are now, open or not; quick."""
        ...
