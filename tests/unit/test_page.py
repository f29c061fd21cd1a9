"""What does a browser see? HTML in, what is in it out; nothing from outside, and nothing that obeys."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from flannelpy.agent import overview as serving
from flannelpy.agent.events import Ring
from flannelpy.explain.events import Event, Events
from flannelpy.explain.page import AGAIN_S, MOST_PEERS, page
from flannelpy.explain.status import ConditionStatus, PeerStatus, ProbeStatus

from .test_graph import cluster, peer

BAD = '<script>alert(1)</script>\x1b[31m"&'


class Seen(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def silent(number: int, why: str = "no answer") -> PeerStatus:
    return peer(number, probe=ProbeStatus("unreachable", why, None, None, 1.0, 1450, False, None))


def test_all_that_is_known_is_on_it() -> None:
    condition = ConditionStatus("x", "error", "", "something is wrong", "mend it", "2026-01-01T10:20:30.5+00:00", True)
    events = [Event(number, f"2026-01-01T10:20:{number:02}+00:00", "config", "", f"event {number}") for number in range(60)]
    status = cluster(peer(1), silent(2, "the port is filtered"), conditions=(condition,), ready=False, why_not=("it waits",))
    seen = Seen(page(status, Events("life", 59, 0, tuple(events))))
    assert seen.open == []
    for said in (
        "not ready",
        "it waits",
        "something is wrong",
        "mend it",
        "2026-01-01 10:20:30",
        "unreachable: the port is filtered",
    ):
        assert said in seen.text
    assert seen.text.index("event 59") < seen.text.index("event 10")
    assert "event 9 " not in seen.text.replace("\n", " ")
    assert [attrs["content"] for tag, attrs in seen.tags if tag == "meta" and attrs.get("http-equiv") == "refresh"] == [
        str(AGAIN_S)
    ]
    assert [attrs["data-last"] for tag, attrs in seen.tags if tag == "main"] == ["life:59"]
    assert sum(tag == "svg" for tag, _attrs in seen.tags) == 1


def test_where_all_is_well_it_says_so() -> None:
    text = Seen(page(cluster(peer(1)))).text
    assert "flannelpy 1: ready" in text
    assert {"nothing", "none", "nothing yet"} <= {line.strip() for line in text.splitlines()}


def test_foreign_words_are_words_and_nothing_comes_from_outside() -> None:
    condition = ConditionStatus(BAD, BAD, BAD, BAD, BAD, BAD, False)
    status = cluster(silent(1, BAD), replace(silent(2), subnet=BAD, public_ip=BAD), conditions=(condition,), why_not=(BAD,))
    text = page(status, Events(BAD, 1, 0, (Event(1, BAD, BAD, BAD, BAD, BAD),)))
    seen = Seen(text)
    assert "\x1b" not in text
    assert not [tag for tag, _attrs in seen.tags if tag in ("img", "link", "iframe", "a", "form", "object", "use")]
    assert not [name for _tag, attrs in seen.tags for name in attrs if name.startswith("on") or name in ("href", "src")]
    policy = next(attrs["content"] or "" for tag, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    allowed = b64encode(sha256(scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; connect-src 'self'"
    assert "<script>alert(1)</script>" in seen.text


@pytest.mark.parametrize("count", [1000, 10_000])
def test_a_large_cluster_makes_no_large_page(count: int) -> None:
    text = page(cluster(*(silent(number % 250) for number in range(count))))
    assert f"and {count - MOST_PEERS:,} more" in text
    assert len(text) < 150_000


async def test_many_who_look_cost_as_much_as_one() -> None:
    now, made = 0.0, 0

    def make() -> object:
        nonlocal made
        made += 1
        return cluster(peer(made))

    answer = serving.overview(make, Ring(lambda: 0.0), lambda: now)  # type: ignore[arg-type]
    pages = [await answer({}) for _ in range(5)]
    assert (made, {status for status, _kind, _text in pages}) == (1, {200})
    now = serving.KEPT_S
    assert "10.5.2.0/24" in (await answer({}))[2]
    assert made == 2
