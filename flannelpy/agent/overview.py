"""How is the page for a browser served? Made when somebody looks, and kept for a second: many who look cost as much as one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from flannelpy.agent.events import Ring
from flannelpy.explain.stream import Stream, events

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
            kept = now, page.page(make(), ring.read())
        return 200, page.CONTENT_TYPE, kept[1]

    return answer


def live(ring: Ring) -> Callable[[Mapping[str, str]], Awaitable[Stream]]:
    """What answers at ``places.EVENTS``: events as they happen, for as long as somebody listens."""

    async def answer(query: Mapping[str, str]) -> Stream:
        return events(ring, query)

    return answer
