"""What is executed for a command line of the network config? Words and variables by the rules of flannel 0.28.2 and later.

No shell: the text is split at white space, quotes mean nothing, and each word has its variables expanded after that, so that a
value never becomes two words. The rules are those of Go's strings.Fields, os.Expand and strings.TrimSpace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space as Unicode has it; Python's own notion has four control characters more."""

_FIELD = re.compile(f"[^{SPACE}]+")
_ENDS = re.compile(f"^[{SPACE}]+|[{SPACE}]+\\Z")
_VARIABLE = re.compile(
    r"\$(?:\{(?P<braced>[^}]*)\}"  # ${NAME}, whatever stands in it; ${} is nothing
    r"|(?P<open>\{)"  # a brace that nobody closes: it and the dollar go
    r"|(?P<plain>[*#$@!?\-0-9]|[A-Za-z_][A-Za-z0-9_]*))"
)


def words(line: str) -> list[str]:
    """The program and its arguments, before expansion."""
    return _FIELD.findall(line)


def expand(word: str, variables: Mapping[str, str]) -> str:
    """The word with ``$NAME`` and ``${NAME}`` in it replaced; by nothing where there is no such variable."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found["braced"] or found["plain"] or "", "")

    return _VARIABLE.sub(value, word)


def trimmed(output: str) -> str:
    """Without white space at both ends."""
    return _ENDS.sub("", output)
