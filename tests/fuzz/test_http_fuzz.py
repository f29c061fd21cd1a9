"""Any bytes at a port or socket of ours: an answer of HTTP or none, nothing in the log, and the next one is answered."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from pathlib import Path

import pytest

from flannelpy.agent.api import events_page
from flannelpy.agent.events import Ring
from flannelpy.explain import events
from flannelpy.explain.health_pages import health_pages
from flannelpy.explain.http import bound, serve_on
from tests.fuzz.mutation import inputs, kept

SEEDS = [
    b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HEAD /readyz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"GET " + events.PAGE.encode() + b"?since=3600&after=7&life=abc HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /readyz HTTP/1.0\r\n\r\n",
    *kept("http"),
]
WITHIN_S = 30.0


async def answered(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(WITHIN_S):
            writer.write(data)
            writer.write_eof()
            return await reader.read()
    except ConnectionError:
        return b""  # hung up on us while we were still talking
    finally:
        writer.close()


async def test_any_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    pages = {**health_pages(lambda: True), events.PAGE: events_page(Ring(time.time))}
    with tempfile.TemporaryDirectory() as place, bound(Path(place, "s")) as listener:
        server = await serve_on(listener, pages)
        try:
            for number, data in enumerate(inputs(SEEDS, 5000)):
                if b"wait=" in data:
                    continue  # it would be waited for, as asked
                said = await answered(Path(place, "s"), data)
                assert not said or said.startswith(b"HTTP/1.1 "), data
                assert not said.startswith(b"HTTP/1.1 500"), data
                assert caplog.records == [], data
                if number % 100 == 0:
                    assert b"200 OK" in await answered(Path(place, "s"), SEEDS[0]), data
        finally:
            await server.close()
        assert server.tasks == set()
