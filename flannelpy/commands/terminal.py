"""How does a command speak to a person, and listen? Foreign text is made visible where a terminal would obey it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import LINE, document, printable

if TYPE_CHECKING:
    from rich.console import RenderableType


def say(line: str) -> None:
    """One line on stdout."""
    click.echo(printable(line, LINE))


def warn(warnings: Iterable[str]) -> None:
    """Each as a line on stderr."""
    for warning in warnings:
        click.echo(f"flannelpy: warning: {printable(warning, LINE)}", err=True)


def say_raw(text: str) -> None:
    """A document that others wrote: byte for byte in a pipe, harmless on a terminal."""
    shown = document(text) if sys.stdout.isatty() else text
    click.echo(shown, nl=not shown.endswith("\n"))


def agree(question: str) -> bool:
    """Ask the person at the terminal; a mere return is a no."""
    return click.confirm(question, default=False, err=True)


def agreed(question: str, nobody: str = "nobody is there to be asked") -> bool:
    """The answer; a no is said on stderr. Raises FlannelpyError, which begins with ``nobody``, where there is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise FlannelpyError(f"{nobody}; nothing was changed (--yes does it)")
    if agree(question):
        return True
    click.echo("nothing was changed", err=True)
    return False


def show(*shown: RenderableType, wide: int) -> None:
    """Print tables, as wide as the terminal or COLUMNS is."""
    click.echo(rendered(*shown, wide=wide))


def rendered(*shown: RenderableType, wide: int) -> str:
    """Tables as text; where there is neither terminal nor COLUMNS, ``wide`` columns, and no blanks at the ends."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal or "COLUMNS" in os.environ else wide)
    with console.capture() as captured:
        console.print(*shown, sep="\n")
    lines = captured.get().splitlines()
    return "\n".join(lines if terminal else [line.rstrip() for line in lines])


def width(wide: int) -> int:
    """How many columns there are: the terminal's, or COLUMNS; ``wide`` where there is neither."""
    return shutil.get_terminal_size((wide, 24)).columns if sys.stdout.isatty() or "COLUMNS" in os.environ else wide


def has_colours() -> bool:
    """Whether a terminal is there that takes them, and nobody has said no (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in ("", "dumb")


def named(file: str) -> str:
    """What to call the file in a message."""
    return "standard input" if file == "-" else file


def read(file: str) -> str:
    """The text of a file or, for ``-``, of standard input. Raises FlannelpyError with one line."""
    if file == "-" and sys.stdin is None:
        raise FlannelpyError("standard input: it is closed; expected JSON text")
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise FlannelpyError(f"{named(file)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FlannelpyError(f"{named(file)}: byte {error.start} is not UTF-8; expected JSON text") from None
