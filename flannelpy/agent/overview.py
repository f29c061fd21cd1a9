"""How is the page for a browser served? Made when somebody looks, and kept for a second: many who look cost as much as one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from flannelpy.agent.events import Ring
from flannelpy.explain.stream import Stream, events

if TYPE_CHECKING:
    from flannelpy.explain.events import Events
    from flannelpy.explain.status import Status

KEPT_S = 1.0
WORDS = 16
"""Pages that are kept: peers are looked for by so many words at a time."""


def overview(
    make: Callable[[], Status], ring: Ring, clock: Callable[[], float]
) -> Callable[[Mapping[str, str]], Awaitable[tuple[int, str, str]]]:
    """What answers at ``places.OVERVIEW``."""
    kept: tuple[float, Status, Events, dict[str, str]] | None = None

    async def answer(query: Mapping[str, str]) -> tuple[int, str, str]:
        from flannelpy.explain import page

        nonlocal kept
        now, word = clock(), query.get("word", "")[: page.LONGEST]
        if kept is None or now - kept[0] >= KEPT_S:
            kept = now, make(), ring.read(), {}
        _at, status, events, pages = kept
        if word not in pages and len(pages) >= WORDS:
            pages.clear()
        if word not in pages:
            pages[word] = page.page(status, events, word)
        return 200, page.CONTENT_TYPE, pages[word]

    return answer


def live(ring: Ring) -> Callable[[Mapping[str, str]], Awaitable[Stream]]:
    """What answers at ``places.EVENTS``: events as they happen, for as long as somebody listens."""

    async def answer(query: Mapping[str, str]) -> Stream:
        return events(ring, query)

    return answer
