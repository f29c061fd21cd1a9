"""Where in the kernel do we look for what is ours? docs/ownership.md."""

from __future__ import annotations

import logging

from netaddr import AddrFormatError, IPNetwork

from flannelpy.agent.carriage import Carriage
from flannelpy.core.backend import Engines
from flannelpy.core.marks import OURS, table_name
from flannelpy.core.objects import Scope
from flannelpy.core.xfrm import UsesXfrm
from flannelpy.host.state import State

log = logging.getLogger(__name__)

_SYSCTLS = ("ipv6/conf/{}/accept_ra", "ipv4/conf/{}/accept_local")
"""Of a device, what some backend wants to be set."""


def find_scope(carriage: Carriage | None, kept: State, prefix: str) -> Scope:
    """The devices and networks in use now, and those that an earlier run of this network left behind (to be swept)."""
    devices = frozenset[str]() if carriage is None else carriage.devices
    ports = frozenset[int]() if carriage is None else fou_ports(carriage)
    left = [device for device in kept.devices if OURS.fullmatch(device)]
    return Scope(
        links=frozenset({*devices, *left}),
        networks=(*(carriage.config.networks if carriage is not None else ()), *_networks(kept.networks)),
        uplink=None if carriage is None else carriage.uplink.name,
        table=table_name(prefix),
        sysctls=frozenset(f"net/{name.format(device)}" for device in devices for name in _SYSCTLS),
        fou_ports=ports | frozenset(kept.fou_ports),
        policies=kept.policies or (carriage is not None and uses_xfrm(carriage)),
    )


def fou_ports(carriage: Carriage) -> frozenset[int]:
    """Where the kernel may decapsulate for us, by whichever engine a backend works."""
    return frozenset(port for backend in carriage.backends if isinstance(backend, Engines) for port in backend.fou_ports)


def uses_xfrm(carriage: Carriage) -> bool:
    """Whether a backend in use reaches its peers by policies of IPsec."""
    return any(isinstance(backend, UsesXfrm) for backend in carriage.backends)


def _networks(texts: tuple[str, ...]) -> list[IPNetwork]:
    found = []
    for text in texts:
        try:
            found.append(IPNetwork(text))
        except (AddrFormatError, ValueError):
            log.warning("state: %r is no network; passed over", text)
    return found
