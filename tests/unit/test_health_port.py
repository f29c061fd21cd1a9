"""Whatever keeps the health pages from being served costs them, for a while, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from flannelpy.agent import guarded, health_port
from flannelpy.agent.report import Reporter
from flannelpy.core.errors import FlannelpyError
from flannelpy.registry import Endpoint
from flannelpy.settings import Settings
from tests.unit.agents import until


class Server:
    """One that listens."""

    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("fault", [FlannelpyError("another program listens there"), OSError(24, "EMFILE"), RuntimeError("odd")])
@pytest.mark.parametrize("times", [1, 3])
async def test_the_pages_are_served_when_they_can_be(fault: Exception, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tries, server = 0, Server()

    async def serve(_host: str, _port: int, _pages: object) -> Server:
        nonlocal tries
        tries += 1
        if tries <= times:
            raise fault
        return server

    monkeypatch.setattr(health_port, "serve", serve)
    monkeypatch.setattr(health_port, "AGAIN_S", (0.01, 0.02))
    monkeypatch.setattr(guarded, "FIRST_RETRY_S", 0.01)
    reporter = Reporter(asyncio.get_running_loop().time)
    codes: Callable[[], set[str]] = lambda: {active.condition.code for active in reporter.health}  # noqa: E731
    settings = Settings(Endpoint(("http://etcd:2379",)), healthz_port=8080)
    async with health_port.health_port(settings, reporter, dict):
        await until(lambda: tries == times and bool(codes()))
        await until(lambda: tries == times + 1)
    assert server.closed
