"""What does a pattern mean to whom it was written for? Go's dialect (RE2), as far as names and addresses need it, in Python's."""

from __future__ import annotations

import re

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r"\t ",
    "digit": "0-9",
    "lower": "a-z",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "word": r"\w",
    "xdigit": "0-9A-Fa-f",
}


def compile_re2(pattern: str) -> re.Pattern[str]:
    """A pattern in Go's dialect (RE2), as far as names and addresses need it. Raises ValueError with what cannot be read."""
    text = re.sub(r"\[:(\^?)(\w+):\]", _posix_class, pattern)
    text = text.replace(r"\z", r"\Z")
    text = re.sub(r"\\p(?:\{(\w+)\}|(\w))", _unicode_class, text)
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{error}; expected a pattern of RE2, as flannel takes it") from None


def _posix_class(match: re.Match[str]) -> str:
    if match[1] or match[2] not in _POSIX:
        raise ValueError(f"{match[0]}: expected a POSIX class like [:digit:]")
    return _POSIX[match[2]]


def _unicode_class(match: re.Match[str]) -> str:
    """Letters and digits; names of interfaces have no other classes that anybody would ask for."""
    known = {"L": r"[^\W\d_]", "N": r"\d", "Lu": "[A-Z]", "Ll": "[a-z]", "Nd": r"\d"}
    name = match[1] or match[2]
    if name not in known:
        raise ValueError(f"{match[0]}: expected one of {', '.join(known)}")
    return known[name]
