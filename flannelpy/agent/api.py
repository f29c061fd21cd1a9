"""Who may ask the agent? Commands on this host, over a socket in the run directory that only its owner can open."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from flannelpy.explain import status as documents
from flannelpy.explain.status import SOCKET, Status

log = logging.getLogger("flannelpy")


@asynccontextmanager
async def answering(run_dir: Path, make: Callable[[], Status], events: Callable[[], str] = lambda: "") -> AsyncIterator[None]:
    """Answer ``flannelpy status`` for the time of the block; where no socket can be had, say so and do without."""
    from flannelpy.explain.http import bound, serve_on

    def page() -> tuple[int, str, str]:
        return 200, "application/json", documents.to_json(make())

    path = run_dir / SOCKET
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(bound(path))
        except OSError as error:
            log.warning("%s: %s; flannelpy status cannot ask this agent, all else goes on", path, error.strerror or error)
            yield
            return
        pages = {documents.PAGE: page, documents.EVENTS_PAGE: lambda: (200, "application/json", events())}
        server = await serve_on(listener, pages)
        try:
            yield
        finally:
            await server.close()
