"""How do load balancers, orchestrators and ``flannelpy status`` ask? A small HTTP/1.1 server for pages that are made on request.

GET and HEAD only; h11 parses. A request must arrive whole within ``REQUEST_S`` and its head within ``HEAD_BYTES``; an idle
connection is closed after ``IDLE_S``, and one that does not take its answer is cut after ``REQUEST_S``. At most ``CONNECTIONS``
at a time: one more is told 503, and where twice as many are open, it is cut.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import LINE, printable

if TYPE_CHECKING:
    import h11

log = logging.getLogger(__name__)

Page = tuple[int, str, str]
"""Status, content type, body."""
Query = Mapping[str, str]
"""What stands behind the question mark, by name; the last of a name counts."""
Made = Callable[[], Page] | Callable[[Query], Awaitable[Page]]
Pages = Mapping[str, Made]
"""Path -> what makes the page: at once, without a query; or, where it takes one, in its own time (at most PAGE_S)."""

HEAD_BYTES = 16 * 1024
BODY_BYTES = 64 * 1024
REQUEST_S = 10.0
IDLE_S = 75.0
PAGE_S = 60.0
CONNECTIONS = 64
TEXT = "text/plain; charset=utf-8"
REASONS = 50
"""Lines of reasons on a page."""
STANDS_STILL_S = 30.0
"""An agent whose reconciler has not turned for so long does not live."""


def _nothing() -> Sequence[str]:
    return ()


def _just_now() -> float:
    return 0.0


def health_pages(
    ready: Callable[[], bool],
    why_not: Callable[[], Sequence[str]] = _nothing,
    wrong: Callable[[], Sequence[str]] = _nothing,
    silent_s: Callable[[], float] = _just_now,
) -> dict[str, Callable[[], Page]]:
    """``/healthz`` is 200 while we run; ``/readyz`` is 200 while ``ready()``, else 503 (flannel-compat 11.1).

    The body gives the reasons, one a line: ``why_not`` where it is not ready, ``wrong`` where it is all the same. ``silent_s``: how
    long the reconciler has not turned; beyond STANDS_STILL_S ``/healthz`` is 503, too.
    """

    def healthz() -> Page:
        silent = silent_s()
        if silent > STANDS_STILL_S:
            return 503, TEXT, f"the reconciler has not turned for {silent:.0f} s\n"
        return 200, TEXT, "flannelpy is running\n"

    def readyz() -> Page:
        if ready():
            return 200, TEXT, _lines("flannelpy is ready", wrong())
        return 503, TEXT, _lines("flannelpy is not ready yet", why_not())

    return {"/healthz": healthz, "/readyz": readyz}


def _lines(first: str, more: Sequence[str]) -> str:
    return "".join(f"{printable(line, LINE)}\n" for line in (first, *more[:REASONS]))


async def serve(host: str, port: int, pages: Pages) -> HttpServer:
    """Listen and answer until closed. ``port`` 0 takes a free one. Raises FlannelpyError with one line where it cannot listen."""
    server = HttpServer(pages)
    try:
        server.listener = await asyncio.start_server(server.connected, host, port)
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there; expected a free port",
            errno.EADDRNOTAVAIL: "this host has no such address",
            errno.EACCES: "not allowed; ports below 1024 need CAP_NET_BIND_SERVICE",
        }.get(error.errno or 0, error.strerror or str(error))
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise FlannelpyError(f"cannot listen on {where}: {why}") from None
    return server


@contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    """A Unix socket at ``path``, for the time of the block, that only its owner and root may connect to.

    One that is there is taken for a dead process's: whoever calls holds the lock on the directory. Raises OSError.
    """
    if path.is_socket():
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # Linux gives the file the socket's mode: unlike with a chmod after bind, it is never there with another.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def serve_on(listener: socket.socket, pages: Pages) -> HttpServer:
    """Answer on a Unix socket until closed."""
    server = HttpServer(pages)
    server.listener = await asyncio.start_unix_server(server.connected, sock=listener)
    return server


@dataclass(slots=True, eq=False)
class HttpServer:
    """A listening server. It owns the tasks of its connections."""

    pages: Pages
    listener: asyncio.Server | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self.listener is not None
        return int(self.listener.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop what is open. May be called twice."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.close()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if listener is not None:
            await listener.wait_closed()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start a connection's task; called by asyncio."""
        if len(self.tasks) >= 2 * CONNECTIONS:
            writer.transport.abort()
            return
        crowded = len(self.tasks) >= CONNECTIONS
        task = asyncio.get_running_loop().create_task(
            _converse(reader, writer, {} if crowded else self.pages, crowded), name="http"
        )
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


