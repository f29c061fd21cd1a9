"""Do events come as they happen, to as many as may listen, and does nobody else suffer by it? Real sockets on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flannelpy.agent import overview
from flannelpy.agent.events import Ring
from flannelpy.explain import http, stream
from flannelpy.explain.http import HttpServer, Page, Query, serve

WITHIN_S = 30.0


@pytest.fixture
def ring() -> Ring:
    return Ring(lambda: 0.0)


@pytest.fixture
async def server(ring: Ring) -> AsyncIterator[HttpServer]:
    async def plain(_query: Query) -> Page:
        return 200, http.TEXT, "here"

    running = await serve("127.0.0.1", 0, {"/events": overview.live(ring), "/plain": plain})
    yield running
    await running.close()


class Listener:
    """Somebody who listens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = ""
        self.text = ""

    @classmethod
    async def of(cls, server: HttpServer, query: str = "", last: str = "", method: str = "GET") -> Listener:
        listener = cls(*await asyncio.open_connection("127.0.0.1", server.port))
        header = f"Last-Event-ID: {last}\r\n" if last else ""
        listener.writer.write(f"{method} /events{query} HTTP/1.1\r\nHost: h\r\n{header}\r\n".encode())
        async with asyncio.timeout(WITHIN_S):
            listener.head = (await listener.reader.readuntil(b"\r\n\r\n")).decode()
        return listener

    async def chunk(self) -> str:
        """The next piece (RFC 9112 7.1); empty at the end."""
        async with asyncio.timeout(WITHIN_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            piece = (await self.reader.readexactly(size + 2))[:-2].decode()
        self.text += piece
        return piece

    async def until(self, text: str) -> None:
        while text not in self.text:
            await self.chunk()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line.removeprefix("data: ")) for line in self.text.splitlines() if line.startswith("data: ")]

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_what_happens_comes_with_its_number(server: HttpServer, ring: Ring) -> None:
    ring.keep("config", "", "before")
    listener = await Listener.of(server)
    assert "200 OK" in listener.head
    assert "text/event-stream" in listener.head
    assert "transfer-encoding: chunked" in listener.head.lower()
    ring.keep("peer-joined", "10.5.9.0-24", "peer joined\x1b[2J\ndata: forged", "h9")
    await listener.until("forged")
    (event,) = listener.events()
    assert (event["number"], event["name"]) == (2, "h9")
    assert f"id: {ring.life}:2\ndata: " in listener.text
    assert "\x1b" not in listener.text
    await listener.close()


@pytest.mark.parametrize("how", ["header", "query"])
async def test_who_was_cut_off_hears_what_it_missed(server: HttpServer, ring: Ring, how: str) -> None:
    for number in range(1, 4):
        ring.keep("config", "", f"event {number}")
    mark = stream.mark(ring.life, 1)
    listener = await (Listener.of(server, last=mark) if how == "header" else Listener.of(server, f"?after={mark}"))
    await listener.until("event 3")
    assert [event["number"] for event in listener.events()] == [2, 3]
    await listener.close()


@pytest.mark.parametrize("mark", ["another:1", "another:x", "", "junk", f"LIFE:{'9' * 400}", "LIFE:-1", "LIFE:²"])
async def test_after_a_restart_or_for_junk_the_last_events_come(server: HttpServer, ring: Ring, mark: str) -> None:
    for number in range(stream.MOST_EVENTS + 10):
        ring.keep("config", "", f"event {number}")
    said = mark.replace("LIFE", ring.life).encode().decode("latin-1")
    listener = await Listener.of(server, last=said or "x")
    await listener.until(f"event {stream.MOST_EVENTS + 9}")
    assert len(listener.events()) == stream.MOST_EVENTS
    await listener.close()


async def test_while_nothing_happens_a_comment_comes(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.01)
    listener = await Listener.of(server)
    await listener.until(": nothing new")
    assert listener.events() == []
    await listener.close()


async def test_of_one_source_so_many_may_listen_and_who_asks_is_answered(server: HttpServer, ring: Ring) -> None:
    listeners = [await Listener.of(server) for _ in range(http.STREAMS_SHARE)]
    refused = await Listener.of(server)
    assert "503" in refused.head
    await refused.close()
    await listeners[0].close()
    for _ in range(1000):  # that one is gone is noticed without that anything is sent to it
        if sum(each.streams for each in server._open) < http.STREAMS_SHARE:
            break
        await asyncio.sleep(0.01)
    again = await Listener.of(server)
    assert "200" in again.head
    ring.keep("config", "", "to all")
    for listener in (*listeners[1:], again):
        await listener.until("to all")
        await listener.close()


async def test_where_connections_are_short_who_listens_gives_way(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.share = http.STREAMS_SHARE
    listeners = [await Listener.of(server) for _ in range(http.STREAMS_SHARE)]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /plain HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(WITHIN_S):
        assert b"here" in await reader.read()
        while await listeners[0].chunk():
            pass  # the oldest has its answer ended as a complete one
    writer.close()
    await writer.wait_closed()
    for listener in listeners:
        await listener.close()


async def test_at_the_end_every_answer_is_complete(server: HttpServer) -> None:
    listeners = [await Listener.of(server) for _ in range(3)]
    for listener in listeners:
        await listener.chunk()
    await server.close()
    for listener in listeners:
        assert await listener.chunk() == ""
        assert await listener.reader.read() == b""
        await listener.close()


async def test_who_takes_nothing_is_let_go(server: HttpServer, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "TAKES_WITHIN_S", 0.05)
    monkeypatch.setattr(stream, "AT_MOST_EVERY_S", 0.0)
    listener = await Listener.of(server)
    listener.writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def flood() -> None:
        while any(each.streams for each in server._open):
            ring.keep("config", "", "x" * 300)
            await asyncio.sleep(0)

    async with asyncio.timeout(WITHIN_S):
        await flood()
    await listener.close()


async def test_who_asks_for_the_head_has_the_head(server: HttpServer) -> None:
    listener = await Listener.of(server, method="HEAD")
    assert "200 OK" in listener.head
    assert not any(each.streams for each in server._open)
    await listener.close()
