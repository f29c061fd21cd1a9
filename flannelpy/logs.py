"""Where do log lines go, and what do they look like? To stderr: text for people, JSON for collectors, or with systemd's priorities.

A line that is repeated without another in between is written once; when another comes, the number of repetitions is told.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

from flannelpy.core.printable import printable

LONGEST = 2_000
"""Letters of a line; what peers and keys say in it is shorter where it is honest."""

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""sd-daemon(3): what systemd reads at the head of a line, as ``<4>``."""


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send every log line of ``level`` and above to ``stream`` (stderr), in the form ``text``, ``json`` or ``journal``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter({"json": Json, "journal": Journal}.get(form, Text)())
    handler.addFilter(Once(handler))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("asyncio", "pyroute2", "grpc"):  # their debug lines are about themselves
        logging.getLogger(chatty).setLevel(max(logging.INFO, logging.getLogger().level))


class Text(logging.Formatter):
    """``2026-03-01 12:00:00.123 warning: text``; the journal writes the time itself, so there it is left out."""

    def __init__(self) -> None:
        super().__init__()
        self._timed = "JOURNAL_STREAM" not in os.environ

    def format(self, record: logging.LogRecord) -> str:
        when = f"{_when(record):%Y-%m-%d %H:%M:%S}.{record.msecs:03.0f} " if self._timed else ""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{when}{level}{_message(self, record)}"


class Journal(logging.Formatter):
    """``<4>text``: systemd turns the head into the line's priority; every line of a traceback gets one."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(head + line for line in _message(self, record).splitlines())


class Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _when(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage(), LONGEST),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
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


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC).astimezone()


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = printable(record.getMessage(), LONGEST)
    return f"{text}\n{formatter.formatException(record.exc_info)}" if record.exc_info else text
