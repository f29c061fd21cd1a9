"""How does a node that began by what was kept on disk learn of the cluster? It waits for etcd, and says so where that lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from flannelpy.agent.start import Situation, SituationChangedError, read_config
from flannelpy.agent.surroundings import Surroundings


async def catch_up(
    around: Surroundings, situation: Situation, list_all: Callable[[], Awaitable[None]], allow_publishing: Callable[[], None]
) -> None:
    """Return when etcd has answered and the leases are listed. Raises SituationChangedError where its config is another one.

    Until then nobody may learn that we are up where etcd was not asked before: it gets as long as at any start, and is then done
    without.
    """
    kept = situation.kept
    if kept is None:
        return

    def go_on_without() -> None:
        around.reporter.begin("view-stale", f"{len(kept.leases)} leases as of revision {kept.revision}")
        allow_publishing()

    late: asyncio.TimerHandle | None = None
    if situation.resumed:
        late = asyncio.get_running_loop().call_later(around.patience.offline_s, go_on_without)
    else:
        go_on_without()
    try:
        stored = await read_config(around.registry, around.reporter)
        if stored.text != kept.config:
            raise SituationChangedError("the network config is another one than was kept on disk")
        await list_all()
    finally:
        if late is not None:
            late.cancel()
    around.reporter.end("view-stale")
    allow_publishing()
