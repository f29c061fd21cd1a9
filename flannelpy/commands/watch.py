"""How is something looked at again and again? Drawn anew on the terminal, until q or ctrl-C ends it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import click

EVERY_S = 2.0
"""Between two drawings."""

_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_OTHER_SCREEN, _BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def watch(draw: Callable[[], str], every_s: float = EVERY_S) -> int:
    """Show what ``draw`` returns each ``every_s`` seconds. Returns 0, the exit code of who ends it."""
    terminal = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt), _screen(terminal), _keys() as key:
        while True:
            text = draw()
            click.echo(_fitted(text) if terminal else f"{text}\n", nl=False)
            sys.stdout.flush()
            if key(every_s) in ("q", "Q", "\x03"):
                break
    return 0


def _fitted(text: str) -> str:
    """The text over what was there before, as far as the terminal is high; what is left out is counted."""
    high = max(2, shutil.get_terminal_size().lines)
    lines = text.splitlines()
    if len(lines) > high - 1:
        lines = [*lines[: high - 2], f"... {len(lines) - high + 2:,} lines more; q ends it"]
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW


@contextlib.contextmanager
def _screen(terminal: bool) -> Iterator[None]:
    """A screen of our own, so that what was there is there again afterwards."""
    if not terminal:
        yield
        return
    click.echo(_OTHER_SCREEN, nl=False)
    try:
        yield
    finally:
        click.echo(_BACK, nl=False)


def _wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What waits for a key for so many seconds; empty where none came. Where nobody sits at the input, it only waits."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield _wait
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)

    def key(seconds: float) -> str:
        if not select.select([fd], [], [], seconds)[0]:
            return ""
        return os.read(fd, 1).decode(errors="replace") or "q"  # an input that has ended says nothing more

    try:
        yield key
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
