"""Does docs/troubleshooting.md show every fault of the gallery as its table has it, and the words that name the cause?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netns_lab import faults
from netns_lab.causes import CAUSES, Cause
from netns_lab.gallery_page import PAGE, Captured, captured_in, section, with_section

KNOWN = re.compile(r"\b(DEV|PORT|BRIDGE|OWNADDR|OWNNET|PEERNET|PEERPART|PEERIP|PEER|HOST|OWNIP)\b")
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_the_page_is_made_from_the_table() -> None:
    text = PAGE.read_text()
    assert with_section(text, section(captured_in(text))) == text, "run: make gallery-page"


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_what_was_said_names_the_cause(cause: Cause) -> None:
    said = " ".join(" ".join(captured_in(PAGE.read_text())[cause.name].lines).split())
    for words in cause.words:
        parts = KNOWN.split(words)[::2]
        assert re.search(r"\S+".join(map(re.escape, parts)), said), (words, said)


def test_what_was_captured_is_read_back() -> None:
    made = {CAUSES[0].name: Captured("h1", "flannelpy status", ("ready  yes", "", "conditions  error"))}
    text = with_section("before\n<!-- made: gallery -->\nold\n<!-- end -->\nafter\n", section(made))
    assert captured_in(text) == made
    assert text.startswith("before\n<!-- made: gallery -->\n\n### ")
    assert text.endswith("<!-- end -->\nafter\n")


def test_the_tutorial_speaks_of_faults_that_there_are() -> None:
    named = re.findall(r"netns-lab/lab fault ([a-z][a-z-]+)", TUTORIAL.read_text())
    assert len(named) == 5
    assert set(named) <= faults.every().keys()
