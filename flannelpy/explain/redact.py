"""What must not leave this host with a report? Secrets that are known by value, and whatever looks like one by its name or form."""

from __future__ import annotations

import re
from collections.abc import Iterable

from flannelpy.core.secret import HIDDEN

SHORTEST = 4
"""Letters of a secret that is looked for by its value: a shorter one would be found everywhere, and is caught by its name."""

_PEM = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(-----END \1-----|\Z)", re.DOTALL)
_URL = re.compile(r"(?<=://)[^/\s@\"']+@")
_NAME = r"[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|psk|private[_-]?key|preshared[_-]?key)[\w.-]*"
_NAMED = re.compile(
    rf"(?P<name>{_NAME}[\"']?(?:\s*[=:]\s*|\s+(?=[\"'])))(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;&}}\])]+)", re.IGNORECASE
)
_FLAG = re.compile(rf"(?P<name>(?<![\w-])--?{_NAME}\s+)(?P<value>[^\s\"']\S*)", re.IGNORECASE)
"""With two dashes, or flannel's one. What follows is the value, though it begins with a dash."""

_FILE = re.compile(r"(?:file|path)[\"']?\s*[=:]?\s*$", re.IGNORECASE)
"""The name of a file is no secret, and says where one is."""


def redact(text: str, known: Iterable[str] = ()) -> str:
    """The text with ``HIDDEN`` in the place of each secret; ``known``: values of secrets, wherever they stand."""
    for value in sorted({each for each in known if len(each) >= SHORTEST}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _PEM.sub(HIDDEN, text)
    text = _URL.sub(f"{HIDDEN}@", text)
    return _FLAG.sub(_hidden, _NAMED.sub(_hidden, text))


def _hidden(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    if _FILE.search(name) or value.strip("\"'") in ("", "null", HIDDEN) or value.startswith("(not"):
        return match[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{quote}{HIDDEN}{quote}"
