"""The HTTP server: real sockets on loopback, raw bytes in and out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flannelpy.core.errors import FlannelpyError
from flannelpy.explain import http
from flannelpy.explain.health_pages import health_pages
from flannelpy.explain.http import HttpServer, Page, Pages, Query, serve


class Readiness:
    now = False
    silent_s = 0.0
    why_not = ("waiting for etcd", "no uplink\x1b[2J")
    wrong: tuple[str, ...] = ()


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
async def server(readiness: Readiness) -> AsyncIterator[HttpServer]:
    def broken() -> Page:
        raise RuntimeError("no page today")

    async def echo(query: Query) -> Page:
        await asyncio.sleep(0)
        return 200, http.TEXT, repr(dict(query))

    async def slow(_query: Query) -> Page:
        await asyncio.sleep(0.002)
        return 200, http.TEXT, "at last"

    async def never(_query: Query) -> Page:
        await asyncio.Event().wait()
        raise AssertionError

    pages: Pages = {
        **health_pages(lambda: readiness.now, lambda: readiness.why_not, lambda: readiness.wrong, lambda: readiness.silent_s),
        "/echo": echo,
        "/slow": slow,
        "/silent": never,
        "/broken": broken,
        "/umlaut": lambda: (200, "text/plain; charset=utf-8", "ä"),
    }
    running = await serve("127.0.0.1", 0, pages)
    yield running
    await running.close()


async def say(server: HttpServer, *parts: bytes) -> str:
    """Everything that comes back until the server closes."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            return (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()


async def test_health_is_200_while_it_runs(server: HttpServer) -> None:
    answer = await say(server, get("/healthz"))
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert answer.endswith("\r\n\r\nflannelpy is running\n")


async def test_readiness_follows_the_agent_both_ways(server: HttpServer, readiness: Readiness) -> None:
    assert (await say(server, get("/readyz"))).startswith("HTTP/1.1 503 ")
    readiness.now = True
    assert (await say(server, get("/readyz?verbose"))).startswith("HTTP/1.1 200 ")
    readiness.now = False
    assert (await say(server, get("/readyz"))).endswith("\r\n\r\nflannelpy is not ready yet\nwaiting for etcd\nno uplink\\x1b[2J\n")


async def test_what_is_wrong_stands_below_ready(server: HttpServer, readiness: Readiness) -> None:
    readiness.now, readiness.wrong = True, ("error: another host publishes our address",)
    answer = await say(server, get("/readyz"))
    assert answer.startswith("HTTP/1.1 200 ")
    assert answer.endswith("\r\n\r\nflannelpy is ready\nerror: another host publishes our address\n")


async def test_health_is_503_where_the_reconciler_stands_still(server: HttpServer, readiness: Readiness) -> None:
    readiness.silent_s = 29.9
    assert (await say(server, get("/healthz"))).startswith("HTTP/1.1 200 ")
    readiness.silent_s = 41.3
    answer = await say(server, get("/healthz"))
    assert answer.startswith("HTTP/1.1 503 ")
    assert answer.endswith("\r\n\r\nthe reconciler has not turned for 41 s\n")


@pytest.mark.parametrize(
    ("target", "query"),
    [("/echo", {}), ("/echo?a=1&b=x%20y", {"a": "1", "b": "x y"}), ("/echo?a=1&a=2", {"a": "2"}), ("/echo?&&=&%ff", {})],
)
async def test_a_page_that_takes_a_query_is_asked_with_it(server: HttpServer, target: str, query: dict[str, str]) -> None:
    assert (await say(server, get(target))).endswith(f"\r\n\r\n{query!r}")


