"""How is the page for a browser served? Made when somebody looks, and kept for a second: many who look cost as much as one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from flannelpy.agent.events import Ring

if TYPE_CHECKING:
    from flannelpy.explain.status import Status

KEPT_S = 1.0


def overview(
    make: Callable[[], Status], ring: Ring, clock: Callable[[], float]
) -> Callable[[Mapping[str, str]], Awaitable[tuple[int, str, str]]]:
    """What answers at ``places.OVERVIEW``."""
    kept: tuple[float, str] | None = None

    async def answer(_query: Mapping[str, str]) -> tuple[int, str, str]:
        from flannelpy.explain import page

        nonlocal kept
        now = clock()
        if kept is None or now - kept[0] >= KEPT_S:
            kept = now, page.page(make(), ring.read().events)
        return 200, page.CONTENT_TYPE, kept[1]

    return answer
