"""When will a subnet be free? For a host that waits for one: which lease ends first, as far as a few questions tell.

A listing does not hold the time that leases have left; asking for every one would cost a call a lease. The lease of a host that is
gone is among those that were written longest ago, so only these are asked for, at once and within a bound.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from math import inf

from flannelpy.core.duration import span
from flannelpy.core.errors import RegistryError
from flannelpy.core.model import Lease
from flannelpy.registry import Registry

CANDIDATES = 8
WITHIN_S = 2.0


async def tell_first_end(registry: Registry, leases: Iterable[Lease]) -> str:
    """``oldest expires in 3 h``, or ``none of them expires`` among reservations; empty where there are none, or nobody answers in
    time.
    """
    leases = tuple(leases)
    if not leases:
        return ""
    ending = [lease for lease in leases if not lease.reserved]
    if not ending:
        return "none of them expires"
    try:
        async with asyncio.timeout(WITHIN_S):
            candidates = heapq.nsmallest(CANDIDATES, ending, key=lambda lease: lease.mod_revision)
            left = await asyncio.gather(*(registry.remaining(lease) for lease in candidates))
    except (RegistryError, TimeoutError):
        return ""
    first = min((seconds for seconds in left if seconds > 0), default=inf)  # 0: gone since the listing, others know more
    return "" if first == inf else f"oldest expires in {span(first)}"
