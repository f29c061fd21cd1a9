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
        if tag not in ("meta", "input"):
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


def test_what_is_wrong_comes_first_and_the_picture_after_it() -> None:
    condition = ConditionStatus("x", "error", "", "something is wrong", "mend it", "2026-01-01T10:20:30.5+00:00", True)
    text = page(cluster(peer(1), silent(2, "no answer at all"), conditions=(condition,)))
    places = [text.index(each) for each in ("something is wrong", "no answer at all", "<svg", "What has happened")]
    assert places == sorted(places)


WORDS = {
    "h7": ["10.5.7.0/24"],
    "H7": ["10.5.7.0/24"],
    "10.5.9.0/24": ["10.5.9.0/24"],
    "10.5.9.77": ["10.5.9.0/24"],
    "192.0.2.7": ["10.5.7.0/24"],
    "unreachable": ["10.5.9.0/24"],
    "filtered": ["10.5.9.0/24"],
    "vxlan": ["10.5.9.0/24", "10.5.7.0/24", "10.5.8.0/24"],
    "10.6.0.1": [],
    BAD: [],
    "  ": None,
}


@pytest.mark.parametrize("word", WORDS)
def test_peers_are_found_by_a_word(word: str) -> None:
    status = cluster(peer(7, name="h7"), peer(8), silent(9, "the port is filtered"))
    seen = Seen(page(status, word=word))
    assert seen.open == []
    assert [attrs["value"] for tag, attrs in seen.tags if attrs.get("id") == "word"] == [word.strip().replace("\x1b", "\\x1b")]
    expected = WORDS[word]
    if expected is None:
        assert "Peers with" not in seen.text
        return
    table = seen.text.partition("Peers with")[2].partition("What is wrong")[0]
    assert f": {len(expected)} of 3" in table
    assert re.findall(r"10\.5\.\d\.0/24", table.partition(" of 3")[2]) == expected
    assert ("reachable: 0.4 ms" in table) is any(each != "10.5.9.0/24" for each in expected)


def test_of_a_thousand_peers_the_unreachable_come_before_the_odd_and_the_page_is_small() -> None:
    peers = [peer(number % 250) for number in range(900)] + [peer(3, "silent")] * 99 + [silent(200, "dead")]
    text = page(cluster(*peers), word="10.5.")
    assert "Peers with 10.5.: 1,000 of 1,000" in text
    assert text.index("unreachable: dead") < text.index("silent")
    assert len(text) < 150_000


async def test_pages_with_words_are_kept_for_a_while_and_not_many() -> None:
    made = 0

    def make() -> object:
        nonlocal made
        made += 1
        return cluster(peer(1), peer(2))

    answer = serving.overview(make, Ring(lambda: 0.0), lambda: 0.0)  # type: ignore[arg-type]
    for number in range(100):
        _status, _kind, text = await answer({"word": f"10.5.{number}."})
        assert (f"Peers with 10.5.{number}.: 1 of 2" in text) is (number in (1, 2))
    assert made == 1
    assert "Peers with" not in (await answer({}))[2]


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
