"""What does the picture of a status show, and does it fit? SVG text in, boxes out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from flannelpy.explain.graph import CARD, HIGH, MOST, draw
from flannelpy.explain.status import ConditionStatus, PeerStatus, ProbeStatus, Status

from .test_doctor import STATUS

SVG = "{http://www.w3.org/2000/svg}"


def peer(number: int, state: str = "reachable", **words: object) -> PeerStatus:
    probe = ProbeStatus(state, "", None, 0.4 if state == "reachable" else None, 0.0, 1450, True, None)
    made = PeerStatus(f"k{number:03}", f"10.5.{number}.0/24", None, f"192.0.2.{number}", None, "vxlan", "in-sync", probe=probe)
    return replace(made, **words)  # type: ignore[arg-type]


def cluster(*peers: PeerStatus, **words: object) -> Status:
    made = replace(STATUS, network={"Network": "10.5.0.0/16"}, peers=peers)
    return replace(made, **words)  # type: ignore[arg-type]


def texts(picture: ET.Element) -> list[str]:
    return [each.text or "" for each in picture.iter(f"{SVG}text")]


def cards(picture: ET.Element) -> Iterator[tuple[float, float]]:
    for each in picture.iter(f"{SVG}rect"):
        if each.get("width") == str(CARD) and each.get("height") == str(HIGH):
            yield float(each.get("x", "")), float(each.get("y", ""))


@pytest.mark.parametrize("count", [0, 1, 3, 12, 50, MOST, 1000])
def test_every_peer_has_a_card_of_its_own_inside_the_page(count: int) -> None:
    picture = ET.fromstring(draw(cluster(*(peer(number) for number in range(count)))))
    found = sorted(cards(picture))
    assert len(found) == min(count, MOST)
    width, height = float(picture.get("width", "")), float(picture.get("height", ""))
    assert all(0 <= x <= width - CARD and 0 <= y <= height - HIGH for x, y in found)
    for (x, y), (other, below) in pairwise(found):
        assert x != other or y + HIGH <= below
    assert len(list(picture.iter(f"{SVG}path"))) == min(count, MOST) + 2  # and two in the legend
    assert any(f"{count - MOST:,} more" in text for text in texts(picture)) == (count > MOST)


def test_the_worst_are_above_and_never_left_out() -> None:
    many = [*(peer(number) for number in range(MOST)), peer(99, "unreachable"), peer(98, "silent")]
    picture = ET.fromstring(draw(cluster(*many)))
    said = texts(picture)
    assert {"10.5.99.0/24", "10.5.98.0/24"} <= set(said)
    top = min(y for _x, y in cards(picture))
    first = [each.text for each in picture.iter(f"{SVG}text") if float(each.get("y", "0")) < top + HIGH]
    assert {"10.5.99.0/24", "10.5.98.0/24", "unreachable", "silent"} <= set(first)


def test_what_is_known_of_a_peer_is_on_its_card() -> None:
    direct = peer(2, carrier="host-gw", reason="on one link")
    lost = peer(3, probe=ProbeStatus("reachable", "", None, 12.34, 0.25, 1400, False, None))
    picture = ET.fromstring(draw(cluster(peer(1), direct, lost, peer(4, state="reachable", probe=None))))
    said = texts(picture)
    assert {"0.4 ms", "12.3 ms, 25% lost", "vxlan, 1450 bytes", "host-gw, 1450 bytes", "in-sync"} <= set(said)
    dashed = [each.get("stroke-dasharray") for each in picture.iter(f"{SVG}path")]
    assert dashed.count(None) == 2  # the direct one, and its legend
    refused = peer(5, state="reachable")
    picture = ET.fromstring(draw(cluster(replace(refused, state="refused", why="EEXIST"))))
    assert "refused" in texts(picture)
    assert any("EEXIST" in (each.text or "") for each in picture.iter(f"{SVG}title"))


def test_conditions_stand_below_and_foreign_text_breaks_nothing() -> None:
    condition = ConditionStatus("x", "error", "", "<b>&\x1b[31m is wrong", "", "now", True)
    status = cluster(peer(1, public_ip="<&>"), conditions=(condition,), ready=False, network=None, lease=None, backend=None)
    picture = draw(status)
    said = texts(ET.fromstring(picture))
    assert any("<b>&" in text for text in said)
    assert {"not ready", "no lease yet", "no uplink"} <= set(said)
    assert "\x1b" not in picture
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")  # nothing outside is needed
