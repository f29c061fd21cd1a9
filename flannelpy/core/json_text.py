"""What does a JSON text say, whoever wrote it? Read as Go's decoder reads it, so that nothing read can trip us later.

Python's own is laxer in some ways (NaN, UTF-16, numbers beyond a float) and keeps what cannot be written again (half of a
surrogate pair). RFC 8259; flannel's daemons use encoding/json.
"""

from __future__ import annotations

import json
import math
from sys import intern
from typing import Any

DEEPEST = 64
"""Levels of nesting that anybody needs; more could exhaust the stack of whoever walks the value."""


SHARED_NAME = 32
"""Letters of a member's name that is held once for all texts; it is let go with the last of them."""


def decode(text: str | bytes) -> Any:
    """The value. Raises ValueError, with a message of one line, on whatever is not JSON or is nested too deeply."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    try:
        value = _READER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(_in_words(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        if "integer string" in str(error):  # says Python of more than sys.get_int_max_str_digits(), and how to raise that
            raise ValueError("a number of too many digits") from None
        raise
    if text.count("[") + text.count("{") > DEEPEST and _is_deeper(value, DEEPEST):
        raise ValueError("nested too deeply")
    if "\\u" in text or not text.isascii():
        value = _mend(value)
    return value


_WORDS = {
    "Expecting property name enclosed in double quotes": "expected a name in double quotes",
    "Expecting value": "expected a value",
    "Expecting ':' delimiter": "expected a colon",
    "Expecting ',' delimiter": "expected a comma, or the end of the list or object",
    "Extra data": "expected the end of the text",
    "Unterminated string starting at": "the string that begins here has no end",
    "Invalid control character at": "a line break or another control character inside a string",
    "Invalid \\escape": "a backslash that begins no escape",
    "Invalid \\uXXXX escape": "expected four hexadecimal digits after \\u",
}
"""What Python's reader says, by the beginning, in the words of somebody who has written the text."""

_HINTS = {
    "\\": "a backslash before a quote? In a shell, put single quotes around the whole",
    "'": "names and strings stand in double quotes",
    "\u201c": "these are typographic quotes",
    "\u201d": "these are typographic quotes",
    "/": "JSON has no comments",
    "#": "JSON has no comments",
    "\ufeff": "a byte order mark; save the file without one",
    "T": "true is written in small letters",
    "F": "false is written in small letters",
    "N": "null is written in small letters",
    "}": "a comma too many before it?",
    "]": "a comma too many before it?",
}
"""By the letter at which reading stopped."""


def _in_words(error: json.JSONDecodeError) -> str:
    """``line 1, column 27: expected a name in double quotes (a comma too many before it?)``."""
    text = error.doc
    if not text.strip():
        return "it is empty"
    told = next((words for begin, words in _WORDS.items() if error.msg.startswith(begin)), "something else was expected")
    letter = text[error.pos : error.pos + 1]
    hint = _HINTS.get(letter, "") if told.startswith("expected") else ""
    if letter in "}]" and not text[: error.pos].rstrip().endswith(","):
        hint = ""
    if not letter:
        hint = "the text ends here"
    return f"line {error.lineno}, column {error.colno}: {told}{f' ({hint})' if hint else ''}"


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a name that comes twice stands where it came last, so that the last of several spellings can be told.

    Ten thousand leases have the same names: short ones are one text for all, as an attribute's name is.
    """
    members = {intern(name) if len(name) <= SHARED_NAME else name: value for name, value in pairs}
    if len(members) < len(pairs):
        members.clear()
        for name, value in pairs:
            members.pop(name, None)
            members[name] = value
    return members


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number {text[:20]} is too large")
    return number


_READER = json.JSONDecoder(parse_constant=_refuse, parse_float=_number, object_pairs_hook=_members)


def _is_deeper(value: object, levels: int) -> bool:
    """True where ``value`` holds more than ``levels`` levels of arrays and objects; looked at layer by layer, not by recursion."""
    layer = [value]
    for _ in range(levels + 1):
        nested = [item for item in layer if isinstance(item, dict | list)]
        if not nested:
            return False
        layer = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def _mend(value: Any) -> Any:
    """The same with U+FFFD in place of lone surrogates, as Go does."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_mend(item) for item in value]
    if isinstance(value, dict):
        return {_mend(key): _mend(item) for key, item in value.items()}
    return value
