"""What is known of a host before anything is checked? Its options, its agent, its network, its subnet file: each may be missing."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.commands.ask import ask
from flannelpy.commands.conversation import opened
from flannelpy.commands.located import with_nodes
from flannelpy.core.backend import Backend, Beside
from flannelpy.core.config import NetworkConfig
from flannelpy.core.entrances import Entrance, entrances
from flannelpy.core.errors import ConfigError, FlannelpyError, MalformedError
from flannelpy.core.foreign import cut
from flannelpy.core.host_facts import Interface
from flannelpy.core.objects import Route
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.explain.status import SOCKET, Status, from_json
from flannelpy.host.files import read_file
from flannelpy.host.subnet_env import LARGEST, Previous, parse
from flannelpy.kernel import Kernel
from flannelpy.kernel.policy import policy_rules
from flannelpy.kernel.routes import routes_inside
from flannelpy.options import Given
from flannelpy.settings import Settings, load

if TYPE_CHECKING:
    from flannelpy.registry import Registry

ASK_S = 2.0
UNKNOWN = "the network config is not known"

LEARN_S = 3.0
"""How long the registry may take to say what only it knows."""


@dataclass(slots=True)
class About:
    """``status``: what the agent says; None where ``silent`` says why not. ``config`` and ``backend``: of the running agent, else
    as etcd has it; None where ``unknown`` says why. ``told``: what the subnet file says. ``preflight``: nothing has run here yet.
    """

    settings: Settings
    kernel: Kernel
    preflight: bool = False
    status: Status | None = None
    silent: str = ""
    config: NetworkConfig | None = None
    backend: Backend | None = None
    unknown: str = ""
    told: Previous = field(default_factory=Previous)
    etcd_by: str = "the options"
    routes_inside: Callable[[Iterable[IPNetwork]], Awaitable[list[Route]]] = routes_inside
    policy_rules: Callable[[Iterable[IPNetwork]], Awaitable[list[PolicyRule]]] = policy_rules
    root: Path = Path("/")
    """Where the files of other programs are looked for."""

    @property
    def subnets(self) -> tuple[IPNetwork, ...]:
        """What this host has leased: as the agent says, else as the subnet file does."""
        lease = None if self.status is None else self.status.lease
        if lease is not None:
            return tuple(IPNetwork(each) for each in (lease.subnet, lease.subnet6) if each is not None)
        return tuple(net for net in (self.told.subnet, self.told.subnet6) if net is not None)

    @property
    def mtu(self) -> int:
        """The overlay's, in bytes; 0 where it is not known."""
        backend = None if self.status is None else self.status.backend
        return backend.mtu if backend is not None else self.told.mtu or 0

    @property
    def devices(self) -> frozenset[str]:
        """Our own: the Type's, and those of what is preferred to it."""
        if self.config is None or self.backend is None:
            return frozenset()
        found = {name for each in self._beside for name in each.devices(self.config)}
        return frozenset({*self.backend.devices(self.config), *found})

    @property
    def _beside(self) -> list[Beside]:
        """What may stand beside the Type on this host."""
        if self.config is None or self.backend is None or self.settings.prefer is not None:
            return []
        return [*plugins.preferred(self.config, self.backend, self.settings.host_options).values()]

    @property
    def entrances(self) -> list[Entrance]:
        """Where packets of other hosts come in."""
        if self.config is None or self.backend is None:
            return []
        return [*entrances(self.config, [self.backend]), *self.spare]

    @property
    def spare(self) -> list[Entrance]:
        """Those of them that only what is preferred to the Type takes packets at: without it they come by the Type."""
        return [] if self.config is None else entrances(self.config, self._beside)

    def address_of(self, interface: Interface, version: int) -> IPAddress | None:
        """What this host sends with there: of the uplink what the agent goes by, where it has several; else the first."""
        uplink = None if self.status is None else self.status.uplink
        chosen = None
        if uplink is not None and uplink.interface == interface.name:
            chosen = uplink.address if version == 4 else uplink.address6
        asked = self.settings.public_ip if version == 4 else self.settings.public_ipv6
        held = [each.address for each in interface.addresses if each.address.version == version]
        best = [each.address for each in interface.addresses if each.address in held and each.scope == "global"] or held
        return next((address for address in held if str(address) == chosen), asked if asked in held else next(iter(best), None))

    def take(self, text: str | None) -> None:
        """The network config, as stored."""
        try:
            self.config, self.backend = plugins.parse(text, self.settings.host_options)
            self.unknown = ""
        except ConfigError as error:
            self.unknown = f"the network config {error}"


def gather(given: Given, environ: Mapping[str, str], kernel: Kernel, *, preflight: bool) -> About:
    """What can be known without the registry. Raises UsageError."""
    about = About(load(with_nodes(given, environ), environ), kernel, preflight)
    try:
        about.status = from_json(ask(about.settings.run_dir / SOCKET, within_s=ASK_S))
    except MalformedError as error:
        about.silent = f"the agent is of another version: {error}"
    except FlannelpyError as error:
        about.silent = str(error)
    about.told = _told(about.settings.subnet_file)
    status = about.status
    if status is None:
        about.unknown = UNKNOWN
        return about
    if status.network is not None:
        about.take(json.dumps(dict(status.network)))
    else:
        about.unknown = "the agent has no network config yet"
    if about.settings.kube is not None:
        return about
    if not given.get("etcd-endpoints") and not any(environ.get(f"{lead}_ETCD_ENDPOINTS") for lead in ("FLANNELPY", "FLANNELD")):
        endpoint = replace(about.settings.endpoint, urls=status.etcd.endpoints, prefix=status.etcd.prefix)
        about.settings = replace(about.settings, endpoint=endpoint)
        about.etcd_by = "the running agent"
    return about


@asynccontextmanager
async def knowing(given: Given, *, preflight: bool = False) -> AsyncIterator[About]:
    """What is known of this host, with the real kernel to ask, and from the registry where it answers. Raises UsageError."""
    from flannelpy.kernel.netlink import NetlinkKernel

    kernel = NetlinkKernel()
    try:
        about = gather(given, os.environ, kernel, preflight=preflight)
        if about.config is None:
            registry = opened(replace(about.settings.endpoint, timeout_s=LEARN_S), about.settings.kube)
            try:
                await learn(about, registry)
            finally:
                await registry.close()
        yield about
    finally:
        await kernel.close()


async def learn(about: About, registry: Registry) -> None:
    """The network config of the registry, where no agent has told it. Never raises."""
    if about.config is not None:
        return
    try:
        about.take((await registry.config()).text)
    except FlannelpyError as error:
        about.unknown = f"{UNKNOWN}: {cut(str(error), 120)}"


def _told(path: Path) -> Previous:
    try:
        return parse(read_file(path, LARGEST).decode(errors="replace"))
    except (OSError, FlannelpyError):
        return Previous()
