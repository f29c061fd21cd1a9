"""How do load balancers, orchestrators and ``flannelpy status`` ask? A small HTTP/1.1 server for pages that are made on request.

GET and HEAD only; h11 parses. A connection on which no whole request arrives for ``REQUEST_S`` is closed, and so is one that does
not take its answer; a head has at most ``HEAD_BYTES``. At most ``CONNECTIONS`` at a time, ``SHARE`` of one source: where one more
comes, the oldest goes that waits for the other side, of this source or of the one that has most. Whoever asks is answered, however
many there are who only connect, or take no answer. Where a page is being made for all of them, one more is told 503.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import FlannelpyError
from flannelpy.explain.stream import LAST, Stream, pour

if TYPE_CHECKING:
    import h11

log = logging.getLogger(__name__)

Page = tuple[int, str, str]
"""Status, content type, body."""
Query = Mapping[str, str]
"""What stands behind the question mark, by name; the last of a name counts."""
Made = Callable[[], Page] | Callable[[Query], Awaitable[Page]] | Callable[[Query], Awaitable[Stream]]
Pages = Mapping[str, Made]
"""Path -> what makes the page: at once, without a query; or, where it takes one, in its own time (at most PAGE_S). Beside the query
there is the header Last-Event-ID, where it was sent.
"""

HEAD_BYTES = 16 * 1024
BODY_BYTES = 64 * 1024
REQUEST_S = 10.0
PAGE_S = 60.0
CONNECTIONS, SHARE = 256, 32
STREAMS, STREAMS_SHARE = 64, 6
"""Answers that do not end, and of them those to one source; as many as browsers that look, not as many as ask."""
BACKLOG = 128
FULL_S = 0.1
"""Before the next connection is taken where there is no descriptor left for it."""
TEXT = "text/plain; charset=utf-8"
_LAST = LAST.lower().encode()


async def serve(host: str, port: int, pages: Pages) -> HttpServer:
    """Listen and answer until closed. ``port`` 0 takes a free one. Raises FlannelpyError with one line where it cannot listen.

    ``::`` is every address of both families, as flannel's (Go's) ``[::]`` is.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there; expected a free port",
            errno.EADDRNOTAVAIL: "this host has no such address",
            errno.EACCES: "not allowed; ports below 1024 need CAP_NET_BIND_SERVICE",
        }.get(error.errno or 0, error.strerror or str(error))
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise FlannelpyError(f"cannot listen on {where}: {why}") from None
    return HttpServer.on(listener, pages, SHARE)


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
    """Answer on a Unix socket until closed; whoever may open it may have all connections."""
    listener.listen(BACKLOG)
    return HttpServer.on(listener, pages, CONNECTIONS)


