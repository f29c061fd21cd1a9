"""How is everything looked at, and nobody held up by it? Piece by piece: the loop has a turn after each of some milliseconds."""

from __future__ import annotations

import asyncio

from flannelpy.agent.sync.mirror import Mirror
from flannelpy.core.desired import Desired
from flannelpy.core.objects import HostState, Key


async def take(mirror: Mirror, observed: HostState) -> HostState:
    """Everything was looked at; what there is now."""
    for _piece in mirror.take_full(observed):
        await asyncio.sleep(0)
    return HostState(mirror.objects, observed.incomplete)


async def differing(desired: Desired, mirror: Mirror) -> dict[Key, None] | None:
    """What is not as it is to be: a plan of that is made in a moment, one of all holds up the loop. None where a device is among
    it, by which what lives on it is judged, too. In the order of what is desired, in which all was made: nft lists sets so.
    """
    found = dict[Key, None]()
    for key in desired.differing(mirror.objects):
        if key is None:
            await asyncio.sleep(0)
        elif key.kind == "link":
            return None
        else:
            found[key] = None
    return found
