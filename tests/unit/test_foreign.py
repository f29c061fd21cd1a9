"""Text that others wrote: nothing of it is obeyed by a terminal, and none of it is endless."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.core.foreign import FIELD, cut, document, printable, visible

ANY_TEXT = st.text(st.characters(), max_size=600) | st.text("\x1b\x9b\x07\n\r\u202e\u2066\ud800\ufeff[2J]0;", max_size=600)


def obeyed(text: str) -> list[str]:
    """What a terminal or a reader of lines would act upon."""
    return [letter for letter in text if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.5.9.0-24", "10.5.9.0-24"),
        ("Zürich, 東京", "Zürich, 東京"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x9b\x7f", "\\x1b[2J\\x9b\\x7f"),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
        ("\ud800\U000e0041", "\\ud800\\U000e0041"),
    ],
)
def test_what_does_not_print_is_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(ANY_TEXT)
def test_whatever_it_is_it_is_harmless_and_bounded(text: str) -> None:
    shown = printable(text)
    assert obeyed(shown) == []
    assert len(shown) <= FIELD


@given(ANY_TEXT)
def test_a_document_keeps_its_lines_and_nothing_else(text: str) -> None:
    shown = document(text)
    assert shown.count("\n") == text.count("\n")
    assert obeyed(shown.replace("\n", "")) == []


def test_what_is_missing_is_counted() -> None:
    assert cut("a" * 300) == "a" * 300
    assert cut("a" * 1_000_000) == "a" * 277 + "... (1,000,000 letters)"
    assert cut("abcdef", 3) == "abc"
