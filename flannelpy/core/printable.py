"""How is somebody else's text shown? So that no letter of it moves a cursor, makes a line, or turns the direction of reading."""

from __future__ import annotations


def printable(text: str, most: int | None = None) -> str:
    """The text with everything that is not plainly visible escaped, cut to ``most`` letters."""
    shown = text if text.isprintable() else "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 3]}..."
