"""What does the lab's picture show of who reaches whom? A line for each pair, with the colour of its worse direction."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from netns_lab.reach import draw

SVG = "{http://www.w3.org/2000/svg}"


def document(number: int, others: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What host ``number`` says of these."""
    peers = [
        {"subnet": f"10.1.{other}.0/24", "BackendType": "vxlan", "state": "in-sync", "probe": {"state": "reachable", "rttMs": 0.5}}
        | said
        for other, said in others.items()
    ]
    lease = {"subnet": f"10.1.{number}.0/24", "PublicIP": f"192.168.50.{10 + number}"}
    return {"ready": True, "lease": lease, "backend": {"type": "vxlan", "mtu": 1450}, "peers": peers}


def lab(count: int) -> dict[str, dict[str, Any]]:
    numbers = range(1, count + 1)
    return {f"h{one}": document(one, {other: {} for other in numbers if other != one}) for one in numbers}


def picture(documents: dict[str, dict[str, Any]]) -> ET.Element:
    return ET.fromstring(draw("t", documents))


def lines(drawn: ET.Element) -> dict[str, str]:
    """Each pair's words, and its class."""
    return {line[0].text or "": line.get("class", "") for line in drawn.iter(f"{SVG}line")}


@pytest.mark.parametrize("count", [1, 2, 3, 12, 50])
def test_every_pair_is_a_line_and_every_host_is_inside_the_page(count: int) -> None:
    drawn = picture(lab(count))
    assert len(lines(drawn)) == count * (count - 1) // 2
    assert set(lines(drawn).values()) <= {"l good"}
    width, height = float(drawn.get("width", "")), float(drawn.get("height", ""))
    spots = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in drawn.iter(f"{SVG}circle") if each.get("r") == "19"]
    assert len(spots) == count
    assert all(19 <= x <= width - 19 and 19 <= y <= height - 19 for x, y in spots)
    assert all((x - a) ** 2 + (y - b) ** 2 > 38**2 for at, (x, y) in enumerate(spots) for a, b in spots[:at])


@pytest.mark.parametrize(
    ("said", "mood", "words"),
    [
        ({"probe": {"state": "unreachable", "rttMs": None}}, "bad", "unreachable"),
        ({"probe": {"state": "silent", "rttMs": None}}, "odd", "silent"),
        ({"probe": None}, "unasked", "not asked"),
        ({"state": "refused"}, "bad", "refused"),
        ({"state": "stale"}, "odd", "stale"),
        ({"subnet": "10.1.77.0/24"}, "odd", "not known"),
    ],
)
def test_the_worse_direction_counts(said: dict[str, Any], mood: str, words: str) -> None:
    documents = {"h1": document(1, {2: said}), "h2": document(2, {1: {}})}
    assert lines(picture(documents)) == {f"h1 to h2: {words}; back: 0.5 ms": f"l {mood}"}


def test_a_host_without_an_agent_and_one_that_is_not_ready() -> None:
    documents = lab(3) | {"h2": {}}
    documents["h3"]["ready"] = False
    drawn = picture(documents)
    moods = lines(drawn)
    assert {words: mood for words, mood in moods.items() if "h2" in words} == dict.fromkeys(
        ("h1 to h2: not known; back: no agent answers", "h2 to h3: no agent answers; back: not known"), "l bad"
    )
    assert sum(each.get("class") == "f bad" and each.get("r") == "19" for each in drawn.iter(f"{SVG}circle")) == 2


def test_only_what_goes_as_it_is_is_not_dashed() -> None:
    direct = {"h1": document(1, {2: {"carrier": "host-gw"}}), "h2": document(2, {1: {"BackendType": "host-gw"}})}
    half = {"h1": document(1, {2: {"carrier": "host-gw"}}), "h2": document(2, {1: {}})}
    assert ["stroke-dasharray" in line.attrib for each in (direct, half) for line in picture(each).iter(f"{SVG}line")] == [
        False,
        True,
    ]


def test_foreign_words_break_nothing() -> None:
    documents = lab(2)
    documents["h1"]["lease"]["PublicIP"] = "<&>"
    assert re.search("&lt;&amp;&gt;, vxlan", draw("<t>", documents))
    ET.fromstring(draw("<t>", documents))
