"""Is the page alive in a real browser? Headless Chromium, an agent's ring of events and the HTTP server; nothing else is asked."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from flannelpy.agent import overview as serving
from flannelpy.agent.events import Ring
from flannelpy.explain import page
from flannelpy.explain.events import JOINED
from flannelpy.explain.http import HttpServer, Query, serve
from flannelpy.explain.status import Status
from netns_lab import browser
from netns_lab.browser import Browser

from .test_graph import cluster, peer
from .test_page import BAD, silent

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is one")]

FIRST_ROW = "document.querySelector('#events tr:nth-child(2)')?.innerText ?? ''"


class Shown:
    """An agent as far as the page sees it."""

    def __init__(self) -> None:
        self.ring = Ring(time.time)
        self.status: Status = cluster(peer(1), silent(2, BAD))
        self.asked: list[str] = []

    async def serve(self, port: int = 0, *, streams: bool = True) -> HttpServer:
        overview = serving.overview(lambda: self.status, self.ring, time.monotonic)
        live = serving.live(self.ring)

        async def whole(query: Query) -> tuple[int, str, str]:
            self.asked.append("page")
            return await overview(query)

        async def events(query: Query) -> object:
            self.asked.append("events")
            return await live(query) if streams else (503, "text/plain", "no")

        return await serve("127.0.0.1", port, {page.PAGE: whole, page.EVENTS: events})  # type: ignore[dict-item]


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with browser.browser() as running:
        yield running


async def test_events_are_there_as_they_happen_and_all_else_soon_after(chromium: Browser) -> None:
    shown = Shown()
    shown.ring.keep("config", "", "before")
    server = await shown.serve()
    try:
        await chromium.open(f"http://127.0.0.1:{server.port}/", 1100, 800)
        await chromium.until("document.querySelector('#how').textContent.startsWith('Events come as they happen')")
        assert "before" in await chromium.evaluate(FIRST_ROW)
        pages = shown.asked.count("page")
        shown.status = cluster(peer(1), silent(2), peer(3))
        shown.ring.keep(JOINED, "10.5.3.0-24", f"peer 10.5.3.0/24 joined {BAD}", "h3")
        await chromium.until(f"{FIRST_ROW}.includes('10.5.3.0/24 joined')")
        assert "[h3]" in await chromium.evaluate(FIRST_ROW)
        await chromium.until("document.querySelector('main').innerHTML.includes('3 peers')")
        assert shown.asked.count("page") > pages
        assert await chromium.evaluate("document.querySelectorAll('#events tr').length") == 3  # once each, and the heads
        assert await chromium.evaluate("[...document.scripts].length") == 1  # what others wrote is text
    finally:
        await server.close()


async def test_an_agent_that_restarts_is_found_again(chromium: Browser) -> None:
    shown = Shown()
    server = await shown.serve()
    port = server.port
    await chromium.open(f"http://127.0.0.1:{port}/", 1100, 800)
    await chromium.until("document.querySelector('#how').textContent.startsWith('Events come')")
    await server.close()
    await chromium.until("document.body.classList.contains('away')")
    assert await chromium.evaluate("getComputedStyle(document.querySelector('#away')).display") == "block"
    shown.ring = Ring(time.time)  # another life
    shown.ring.keep("config", "", "anew")
    server = await shown.serve(port)
    try:
        await chromium.until("!document.body.classList.contains('away')")
        await chromium.until(f"{FIRST_ROW}.includes('anew')")
        await chromium.until("document.querySelector('#how').textContent.startsWith('Events come')")
    finally:
        await server.close()


async def test_where_events_do_not_stream_the_page_is_fetched_anew(chromium: Browser) -> None:
    shown = Shown()
    server = await shown.serve(streams=False)
    try:
        await chromium.open(f"http://127.0.0.1:{server.port}/", 1100, 800)
        await chromium.until("document.querySelector('#how').textContent === 'All'")
        shown.ring.keep("config", "", "later")
        await chromium.until(f"{FIRST_ROW}.includes('later')")
        assert shown.asked.count("events") == 1  # an answer other than 200 ends it
    finally:
        await server.close()


async def test_peers_are_found_while_a_word_is_typed_and_it_stays_there(chromium: Browser) -> None:
    shown = Shown()
    shown.status = cluster(*(peer(number, name=f"node-{number}") for number in range(100)), silent(200, BAD))
    server = await shown.serve()
    typed = "(() => {const w = document.querySelector('#word'); w.value = WORD; w.dispatchEvent(new Event('input'))})()"
    said = "document.querySelector('main').innerText"
    try:
        await chromium.open(f"http://127.0.0.1:{server.port}/", 1100, 800)
        for word, count in (("10.5.7.99", 1), ("node-1", 11), ("nobody", 0)):
            await chromium.evaluate(typed.replace("WORD", repr(word)))
            await chromium.until(f"{said}.includes('Peers with {word}: {count} of 101')")
            assert await chromium.evaluate("document.querySelector('#word').value") == word
        pages = shown.asked.count("page")
        shown.ring.keep("config", "", "later")
        await chromium.until(f"{FIRST_ROW}.includes('later')")
        while shown.asked.count("page") == pages:
            await chromium.evaluate("0")
        assert await chromium.evaluate(f"{said}.includes('Peers with nobody')"), "what is fetched anew is still about the word"
        await chromium.evaluate("location.reload()")
        await chromium.until(f"{said}.includes('Peers with nobody: 0 of 101')")
        await chromium.evaluate(typed.replace("WORD", "''"))
        await chromium.until(f"!{said}.includes('Peers with')")
        assert await chromium.evaluate("location.search") == ""
    finally:
        await server.close()


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (390, False)])
async def test_nothing_is_wider_than_the_window(chromium: Browser, width: int, dark: bool) -> None:
    shown = Shown()
    shown.status = cluster(*(peer(number) for number in range(40)), silent(50, "no answer " * 40))
    shown.ring.keep("config", "", "a" * 300)
    server = await shown.serve()
    try:
        await chromium.open(f"http://127.0.0.1:{server.port}/", width, 900, dark=dark)
        assert await chromium.evaluate("document.documentElement.scrollWidth") <= width
        background = await chromium.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        picture = await chromium.screenshot()
        assert picture.startswith(b"\x89PNG")
    finally:
        await server.close()