# ---------------------------------------------------------------------------------------------------------- one connection


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Pages, crowded: bool) -> None:
    import h11

    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    try:
        wait_s = REQUEST_S
        while True:
            async with asyncio.timeout(wait_s):
                request = await _request(connection, reader)
            if request is None:
                return
            page = (503, TEXT, "too many connections\n") if crowded else await _page(request, pages)
            await _answer(connection, writer, page, close=crowded, with_body=request.method != b"HEAD")
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
            wait_s = IDLE_S
    except h11.RemoteProtocolError as error:
        if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            status = error.error_status_hint or 400
            with suppress(TimeoutError, ConnectionError, h11.LocalProtocolError):  # to a HEAD no body can be sent
                await _answer(connection, writer, (status, TEXT, f"{HTTPStatus(status).phrase}\n"), close=True)
    except (TimeoutError, ConnectionError, h11.LocalProtocolError):
        pass  # too slow, gone, or half a request: nobody is there to be told
    except asyncio.CancelledError:
        writer.transport.abort()  # we stop, and wait for nobody
        raise
    except Exception:  # the task's edge: one bad page or connection must not end the others
        log.exception("a HTTP connection failed")
    finally:
        await _hang_up(writer)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close; what the other side does not take in time is thrown away, or it would stay in memory for as long as it likes."""
    writer.close()
    try:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(REQUEST_S):
                await writer.wait_closed()
    finally:
        writer.transport.abort()


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The next whole request, its body passed over; None when the other side has ended or sent too much."""
    import h11

    request: h11.Request | None = None
    body = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += len(event.data)
            if body > BODY_BYTES:
                return None
        elif isinstance(event, h11.EndOfMessage):
            return request
        else:  # ConnectionClosed, PAUSED
            return None


async def _page(request: h11.Request, pages: Pages) -> Page:
    path, _, query = request.target.decode("latin-1").partition("?")
    if request.method not in (b"GET", b"HEAD"):
        return 405, TEXT, "expected GET\n"
    make = pages.get(path)
    if make is None:
        return 404, TEXT, f"not here; there is {', '.join(sorted(pages))}\n"
    try:
        made = make(dict(parse_qsl(query))) if iscoroutinefunction(make) else make()  # type: ignore[call-arg]
        if isinstance(made, tuple):
            return made
        async with asyncio.timeout(PAGE_S):
            return await made
    except Exception:  # a page's edge: the reason belongs in the log, not on the wire
        log.exception("page %s failed", path)
        return 500, TEXT, "the page could not be made; the log says why\n"


async def _answer(
    connection: h11.Connection, writer: asyncio.StreamWriter, page: Page, *, close: bool, with_body: bool = True
) -> None:
    import h11

    status, content_type, text = page
    body = text.encode()
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    if status == 405:
        headers.append(("Allow", "GET, HEAD"))
    if close:
        headers.append(("Connection", "close"))
    sent = [
        connection.send(h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())),
        connection.send(h11.Data(data=body if with_body else b"")),
        connection.send(h11.EndOfMessage()),
    ]
    writer.write(b"".join(part for part in sent if part))
    async with asyncio.timeout(REQUEST_S):
        await writer.drain()
