"""Are the pictures of the documents whole, and do they need nothing from elsewhere?"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from netns_lab.screenshots import COLUMNS, at_terminal, svg

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
DRAWN = sorted(PICTURES.glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def test_terminal_output_becomes_a_picture_with_its_colours() -> None:
    said = at_terminal(["sh", "-c", r"printf 'a \033[31mred\033[0m word\n'; stty size <&1"], {})
    assert said == f"a \x1b[31mred\x1b[0m word\n200 {COLUMNS}\n"
    drawn = svg("flannelpy status", said)
    texts = ["".join(each.itertext()).strip("\xa0") for each in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert "red" in texts
    assert "$\xa0flannelpy\xa0status" in texts
    assert "#ff6b6b" in drawn
    assert "@font-face" not in drawn


def test_there_are_pictures() -> None:
    names = {path.name for path in PICTURES.iterdir()}
    assert {"status.svg", "doctor.svg", "trace.svg", "trace-live.svg", "lab.svg", "page-light.png", "page-dark.png"} <= names


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_a_picture_asks_for_nothing(path: Path) -> None:
    text = path.read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert not {each.tag for each in root.iter()} & {f"{SVG}script", f"{SVG}image", f"{SVG}use", f"{SVG}foreignObject"}
    assert not re.search(r"url\(\s*['\"]?http|@import|@font-face|href=", text)
