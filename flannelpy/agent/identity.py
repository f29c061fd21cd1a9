"""Who are we to the peers? The MACs they hold for our devices, kept the same across restarts, device loss and reboots."""

from __future__ import annotations

import random
from collections.abc import Mapping

from flannelpy.core.backend import Backend
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, Key, Link


def stable_macs(
    backend: Backend, config: NetworkConfig, published: Lease | None, kept: Mapping[str, str], existing: HostState
) -> dict[str, str]:
    """A MAC for each device that has one to publish. The first that is known of: what our lease in the registry tells the peers,
    what our state directory kept, what the device has now (a flanneld left it), a new random one.
    """
    told = backend.published_macs(published.attrs) if published is not None else {}
    macs = {}
    for device, has_mac in backend.devices(config).items():
        if has_mac:
            link = existing.get(Key("link", device))
            found = link.mac if isinstance(link, Link) else None
            macs[device] = told.get(device) or kept.get(device) or found or random_mac()
    return macs


def random_mac() -> str:
    """A random, locally administered, unicast MAC (IEEE 802: bit 1 set, bit 0 clear in the first octet)."""
    octets = random.SystemRandom().randbytes(6)
    return bytes([octets[0] & 0xFE | 0x02, *octets[1:]]).hex(":")
