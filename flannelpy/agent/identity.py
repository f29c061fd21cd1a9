"""Who are we to the peers? The MACs they hold for our devices: kept across restarts and reboots, and nobody else's. So is a key
(``keys``).

A MAC belongs to a machine. It is kept beside what tells the machine (``host.state``); a clone draws its own. It is never taken from
a lease, which another host may have written. flannel draws a new one at each start and its peers follow the put; so do ours.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping

from flannelpy.core.backend import Backend
from flannelpy.core.claims import older
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, Key, Link

log = logging.getLogger("flannelpy")


def stable_macs(devices: Iterable[str], kept: Mapping[str, str], existing: HostState) -> dict[str, str]:
    """A MAC for each of the devices: the one that was kept, else what the device has now (a flanneld left it), else a new one."""
    macs = {}
    for device in devices:
        link = existing.get(Key("link", device))
        found = link.mac if isinstance(link, Link) else None
        macs[device] = kept.get(device) or found or random_mac()
    return macs


def copied(backend: Backend, own: Lease, identities: Mapping[str, str], leases: Iterable[Lease]) -> dict[str, Lease]:
    """Which of our devices have a MAC or key that an older lease of somebody else publishes, too: the peers go by that one.

    By device, the lease that has it.
    """
    ours = {identity: device for device, identity in identities.items()}
    found = {}
    for lease in leases:
        if lease.key == own.key or lease.departing or not older(lease, own):
            continue
        for identity in backend.identities(lease.attrs).values():
            if identity in ours:
                found[ours[identity]] = lease
    return found


def without_copies(backend: Backend, own: Lease, macs: Mapping[str, str], leases: Iterable[Lease]) -> Mapping[str, str]:
    """The MACs of our devices, with a new one, and a word about it, in place of each that is ``copied``."""
    copies = copied(backend, own, macs, leases)
    drawn = {device: random_mac() for device in copies}
    for device, other in copies.items():
        ours = f"{macs[device]}, too, and is older: ours is {drawn[device]} now"
        log.warning("%s: %s has the MAC %s", device, other, ours)
    return {**macs, **drawn}


def random_mac() -> str:
    """A random, locally administered, unicast MAC (IEEE 802: bit 1 set, bit 0 clear in the first octet)."""
    octets = random.SystemRandom().randbytes(6)
    return bytes([octets[0] & 0xFE | 0x02, *octets[1:]]).hex(":")
