"""Log lines: for people, for collectors, for systemd; and a repeated line once."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy import logs
from flannelpy.core.foreign import FIELD, LINE

from .test_foreign import ANY_TEXT, obeyed

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


@pytest.mark.parametrize(("level", "told"), [("debug", True), ("info", False), ("error", False)])
def test_requests_of_an_api_server_are_for_those_who_debug(stream: io.StringIO, level: str, told: bool) -> None:
    logs.set_up(level, "text", stream)
    logging.getLogger("httpx2").info("HTTP Request: GET https://10.0.0.1/api/v1/nodes")
    assert ("HTTP Request" in stream.getvalue()) is told


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


# ------------------------------------------------------------------------------------------------------------ foreign text


FORMATTERS = (logs.Text, logs.Journal, logs.Json)


def line_of(formatter: type[logging.Formatter], text: str, *fields: object) -> str:
    return formatter().format(logging.LogRecord("flannelpy", logging.WARNING, "", 0, text, fields, None))


@given(st.sampled_from(FORMATTERS), ANY_TEXT, ANY_TEXT, st.integers(1, 30))
def test_whatever_others_wrote_is_one_harmless_line(formatter: type[logging.Formatter], one: str, other: str, times: int) -> None:
    for line in (line_of(formatter, "%s", one * times), line_of(formatter, "peer %s: %s", one * times, other * times)):
        assert obeyed(line) == []
        assert len(line) <= 2 * LINE + 200  # JSON writes a backslash twice


def test_a_newline_forges_no_line() -> None:
    forged = "vxlan\n2026-01-01 00:00:00.000 error: FORGED"
    assert line_of(logs.Journal, "peer 10.5.9.0/24: its backend is %s, ours is %s", forged, "vxlan") == (
        "<4>peer 10.5.9.0/24: its backend is vxlan\\n2026-01-01 00:00:00.000 error: FORGED, ours is vxlan"
    )


def test_a_long_field_leaves_room_for_the_others() -> None:
    told = line_of(logs.Journal, "%s: %s", "k" * 1_000_000, "what is wrong")
    assert told.endswith("... (1,000,000 letters): what is wrong")
    assert len(told) < FIELD + 30


def test_a_line_that_is_one_text_may_be_as_long_as_a_line() -> None:
    assert line_of(logs.Journal, "%s", "k" * 1000) == "<4>" + "k" * 1000
    assert line_of(logs.Journal, "%s", "k" * 1_000_000).endswith("... (1,000,000 letters)")


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_a_traceback_is_set_in_and_harmless(formatter: type[logging.Formatter]) -> None:
    try:
        raise ValueError("a\n2026-01-01 00:00:00.000 error: FORGED\x1b[2J")
    except ValueError:
        record = logging.LogRecord("flannelpy", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    told = formatter().format(record)
    assert "\\x1b[2J" in told
    assert obeyed(told.replace("\n", "")) == []
    assert not any(line.startswith("2026-01-01") for line in told.splitlines())


def test_one_kind_of_line_fills_no_disk_and_none_is_lost_without_a_count(stream: io.StringIO) -> None:
    logs.set_up("info", "text", stream)
    (handler,) = logging.getLogger().handlers
    handler.removeFilter(handler.filters[-1])
    now = 0.0
    handler.addFilter(logs.Rate(handler, lambda: now))
    for number in range(200_000):
        now = number / 1000  # 200 s
        log.warning("the config is another one: %s", f"{number} \x1b" + "x" * 1_000)
        if number % 20_000 == 0:
            log.info("something else %d", number)
    now += 60
    log.info("at last")
    lines = [line[24:] for line in stream.getvalue().splitlines()]
    assert len(stream.getvalue()) < 1_000_000
    single = [line for line in lines if line.startswith("warning: the config")]
    counted = [int(line.split()[1].replace(",", "")) for line in lines if "more lines like: the config is another one: " in line]
    assert len(single) == 4 * logs.MOST
    assert len(single) + sum(counted) == 200_000
    assert sum(line.startswith("something else") for line in lines) == 10
    assert lines[-1] == "at last"
    assert not obeyed("".join(lines))


def test_debug_lines_are_asked_for(stream: io.StringIO) -> None:
    logs.set_up("debug", "text", stream)
    for number in range(logs.MOST + 100):
        log.debug("round %d", number)
    assert len(stream.getvalue().splitlines()) == logs.MOST + 100