@dataclass(slots=True, eq=False)
class Connection:
    """One of them. ``source``: who it is of; ``waits``: for the other side, which is to ask or to take its answer; ``streams``: its
    answer does not end, and gives way to whoever asks, for who listens comes again.
    """

    source: str
    waits: bool = True
    streams: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class HttpServer:
    """A listening server. It owns the tasks of its connections."""

    pages: Pages
    listener: socket.socket
    share: int
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _open: dict[Connection, None] = field(default_factory=dict)
    """Those that count, the oldest first."""

    @classmethod
    def on(cls, listener: socket.socket, pages: Pages, share: int) -> HttpServer:
        """One that answers on a socket that listens, which it closes in the end."""
        listener.setblocking(False)
        server = cls(pages, listener, share)
        server._keep(asyncio.get_running_loop().create_task(server._accept(), name="http"))
        return server

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.listener.getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop what is open. May be called twice."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.listener.close()

    async def _accept(self) -> None:
        """Take connections, one at a time: none is open that does not count."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, address = await loop.sock_accept(self.listener)
            except OSError as error:  # accept(2): it is gone already, or there is no descriptor or memory for it
                log.debug("http: no connection can be taken: %s", error.strerror)
                await asyncio.sleep(FULL_S)
                continue
            connection = Connection(_source(address))
            if not self._make_room(connection.source):
                _refuse(taken)
                continue
            self._open[connection] = None
            connection.task = loop.create_task(self._serve(taken, connection), name="http")
            self._keep(connection.task)
            await asyncio.sleep(0)  # a task that is cancelled before it has begun closes nothing

    def _make_room(self, source: str) -> bool:
        """True where one more of this source may be open, if need be in place of one that has not asked anything."""
        most = most_connections()
        sources = Counter(connection.source for connection in self._open)
        if sources[source] >= min(self.share, max(1, most // 2)):
            return self._end_one(source)
        return len(self._open) < most or self._end_one(sources.most_common(1)[0][0]) or self._end_one(None)

    def _end_one(self, source: str | None) -> bool:
        """End the one that waits longest, of this source or of any; False where none waits."""
        for connection in self._open:
            if connection.waits and source in (None, connection.source):
                del self._open[connection]
                if connection.task is not None:
                    connection.task.cancel()
                return True
        return False

    async def _serve(self, taken: socket.socket, connection: Connection) -> None:
        """A connection from its beginning to its end."""
        loop = asyncio.get_running_loop()
        try:
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, taken)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            await _converse(connection, reader, writer, self.pages, self._may_stream)
        except OSError:
            taken.close()
        finally:
            self._open.pop(connection, None)

    def _may_stream(self, connection: Connection) -> bool:
        """True where one more answer that does not end may go to this one's source."""
        sources = [each.source for each in self._open if each.streams]
        connection.streams = len(sources) < STREAMS and sources.count(connection.source) < STREAMS_SHARE
        return connection.streams

    def _keep(self, task: asyncio.Task[None]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def most_connections() -> int:
    """A quarter of the descriptors that this process may have, or what is set: the rest is for the agent's own work."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft // 4))


def _source(address: object) -> str:
    """Who connects: an IPv4 address, or the /64 of an IPv6 one, of which a host has as many as it likes; "" on a Unix socket."""
    if not isinstance(address, tuple):
        return ""
    host = IPAddress(str(address[0]).partition("%")[0])
    if host.is_ipv4_mapped():
        host = host.ipv4()
    return str(host if host.version == 4 else IPNetwork((int(host), 64), version=6).cidr)


def _refuse(taken: socket.socket) -> None:
    """Say so where that does not have to be waited for."""
    with taken, suppress(OSError):
        taken.setblocking(False)
        taken.send(_FULL)


_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 21\r\n"
    b"Connection: close\r\n\r\ntoo many connections\n"
)


# ---------------------------------------------------------------------------------------------------------- one connection


async def _converse(
    counted: Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pages: Pages,
    may_stream: Callable[[Connection], bool],
) -> None:
    import h11

    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    try:
        while True:
            async with asyncio.timeout(REQUEST_S):
                request = await _request(connection, reader)
            if request is None:
                return
            counted.waits = False
            page = await _page(request, pages)
            counted.waits = True
            if isinstance(page, Stream):
                if request.method == b"GET" and may_stream(counted):
                    await _begin(connection, writer, page)
                    await pour(connection, reader, writer, page)
                    return
                await page.parts.aclose()
                page = (200, page.content_type, "") if request.method == b"HEAD" else (503, TEXT, "too many listen\n")
            await _answer(connection, writer, page, close=False, with_body=request.method != b"HEAD")
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
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


async def _page(request: h11.Request, pages: Pages) -> Page | Stream:
    path, _, query = request.target.decode("latin-1").partition("?")
    if request.method not in (b"GET", b"HEAD"):
        return 405, TEXT, "expected GET\n"
    make = pages.get(path)
    if make is None:
        return 404, TEXT, f"not here; there is {', '.join(sorted(pages))}\n"
    try:
        asked = [*parse_qsl(query), *((LAST, value.decode("latin-1")) for name, value in request.headers if name == _LAST)]
        made = make(dict(asked)) if iscoroutinefunction(make) else make()  # type: ignore[call-arg]
        if isinstance(made, tuple):
            return made
        async with asyncio.timeout(PAGE_S):
            return await made
    except Exception:  # a page's edge: the reason belongs in the log, not on the wire
        log.exception("page %s failed", path)
        return 500, TEXT, "the page could not be made; the log says why\n"


async def _begin(connection: h11.Connection, writer: asyncio.StreamWriter, stream: Stream) -> None:
    import h11

    headers = [("Date", formatdate(usegmt=True)), ("Content-Type", stream.content_type), ("Cache-Control", "no-store")]
    head = connection.send(h11.Response(status_code=200, headers=headers, reason=b"OK"))
    if writer.is_closing():
        raise ConnectionResetError
    writer.write(head or b"")


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
    if writer.is_closing():  # gone while the page was made: uvloop's transport raises RuntimeError for what comes after its end
        raise ConnectionResetError
    writer.write(b"".join(part for part in sent if part))
    async with asyncio.timeout(REQUEST_S):
        await writer.drain()