async def test_a_page_that_never_ends_is_given_up(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAGE_S", 0.01)
    assert (await say(server, get("/silent"))).startswith("HTTP/1.1 500 ")


async def test_an_unknown_path_is_told_what_there_is(server: HttpServer) -> None:
    answer = await say(server, get("/"))
    assert answer.startswith("HTTP/1.1 404 Not Found\r\n")
    assert "/healthz, /readyz" in answer


async def test_other_methods_are_refused(server: HttpServer) -> None:
    answer = await say(server, get("/healthz", "POST"))
    assert answer.startswith("HTTP/1.1 405 ")
    assert "Allow: GET, HEAD\r\n" in answer


async def test_head_has_the_length_and_no_body(server: HttpServer) -> None:
    answer = await say(server, get("/umlaut", "HEAD"))
    assert "Content-Length: 2\r\n" in answer
    assert answer.endswith("\r\n\r\n")


async def test_a_page_that_fails_is_500_and_the_server_lives(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    assert (await say(server, get("/broken"))).startswith("HTTP/1.1 500 ")
    assert "page /broken failed" in caplog.text
    assert (await say(server, get("/healthz"))).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00\x01\n\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_what_is_not_http_is_400(server: HttpServer, noise: bytes) -> None:
    assert (await say(server, noise)).startswith("HTTP/1.1 4")


async def test_a_head_that_does_not_end_is_refused(server: HttpServer) -> None:
    answer = await say(server, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * (http.HEAD_BYTES + 1))
    assert answer.startswith("HTTP/1.1 431 ")


async def test_a_connection_is_kept_for_the_next_request_and_for_pipelined_ones(server: HttpServer) -> None:
    first = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
    assert (await say(server, first, first + get("/readyz"))).count("HTTP/1.1 ") == 3


async def test_http_1_0_gets_its_answer_and_the_end(server: HttpServer) -> None:
    assert "flannelpy is running" in await say(server, b"GET /healthz HTTP/1.0\r\n\r\n")


async def test_a_body_is_passed_over(server: HttpServer) -> None:
    posted = b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    answer = await say(server, posted + get("/healthz"))
    assert [line.split()[1] for line in answer.splitlines() if line.startswith("HTTP/")] == ["405", "200"]


async def test_a_slow_request_is_given_up(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.05)
    assert await say(server, b"GET /healthz HT") == ""


async def test_a_client_that_goes_away_early_is_no_news(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /hea")
    writer.close()
    await writer.wait_closed()
    assert (await say(server, get("/healthz"))).startswith("HTTP/1.1 200 ")
    assert caplog.text == ""


@pytest.mark.parametrize("requests", [1, 2, 50, 2_000])
@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_is_gone_when_its_answer_is_made_is_no_news(
    server: HttpServer, caplog: pytest.LogCaptureFixture, requests: int, turns: int, reads: bool
) -> None:
    """The transport is closed by then, or closes meanwhile."""
    for _ in range(10):
        client = await connect(server, says=b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n" * requests)
        if reads:
            await asyncio.get_running_loop().sock_recv(client, 1)  # the rest of the answer is there and not read
        for _ in range(turns):
            await asyncio.sleep(0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close(2) sends a reset then
        client.close()
    assert (await say(server, get("/slow"))).startswith("HTTP/1.1 200 ")
    assert (await say(server, get("/healthz"))).startswith("HTTP/1.1 200 ")
    assert caplog.text == ""


async def connect(server: HttpServer, source: str = "127.0.0.1", says: bytes = b"") -> socket.socket:
    """A connection from an address of this host that says this, and nothing more."""
    made = socket.socket()
    made.setblocking(False)
    made.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", server.port))
    made.send(says)
    return made


async def ask_from(server: HttpServer, source: str) -> str:
    """What /healthz answers to somebody at an address of this host."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(source, 0))
        try:
            writer.write(get("/healthz"))
            return (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("noise", [b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"])
async def test_a_thousand_slow_connections_leave_everybody_served(server: HttpServer, noise: bytes) -> None:
    """Of one address; the others are answered, and so is whoever asks from the same. Not two shares are ever open."""
    with contextlib.ExitStack() as slow:
        for number in range(1_000):
            slow.enter_context(await connect(server, "127.0.0.2", noise))
            if number % 50 == 49:
                for source in ("127.0.0.1", "127.0.0.2", f"127.0.1.{number // 50 + 1}"):
                    assert (await ask_from(server, source)).startswith("HTTP/1.1 200 ")
                assert len(server.tasks) <= 2 * http.SHARE


async def test_many_addresses_leave_everybody_served(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS", 40)
    with contextlib.ExitStack() as slow:
        for number in range(300):
            slow.enter_context(await connect(server, f"127.0.2.{number % 60 + 1}"))
        for number in range(20):
            assert (await ask_from(server, f"127.0.3.{number + 1}")).startswith("HTTP/1.1 200 ")
        assert len(server.tasks) <= 42


async def test_those_who_take_no_answer_leave_everybody_served(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS", 8)
    big = "x" * 2_000_000
    server.pages = {**server.pages, "/big": lambda: (200, http.TEXT, big)}
    with contextlib.ExitStack() as rude:
        for number in range(24):
            rude.enter_context(await connect(server, f"127.0.4.{number + 1}", b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n" * 3))
            assert (await ask_from(server, f"127.0.5.{number + 1}")).startswith("HTTP/1.1 200 ")


async def test_where_all_have_asked_one_more_is_told_so(server: HttpServer) -> None:
    server.share = 3
    with contextlib.ExitStack() as asking:
        for _ in range(3):
            asking.enter_context(await connect(server, says=b"GET /silent HTTP/1.1\r\nHost: h\r\n\r\n"))
        async with asyncio.timeout(10):
            while sum(not each.waits for each in server._open) < 3:  # noqa: ASYNC110 - the server's own doing
                await asyncio.sleep(0)
        fourth = asking.enter_context(await connect(server))  # what it asks does not matter, and would only race the answer
        async with asyncio.timeout(10):
            assert (await asyncio.get_running_loop().sock_recv(fourth, 1000)).startswith(b"HTTP/1.1 503 ")
        assert (await ask_from(server, "127.0.0.2")).startswith("HTTP/1.1 200 ")


async def test_connections_leave_descriptors_for_the_agents_own_work(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((64, 16), (3, 1), (1 << 20, http.CONNECTIONS), (resource.RLIM_INFINITY, http.CONNECTIONS)):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, soft=soft: (soft, soft))
        assert http.most_connections() == most


async def test_no_descriptor_for_a_connection_is_waited_out(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, fails = asyncio.get_running_loop(), 3
    accept = loop.sock_accept

    async def full(listener: socket.socket) -> tuple[socket.socket, Any]:
        nonlocal fails
        if fails:
            fails -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", full)
    monkeypatch.setattr(http, "FULL_S", 0.001)
    await ask_from(server, "127.0.0.1")  # the accept that was under way
    assert (await ask_from(server, "127.0.0.1")).startswith("HTTP/1.1 200 ")
    assert fails == 0


@pytest.mark.parametrize(
    ("address", "source"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8::1:2:3:4", 5, 0, 0), "2001:db8::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("::1", 5, 0, 0), "::/64"),
        ("", ""),
    ],
)
def test_who_a_connection_is_of(address: object, source: str) -> None:
    assert http._source(address) == source


async def test_close_ends_what_is_open(server: HttpServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert await reader.readline()
    async with asyncio.timeout(5):
        await server.close()
        await server.close()
        await reader.read()
    writer.close()
    assert server.tasks == set()


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("::", {"127.0.0.1", "127.0.0.2", "::1"}),
        ("::1", {"::1"}),
        ("0.0.0.0", {"127.0.0.1", "127.0.0.2"}),
        ("127.0.0.2", {"127.0.0.2"}),
    ],
)
async def test_every_address_of_ipv6_is_every_address_as_with_flannel(host: str, answered: set[str]) -> None:
    running = await serve(host, 0, health_pages(lambda: True))
    try:
        for address in ("127.0.0.1", "127.0.0.2", "::1"):
            try:
                _, writer = await asyncio.open_connection(address, running.port)
            except OSError:
                assert address not in answered
                continue
            writer.close()
            await writer.wait_closed()
            assert address in answered
    finally:
        await running.close()


async def test_a_port_that_is_taken_is_one_clear_line(server: HttpServer) -> None:
    with pytest.raises(FlannelpyError) as caught:
        await serve("127.0.0.1", server.port, {})
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{server.port}: another program listens there; expected a free port"
