"""How does text that others wrote get to a person? With nothing in it that a terminal obeys, and no longer than a person reads.

Keys and values of the registry, names of interfaces, words of other programs: whoever writes them shall not move the cursor, forge
a line of the log, or fill a disk.
"""

from __future__ import annotations

FIELD = 300
"""Letters of one piece of foreign text that are shown."""
LINE = 2000
"""Letters of a whole line."""


def visible(text: str) -> str:
    r"""The text with ``\n``, ``\x1b``, ``\u202e`` in place of what does not print: controls, overrides of direction, surrogates."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def cut(text: str, most: int = FIELD) -> str:
    """At most ``most`` letters; where some are missing, the end says how many there were."""
    if len(text) <= most:
        return text
    end = f"... ({len(text):,} letters)"
    return text[: most - len(end)] + end if most > len(end) else text[:most]


def printable(text: str, most: int = FIELD) -> str:
    """Visible, and at most ``most`` letters. Cut before it is escaped, too, so that a megabyte costs no more than a line."""
    return cut(visible(cut(text, most)), most)


def document(text: str) -> str:
    """Visible line by line and whole: for what is a text of several lines, like a network config."""
    return "\n".join(visible(line.replace("\t", "    ")) for line in text.split("\n"))
