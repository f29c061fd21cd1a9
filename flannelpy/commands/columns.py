"""How do rows read whose last cell is long? Beside the others where there is room, else below them; an address is never folded.

A table of rich's takes three seconds for a thousand rows; here a row is a few strings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from click import style

ROOM, LEAST = 36, 24
"""Columns that the last cell needs beside the others, and that others are cut for."""
WORD, INDENT = 9, 4
"""Columns in which a word of it can stand, and by how many its lines below are moved in."""


@dataclass(frozen=True, slots=True)
class Row:
    """``cells``: the last may be long, and has the colour."""

    cells: Sequence[str]
    colour: str = ""


def widest(heads: Sequence[str], rows: Sequence[Row]) -> list[int]:
    """What each column takes, but the last."""
    return [max(map(len, (heads[at], *(row.cells[at] for row in rows)))) for at in range(len(heads) - 1)]


def used(widths: Sequence[int]) -> int:
    """Columns before the last one."""
    return sum(widths) + 2 * len(widths)


def lay_out(heads: Sequence[str], rows: Sequence[Row], widths: Sequence[int], width: int, *, colours: bool) -> list[str]:
    """Heads and rows; only what must not be cut makes a line longer than ``width``."""
    head = _line(heads, widths).rstrip()
    lines = [style(head, bold=True) if colours else head]
    for row in rows:
        lines += _row(row, widths, width, row.colour if colours else "")
    return lines


def _row(row: Row, widths: Sequence[int], width: int, colour: str) -> Iterator[str]:
    """A row's lines: its last cell beside the rest, or where there is little room for it, in short there and whole below."""
    before, text = used(widths), row.cells[-1]
    room, more, indent = width - before, list[str](), before
    if len(text) > room:
        if room >= ROOM:
            text, *more = _wrapped(text, room)
        else:
            text, rest = _begin(text, room)
            more, indent = _wrapped(rest, max(LEAST, width - INDENT)), INDENT
    first = _line([*row.cells[:-1], ""], widths)
    yield (first + (style(text, fg=colour) if colour else text)) if text else first.rstrip()
    for line in more:
        yield " " * indent + (style(line, fg=colour) if colour else line)


def _begin(text: str, room: int) -> tuple[str, str]:
    """What stands beside the rest, and what is left: its first statement where that fits, else as many words as do."""
    ends = [end for mark in (": ", "; ") if 0 < (end := text.find(mark) + 1) <= room]
    if ends:
        end = min(ends)
        return text[:end], text[end:].lstrip()
    if room < WORD:
        return "", text
    words = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False)[0]
    return (words, text[len(words) :].lstrip()) if len(words) <= room else ("", text)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{fitted(cell, wide):<{wide}}  " for cell, wide in zip(cells, widths, strict=False)) + cells[-1]


def fitted(cell: str, wide: int) -> str:
    """The cell, cut to its column."""
    return cell if len(cell) <= wide else f"{cell[: wide - 3]}..."
