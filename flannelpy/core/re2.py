"""How does a pattern of Go's language (RE2, what flannel takes) read in Python's? Translated, or refused in words that say RE2.

What both have is passed on; POSIX classes, ``\\z``, ``\\Q...\\E``, ``\\x{...}``, ``\\pL``, ``\\p{Lu}`` and flags such as ``(?i)``
are translated. As in RE2, ``\\d``, ``\\w``, ``\\s`` and ``\\b`` are ASCII's. Source: https://github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

import re
import sys
import unicodedata
import warnings
from functools import lru_cache

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_CATEGORIES = re.compile("L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cfos]?")
"""The general categories of Unicode, as far as \\p names them."""

_TOKENS = re.compile(
    r"""\\Q(?P<quoted>.*?)(?:\\E|\Z)
    | \\[pP](?:\{(?P<property>[^}]*)\}|(?P<letter>.))
    | \\x\{(?P<hex>[^}]*)\}
    | \\(?P<escaped>.)
    | \[:(?P<posix>\^?\w*):\]
    | \(\?(?P<flags>[A-Za-z]*(?:-[A-Za-z]+)?)(?P<flagged>[:)])
    | \(\?P?<(?P<group>[A-Za-z_]\w*)>
    | (?P<plain>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def compile_re2(pattern: str) -> re.Pattern[str]:
    """The pattern, ready to search with. Raises ValueError: one line that says what is not understood."""
    try:
        with warnings.catch_warnings():  # of what may mean something else in a Python to come
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(_Translation(pattern).text, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{error}; expected a pattern of RE2, as flannel takes it") from None


class _Translation:
    """One pass over a pattern; ``text`` is what Python takes."""

    def __init__(self, pattern: str) -> None:
        self._out: list[str] = []
        self._in_class = False
        self._fresh = True  # at the beginning of the pattern, or of a group
        self._extra = [0]  # for each group that is open, how many of ours are open within
        at = 0
        while at < len(pattern):
            if self._in_class and pattern.startswith("[", at) and not _TOKENS.match(pattern, at).group("posix"):  # type: ignore[union-attr]
                self._out.append("\\[")
                at += 1
                continue
            match = _TOKENS.match(pattern, at)
            assert match is not None  # any one letter is a token
            at = self._take(match)
        self._out.append(")" * self._extra[-1])
        self.text = "".join(self._out)

    def _take(self, match: re.Match[str]) -> int:
        found = match.groupdict()
        fresh, self._fresh = self._fresh, False
        if found["quoted"] is not None:
            self._out.append(re.escape(found["quoted"]))
        elif (name := found["property"] or found["letter"]) is not None or found["property"] is not None:
            self._out.append(self._property(name or "", match[0][1] == "P"))
        elif found["hex"] is not None:
            self._out.append(re.escape(_letter(found["hex"])))
        elif found["escaped"] is not None:
            self._escaped(found["escaped"])
        elif self._in_class or match[0][0] == "[":
            return self._class(match)
        elif found["flags"] is not None:
            self._flags(found["flags"], found["flagged"], fresh)
        elif found["group"] is not None:
            self._open(f"(?P<{found['group']}>")
        else:
            return self._plain(match)
        return match.end()

    def _escaped(self, letter: str) -> None:
        if letter == "z":
            self._out.append("\\Z")
        elif letter == "C":
            raise ValueError("RE2's \\C (any byte) is not understood here")
        else:
            self._out.append("\\" + letter)

    def _plain(self, match: re.Match[str]) -> int:
        """Outside a class. A token that means something only within one is taken for its first letter."""
        letter = match[0][0]
        if letter == "(":
            self._open(letter)
            return match.start() + 1
        if letter == ")" and len(self._extra) > 1:
            self._out.append(")" * self._extra.pop())
        self._out.append(letter)
        return match.start() + 1

    def _open(self, text: str) -> None:
        self._extra.append(0)
        self._out.append(text)
        self._fresh = True

    def _flags(self, flags: str, end: str, fresh: bool) -> None:
        if strange := set(flags) - set("ims-"):
            raise ValueError(f"RE2's flag {min(strange)} is not understood here")
        if end == ":":
            self._open(f"(?{flags}:")
            return
        if not fresh:
            raise ValueError(f"RE2's (?{flags}) is understood at the beginning of a pattern or group only")
        self._extra[-1] += 1
        self._out.append(f"(?{flags}:")
        self._fresh = True

    def _class(self, match: re.Match[str]) -> int:
        text = match.string
        if not self._in_class:
            head = re.compile(r"\[\^?\]?").match(text, match.start())
            assert head is not None
            self._in_class = True
            self._out.append(head[0][:-1] + "\\]" if head[0].endswith("]") else head[0])
            return head.end()
        if (name := match["posix"]) is not None:
            if name.lstrip("^") not in _POSIX:
                raise ValueError(f"RE2 has no class [:{name}:]")
            ranges = _POSIX[name.lstrip("^")]
            self._out.append(_outside(re.compile(f"[{ranges}]")) if name.startswith("^") else ranges)
            return match.end()
        letter = match[0][0]
        self._in_class = letter != "]"
        self._out.append("\\" + letter if letter in "&~|" else letter)
        return match.start() + 1

    def _property(self, name: str, negated: bool) -> str:
        if name.startswith("^"):
            name, negated = name[1:], not negated
        if not _CATEGORIES.fullmatch(name):
            raise ValueError(f"RE2's \\p{{{name}}} is not understood here; \\p{{L}}, \\p{{N}} and the other general categories are")
        ranges = _category(name, negated)
        return ranges if self._in_class else f"[{ranges}]"


def _letter(digits: str) -> str:
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        raise ValueError(f"RE2's \\x{{{digits}}} is no code point") from None


@lru_cache(maxsize=8)
def _category(name: str, negated: bool) -> str:
    return _ranges([code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith(name) != negated])


def _outside(inside: re.Pattern[str]) -> str:
    """Everything else, for an ASCII class."""
    return _ranges([code for code in range(0x80) if not inside.match(chr(code))]) + "\\u0080-\\U0010ffff"


def _ranges(codes: list[int]) -> str:
    """Code points in order, as the inside of a class."""
    found: list[str] = []
    at = 0
    while at < len(codes):
        end = at
        while end + 1 < len(codes) and codes[end + 1] == codes[end] + 1:
            end += 1
        found.append(f"\\U{codes[at]:08x}-\\U{codes[end]:08x}")
        at = end + 1
    return "".join(found)
