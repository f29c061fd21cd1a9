"""udp: what a lease publishes and what the kernel holds, by either of two engines: the kernel's FOU (fou.py), or userspace.

With the latter, one TUN device takes the whole network, and the peers are the workers'. flannel-compat 9.4 and 9.0. No BackendType
is published and any is accepted in a peer, as flannel does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Literal

from netaddr import IPNetwork

from backends.udp import fou
from backends.udp.protocol import OVERHEAD, Guard
from backends.udp.supervisor import Terms, UserspaceDatapath
from flannelpy.core.backend import Chosen, GuardedPort, Local, Path
from flannelpy.core.backend import Guard as KernelGuard
from flannelpy.core.backend_options import Option, read
from flannelpy.core.config import NetworkConfig
from flannelpy.core.entrances import Entrance
from flannelpy.core.errors import ConfigError
from flannelpy.core.filter_match import UDP
from flannelpy.core.model import Family, Lease, LeaseAttrs
from flannelpy.core.objects import Address, HostState, Link, Route, Sysctl
from flannelpy.core.shared_options import GUARD
from flannelpy.core.usual import completed

log = logging.getLogger(__name__)

Engine = Literal["auto", "kernel", "userspace"]
ENGINES: Mapping[str, Engine] = {"auto": "auto", "kernel": "kernel", "userspace": "userspace", "pump": "userspace"}
"""By the names that a config may use; ``pump`` is an older one."""

DEVICE = "flannel0"
"""flannel's pattern is ``flannel%d``; on a host of one agent that is this name."""

SMALLEST_MTU = 68
"""What every IPv4 link must carry (RFC 791); the kernel refuses less on a TUN device."""

MOST_WORKERS = 64
"""A quarter of the queues that the kernel gives a TUN device (MAX_TAP_QUEUES); nobody has packets for more."""


@completed
class Udp:
    """The ``udp`` backend. ``port`` is the cluster's: peers are sent to at our own configured port.

    An ``auto`` engine that nobody has decided about is userspace, which every kernel with TUN can run.
    """

    name = "udp"
    families: tuple[Family, ...] = (4,)
    lease_only: Mapping[Family, str] = MappingProxyType({6: "udp carries IPv4 only: its IPv6 subnets are no more than leased"})
    accepts: frozenset[str] | None = None
    wants_on_link = False
    enclosed = True
    options: tuple[Option, ...] = (
        Option("Port", 8285, "UDP port of the cluster", least=1),
        GUARD,
        Option(
            "Engine",
            "auto",
            "who carries the packets on each host: `kernel`, `userspace` (`pump` is an older name of it), or `auto`: the kernel"
            " where it can",
            words=tuple(ENGINES),
            flag="--udp-engine",
        ),
        Option(
            "Workers",
            1,
            "worker processes in user space on each host, and no more than it has cores",
            least=1,
            most=MOST_WORKERS,
            flag="--udp-workers",
        ),
    )

    def __init__(self, port: int = 8285, guard: Guard = "default", engine: Engine = "auto", workers: int = 1) -> None:
        self.port = port
        self.guard = guard
        self.engine = engine
        self.workers = workers
        self.rehearsal = HostState() if engine == "userspace" else fou.rehearsal(port)
        self.fou_ports = frozenset({port})
        self.guarded = KernelGuard(GuardedPort("udp", port, inner=8), guard) if engine == "kernel" and guard != "off" else None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Udp:
        given = read(cls.options, options)
        return cls(given["Port"], given["Guard"], ENGINES[given["Engine"]], given["Workers"])

    @property
    def userspace(self) -> Terms | None:
        """What the userspace datapath works by; None where the kernel carries the packets."""
        return None if self.engine == "kernel" else Terms(self.port, self.guard, self.workers)

    def choose(self, refusal: str) -> Chosen:
        """The engine that can be had: the kernel where it can be and nobody forbade it."""
        asked: tuple[Engine, ...] = ("kernel", "userspace")
        kernel, userspace = (Udp(self.port, self.guard, engine, self.workers) for engine in asked)
        if self.engine == "userspace":
            return Chosen(userspace, "udp engine: userspace, as asked for", engine="userspace")
        if not refusal:
            return Chosen(kernel, f"udp engine: kernel{', as asked for' if self.engine == 'kernel' else ''}", engine="kernel")
        refused = f"udp's engine kernel: {refusal}; userspace carries the packets" if self.engine == "kernel" else ""
        return Chosen(userspace, f"udp engine: userspace; kernel unavailable: {refusal}", refused, "userspace")

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {DEVICE: False}

    def entrances(self, config: NetworkConfig) -> tuple[Entrance, ...]:
        return (Entrance(UDP, self.port, DEVICE, option="Port"),)

    def mtu(self, local: Local) -> int:
        uplink = local.uplink
        if uplink.mtu < SMALLEST_MTU + OVERHEAD:
            least = SMALLEST_MTU + OVERHEAD
            raise ConfigError(f"interface {uplink.name}: MTU {uplink.mtu} is too small for udp, expected {least} or more")
        return uplink.mtu - OVERHEAD

    def overhead(self, underlay: Family) -> int:
        return OVERHEAD

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return {}

    def attrs(self, local: Local) -> LeaseAttrs:
        if local.uplink.public_ip is None:
            raise ConfigError(f"interface {local.uplink.name} has no IPv4 address: expected one, for udp")
        return LeaseAttrs(public_ip=local.uplink.public_ip)

    def host(self, local: Local) -> HostState:
        if self.engine == "kernel":
            return fou.host(local, DEVICE, self.mtu(local), self.port)
        base = IPNetwork((local.own.subnet.first, 32), version=4)
        return HostState.of(
            Link(DEVICE, "tun", mtu=self.mtu(local)),
            Address(base, DEVICE),
            # The worker's ICMP errors have our own address as source. Nobody else's packets can, where the inner source is checked.
            Sysctl(f"net/ipv4/conf/{DEVICE}/accept_local", "1" if self.guard in ("default", "strict") else "0"),
            *(Route(network, dev=DEVICE) for network in local.config.networks if network.version == 4),
        )

    def path(self, lease: Lease, local: Local) -> Path:
        return Path(routes=fou.routes(lease, DEVICE) if self.engine == "kernel" else HostState(), mtu=self.mtu(local))

    def datapath(self, local: Local) -> UserspaceDatapath | None:
        terms = self.userspace
        if terms is None:
            return None
        bulk = find_spec("numpy") is not None
        if not bulk:
            log.info("udp workers: without numpy they move packets one by one; with Debian's packages it is in flannelpy-udp")
        return UserspaceDatapath(local, device=DEVICE, terms=terms, offload=bulk)
