"""Who may ask the agent? Commands on this host, over a socket in the run directory that only its owner can open."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flannelpy.agent.events import Ring
from flannelpy.core.dialect import lines
from flannelpy.core.errors import KernelError
from flannelpy.core.plan import Plan
from flannelpy.explain import events, places
from flannelpy.settings import Settings

if TYPE_CHECKING:
    from flannelpy.explain.status import Status

log = logging.getLogger("flannelpy")

MOST_DIGITS = 15

JSON, TEXT = "application/json", "text/plain; charset=utf-8"


Complete = Callable[["Status"], Awaitable["Status"]]
"""Adds what only the kernel knows."""

Page = Callable[[Mapping[str, str]], Awaitable[tuple[int, str, str]]]
"""Answers a query: status, kind of content, text."""


@asynccontextmanager
async def answering(
    run_dir: Path,
    make: Callable[[], Status],
    ring: Ring | None = None,
    complete: Complete | None = None,
    others: Mapping[str, Page] | None = None,
) -> AsyncIterator[None]:
    """Answer ``flannelpy status`` and ``events`` for the time of the block, and the pages in ``others``, by path.

    Where no socket can be had, say so and do without.
    """
    from flannelpy.explain.http import bound, serve_on

    async def page(_query: Mapping[str, str]) -> tuple[int, str, str]:
        from flannelpy.explain.status import to_json

        status = make()
        return 200, JSON, to_json(status if complete is None else await complete(status))

    pages = {places.STATUS: page, **({} if ring is None else {places.EVENTS: events_page(ring)}), **(others or {})}
    path = run_dir / places.SOCKET
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(bound(path))
        except OSError as error:
            log.warning("%s: %s; flannelpy status cannot ask this agent, all else goes on", path, error.strerror or error)
            yield
            return
        server = await serve_on(listener, pages)
        try:
            yield
        finally:
            await server.close()


def setup_page(settings: Settings) -> Page:
    """The page by which commands on this host find the agent's registry."""
    endpoint, kube = settings.endpoint, settings.kube

    def absolute(file: str) -> str:
        return os.path.abspath(file) if file else ""  # noqa: PTH100 - resolve() would follow a link that is exchanged later

    def text() -> str:
        from flannelpy.explain.setup import Setup, to_json

        told = Setup(
            ",".join(endpoint.urls),
            endpoint.prefix,
            absolute(endpoint.cafile),
            absolute(endpoint.certfile),
            absolute(endpoint.keyfile),
            endpoint.username,
            absolute(endpoint.password_file),
            bool(endpoint.password),
            absolute(str(settings.subnet_file)),
            *(() if kube is None else (True, kube.api_url, absolute(kube.kubeconfig), kube.prefix, absolute(str(kube.net_config)))),
        )
        return to_json(told)

    async def page(_query: Mapping[str, str]) -> tuple[int, str, str]:
        return 200, JSON, text()

    return page


def plan_page(make: Callable[[], Awaitable[tuple[Plan, tuple[str, ...]]]]) -> Page:
    """The page of ``flannelpy plan``: a fresh look at the kernel, each time it is asked."""

    async def page(_query: Mapping[str, str]) -> tuple[int, str, str]:
        from flannelpy.explain.plan import Planned, to_json

        try:
            steps, notes = await make()
        except KernelError as error:
            return 503, TEXT, f"the kernel cannot be looked at: {error}\n"
        return 200, JSON, to_json(Planned(tuple(lines(steps)), notes))

    return page


def events_page(ring: Ring) -> Page:
    """The page of ``flannelpy events``; with ``wait`` it answers when there is something new, or when that time is over."""

    async def page(query: Mapping[str, str]) -> tuple[int, str, str]:
        try:
            since, after, wait = (None if name not in query else _whole(query[name]) for name in ("since", "after", "wait"))
        except ValueError:
            return 400, TEXT, "since, after and wait: expected whole numbers, not negative\n"
        known = after or 0
        if query.get("life", ring.life) != ring.life:
            known = 0  # a number of the agent before
        elif wait:
            await ring.wait(known, wait)
        return 200, JSON, events.to_json(ring.read(since_s=since, after=known))

    return page


def _whole(text: str) -> int:
    """Raises ValueError, also for what is more seconds or events than there ever were."""
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
        raise ValueError(text)
    return int(text)
