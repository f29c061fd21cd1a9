"""How are the health pages served where their address may be somebody else's, or not there yet? They are tried until they can be.

The pages tell of the agent; they are not what it is for. An address that a renumbered host no longer has, or a port that another
program has taken, costs the pages and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from flannelpy.agent.guarded import guarded
from flannelpy.agent.report import Reporter
from flannelpy.core.errors import FlannelpyError
from flannelpy.explain.http import Pages, serve
from flannelpy.settings import Settings

AGAIN_S = (0.5, 30.0)
"""The first pause between two tries, and the longest, doubling between them, in seconds."""


@asynccontextmanager
async def health_port(settings: Settings, reporter: Reporter, make: Callable[[], Pages]) -> AsyncIterator[None]:
    """Serve the pages that ``make`` makes for the time of the block, as soon as there is a place to listen at."""
    if not settings.healthz_port:
        yield
        return
    work = partial(_serve, settings, reporter, make)
    serving = asyncio.create_task(guarded("health port", work, reporter), name="health port")
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _serve(settings: Settings, reporter: Reporter, make: Callable[[], Pages]) -> None:
    pause_s, longest_s = AGAIN_S
    while True:
        try:
            server = await serve(str(settings.healthz_ip), settings.healthz_port, make())
        except FlannelpyError as error:
            reporter.set("healthz-unavailable", {"": str(error)})
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            continue
        reporter.set("healthz-unavailable", {})
        try:
            await asyncio.Event().wait()
        finally:
            await server.close()
