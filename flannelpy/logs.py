"""Where do log lines go, and what do they look like? To stderr: text for people, JSON for collectors, or with systemd's priorities.

A line that is repeated without another in between is written once; when another comes, the number of repetitions follows. What
others wrote cannot move a terminal's cursor, forge a line, or make one without end; nor can whatever they do fill a disk: of one
kind of line so many are written in a minute, and then their number.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from flannelpy.core.foreign import LINE, cut, printable
from flannelpy.core.line_rate import LineRate

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""sd-daemon(3): what systemd reads at the head of a line, as ``<4>``."""

MOST = 600
"""Lines of one kind in a minute: what is written at one place of the code. Conditions and peers are held to fewer before."""

TRACEBACK = 100
"""Lines of a traceback that are written; the last ones say what happened."""


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send every log line of ``level`` and above to ``stream`` (stderr), in the form ``text``, ``json`` or ``journal``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter({"json": Json, "journal": Journal}.get(form, Text)())
    handler.addFilter(Once(handler))
    handler.addFilter(Rate(handler))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    wanted = logging.getLogger().level
    for chatty in ("asyncio", "pyroute2", "grpc", "httpcore2"):  # their debug lines are about themselves
        logging.getLogger(chatty).setLevel(max(logging.INFO, wanted))
    # It tells each request that is made of an API server as news.
    logging.getLogger("httpx2").setLevel(logging.INFO if wanted <= logging.DEBUG else max(logging.WARNING, wanted))


class Text(logging.Formatter):
    """``2026-03-01 12:00:00.123 warning: text``; the journal writes the time itself, so there it is left out."""

    def __init__(self) -> None:
        super().__init__()
        self._timed = "JOURNAL_STREAM" not in os.environ

    def format(self, record: logging.LogRecord) -> str:
        when = f"{_when(record):%Y-%m-%d %H:%M:%S}.{record.msecs:03.0f} " if self._timed else ""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return "\n".join([f"{when}{level}{message(record)}", *_traceback(self, record)])


class Journal(logging.Formatter):
    """``<4>text``: systemd turns the head into the line's priority; every line of a traceback gets one."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(head + line for line in (message(record), *_traceback(self, record)))


class Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _when(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message(record),
        }
        if traceback := _traceback(self, record):
            fields["traceback"] = "\n".join(traceback)
        return json.dumps(fields, ensure_ascii=False, default=str)


class Once:
    """A filter that holds back a line equal to the one before, and tells how many there were when another comes."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self._last: tuple[str, int, str] | None = None
        self._held = 0

    def __call__(self, record: logging.LogRecord) -> bool:
        line = (record.name, record.levelno, record.getMessage())
        if line == self._last and not record.exc_info:
            self._held += 1
            return False
        if self._held and self._last is not None:
            name, level, text = self._last
            told = f"{text} (and {self._held} more times)"
            self._handler.emit(logging.LogRecord(name, level, record.pathname, record.lineno, told, None, None))
        self._last, self._held = line, 0
        return True


class Rate:
    """A filter that holds back more than MOST lines of a kind in a minute, and tells how many when that is over and another line
    comes. Debug lines are asked for, and pass.
    """

    def __init__(self, handler: logging.Handler, clock: Callable[[], float] = time.monotonic) -> None:
        self._handler = handler
        self._clock = clock
        self._rate = LineRate[tuple[str, int]](most=MOST)
        self._held: dict[tuple[str, int], tuple[str, int, str]] = {}

    def __call__(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        kind, now = (record.pathname, record.lineno), self._clock()
        for over, count in self._rate.take_held(now).items():
            name, level, text = self._held.pop(over)
            self._handler.emit(logging.LogRecord(name, level, *over, f"{count:,} more lines like: {text}", None, None))
        if self._rate.allows(kind, now):
            return True
        if kind not in self._held:
            self._held[kind] = record.name, record.levelno, cut(message(record))
        return False


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC).astimezone()


def message(record: logging.LogRecord) -> str:
    """The record's text, harmless and of at most a line: what others wrote may be in it.

    Each text that is put into a longer one is a field, and cut as one; a text that is all of the line may be as long as that.
    """
    if isinstance(record.args, tuple) and record.msg != "%s":
        fields = tuple(cut(field) if isinstance(field, str) else field for field in record.args)
        try:
            return printable(str(record.msg) % fields, LINE)
        except (TypeError, ValueError):
            pass  # getMessage raises the same, and logging says where
    return printable(record.getMessage(), LINE)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """The last lines of a traceback, set in, so that none can be taken for a line of the log."""
    if not record.exc_info:
        return []
    lines = formatter.formatException(record.exc_info).split("\n")
    return [f"  {printable(line)}" for line in lines[-TRACEBACK:]]
