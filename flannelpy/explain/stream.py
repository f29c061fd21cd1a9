"""How does a browser hear of events as they happen? By server-sent events (HTML standard 9.2): an answer that does not end.

What is sent has a number, with which a browser that was cut off asks for what it has missed (Last-Event-ID). A comment goes out
while nothing happens, so that who is gone is noticed, and who is there sees that we are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from flannelpy.explain.events import Events

if TYPE_CHECKING:
    import h11

CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEARTBEAT_S = 15.0
AT_MOST_EVERY_S = 0.2
"""What happens meanwhile goes in one piece."""
MOST_EVENTS = 50
"""Of what was missed; the page has no room for more."""
TAKES_WITHIN_S = 10.0
"""Who does not take what is sent for so long has the connection closed."""
RECONNECT_MS = 3000

LAST = "Last-Event-ID"
"""The header, which http puts beside the query."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose ``parts`` go out as they come."""

    content_type: str
    parts: AsyncGenerator[str, None]


class Source(Protocol):
    """What has happened: ``agent.events.Ring``."""

    life: str
    last: int

    def read(self, *, after: int = 0) -> Events:
        """Those above this number."""
        ...

    async def wait(self, after: int, seconds: float) -> None:
        """Return when there is something above this number; at the latest after so long."""
        ...


def events(source: Source, query: Mapping[str, str]) -> Stream:
    """The events as they happen, and before them what was missed since ``Last-Event-ID``, or ``after``, where one is given."""
    return Stream(CONTENT_TYPE, _parts(source, query.get(LAST) or query.get("after")))


def mark(life: str, number: int) -> str:
    """The id of an event: of which agent's life, and which."""
    return f"{life}:{number}"


async def _parts(source: Source, since: str | None) -> AsyncGenerator[str, None]:
    known = source.last
    if since is not None:
        life, _, number = since.partition(":")
        known = int(number) if life == source.life and number.isascii() and number.isdigit() and len(number) < 16 else 0
    yield f"retry: {RECONNECT_MS}\n\n"
    while True:
        if source.last <= known:
            await source.wait(known, HEARTBEAT_S)
        found = source.read(after=known)
        known = found.last
        told = [
            f"id: {mark(found.life, event.number)}\ndata: {json.dumps(asdict(event), separators=(',', ':'))}\n\n"
            for event in found.events[-MOST_EVENTS:]
        ]
        yield "".join(told) or ": nothing new\n\n"
        if told:
            await asyncio.sleep(AT_MOST_EVERY_S)


async def pour(connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream) -> None:
    """Send the parts until there are no more, or the other side is gone. Raises as the writer does, and TimeoutError.

    Cancelled, it ends the answer as one that is complete, so that the other side is not left with half a one.
    """
    import h11

    gone = asyncio.ensure_future(_until_gone(reader))
    part: asyncio.Future[str] | None = None
    try:
        while True:
            part = asyncio.ensure_future(anext(stream.parts))
            await asyncio.wait({part, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return
            try:
                data = part.result()
            except StopAsyncIteration:
                break
            if writer.is_closing():
                raise ConnectionResetError
            writer.write(connection.send(h11.Data(data=data.encode())) or b"")
            async with asyncio.timeout(TAKES_WITHIN_S):
                await writer.drain()
    finally:
        for task in (gone, part):
            if task is not None:
                task.cancel()
        await asyncio.gather(gone, *(() if part is None else (part,)), return_exceptions=True)
        await stream.parts.aclose()
        if not gone.done() or gone.cancelled():
            with suppress(h11.LocalProtocolError):
                end = connection.send(h11.EndOfMessage())
                if end and not writer.is_closing():
                    writer.write(end)


async def _until_gone(reader: asyncio.StreamReader) -> None:
    """Nothing is expected of who listens: what comes is passed over, up to its end."""
    while await reader.read(4096):
        pass
