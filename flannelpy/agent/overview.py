"""How is the page for a browser served? Made when somebody looks, and kept for a second: many who look cost as much as one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from flannelpy.agent.events import Ring
from flannelpy.explain import page
from flannelpy.explain.status import Status
from flannelpy.explain.stream import Stream, events

KEPT_S = 1.0


def overview(
    make: Callable[[], Status], ring: Ring, clock: Callable[[], float]
) -> Callable[[Mapping[str, str]], Awaitable[tuple[int, str, str]]]:
    """What answers at ``page.PAGE``."""
    kept: tuple[float, str] | None = None

    async def answer(_query: Mapping[str, str]) -> tuple[int, str, str]:
        nonlocal kept
        now = clock()
        if kept is None or now - kept[0] >= KEPT_S:
            kept = now, page.page(make(), ring.read())
        return 200, page.CONTENT_TYPE, kept[1]

    return answer


def live(ring: Ring) -> Callable[[Mapping[str, str]], Awaitable[Stream]]:
    """What answers at ``page.EVENTS``: events as they happen, for as long as somebody listens."""

    async def answer(query: Mapping[str, str]) -> Stream:
        return events(ring, query)

    return answer
