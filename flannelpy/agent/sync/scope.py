"""Where in the kernel do we look for what is ours? docs/ownership.md."""

from __future__ import annotations

import logging
import re

from netaddr import AddrFormatError, IPNetwork

from flannelpy.core.backend import Backend, Engines
from flannelpy.core.objects import Scope

log = logging.getLogger(__name__)

DEFAULT_PREFIX = "/coreos.com/network"

_SYSCTLS = ("ipv6/conf/{}/accept_ra", "ipv4/conf/{}/accept_local")
"""Of a device, what some backend wants to be set."""


def find_scope(carriage, kept, prefix):
    devices = carriage.backend.devices(carriage.config) if carriage else {}
    return Scope(
        links=frozenset({*devices, *kept.devices}),
        networks=(*(carriage.config.networks if carriage else ()), *_networks(kept.networks)),
        uplink=carriage.uplink.name if carriage else None,
        table=table_name(prefix),
        sysctls=frozenset(f"net/{name.format(device)}" for device in devices for name in _SYSCTLS),
        fou_ports=(fou_ports(carriage.backend) if carriage else frozenset()) | frozenset(kept.fou_ports),
    )


def fou_ports(backend: Backend) -> frozenset[int]:
    """Where the kernel may decapsulate for this backend, by whichever engine it works."""
    return backend.fou_ports if isinstance(backend, Engines) else frozenset()


def table_name(prefix: str) -> str:
    """Our nft table; agents of several networks on one host have a table each."""
    if prefix.rstrip("/") == DEFAULT_PREFIX:
        return "flannelpy"
    return "flannelpy-" + re.sub(r"[^a-zA-Z0-9]+", "-", prefix).strip("-")


def _networks(texts: tuple[str, ...]) -> list[IPNetwork]:
    found = []
    for text in texts:
        try:
            found.append(IPNetwork(text))
        except (AddrFormatError, ValueError):
            log.warning("state: %r is no network; passed over", text)
    return found
