"""Log lines: for people, for collectors, for systemd; and a repeated line once."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy import logs

log = logging.getLogger("flannelpy.test")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level


def test_text_has_the_time_and_names_only_levels_that_matter(stream: io.StringIO) -> None:
    logs.set_up("info", "text", stream)
    log.debug("not seen")
    log.info("lease %s", "10.5.72.0/24")
    log.warning("etcd is away")
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} lease 10\.5\.72\.0/24", first)
    assert second.endswith(" warning: etcd is away")


def test_text_leaves_the_time_to_the_journal(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    logs.set_up("info", "text", stream)
    log.info("hello")
    assert stream.getvalue() == "hello\n"


def test_journal_lines_begin_with_their_priority(stream: io.StringIO) -> None:
    logs.set_up("debug", "journal", stream)
    log.debug("a")
    log.info("b")
    log.warning("c")
    try:
        raise ValueError("d")
    except ValueError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[:4] == ["<7>a", "<6>b", "<4>c", "<3>failed"]
    assert all(line.startswith("<3>") for line in lines[3:])


def test_json_is_one_object_a_line(stream: io.StringIO) -> None:
    logs.set_up("info", "json", stream)
    log.error("two\nlines")
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("error", "flannelpy.test", "two\\nlines")


def test_a_repeated_line_is_written_once_and_counted(stream: io.StringIO) -> None:
    logs.set_up("info", "journal", stream)
    for _ in range(4):
        log.info("same")
    log.info("other")
    log.info("same")
    assert stream.getvalue().splitlines() == ["<6>same", "<6>same (and 3 more times)", "<6>other", "<6>same"]


@given(st.text(max_size=400) | st.text(alphabet="\x00\x1b\x07\r\n\x9b\u202e\u2066ab", max_size=4_000))
@pytest.mark.parametrize("form", [logs.Text, logs.Journal])
def test_no_text_of_anybody_makes_a_line_or_moves_a_cursor(form: type[logging.Formatter], text: str) -> None:
    said = form().format(logging.LogRecord("x", logging.ERROR, "x.py", 1, "%s", (text,), None))
    assert said.isprintable()
    assert len(said) < logs.LONGEST + 100
