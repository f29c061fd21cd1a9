"""What does this host's administrator tell the service? ``/etc/default/flannelpy``, as systemd reads it (EnvironmentFile=)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.host.files import read_file

DEFAULTS = Path("/etc/default/flannelpy")
LARGEST = 1 << 20

_QUOTED = r"""'(?P<single>[^']*)'?|"(?P<double>(?:\\.|[^"\\])*)"?"""
_ASSIGNED = re.compile(
    rf"""[ \t\r\n]*(?: [#;](?:\\.|[^\\\r\n])*
        | (?P<name>[^ \t\r\n\#;][^=\r\n]*) (?: = (?P<quoted>(?:[ \t]*(?:{_QUOTED}))*) [ \t]* (?P<bare>(?:\\.?|[^\\\r\n])*) )? )""",
    re.VERBOSE | re.DOTALL,
)
_PIECE = re.compile(_QUOTED, re.DOTALL)


def variables(text: str) -> dict[str, str]:
    """What systemd takes from such a file, which is no shell's: a # in a value is a part of it, quoted pieces are put together,
    a line that ends in a backslash goes on in the next.

    Source: systemd.exec(5), EnvironmentFile=; systemd's parse_env_file_internal (v252).
    """
    found: dict[str, str] = {}
    for match in _ASSIGNED.finditer(text):
        name = (match["name"] or "").rstrip(" \t")
        if match["bare"] is not None and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            pieces = [_unescaped(piece) for piece in _PIECE.finditer(match["quoted"])]
            found[name] = "".join([*pieces, _bare(match["bare"])])
    return found


def _unescaped(piece: re.Match[str]) -> str:
    """In double quotes only what a shell would obey is escaped; nothing is in single ones."""
    if piece["double"] is None:
        return piece["single"]
    return re.sub(r"\\([\"\\`$\n])", lambda escaped: escaped[1].strip("\n"), piece["double"])


def _bare(text: str) -> str:
    letters = re.findall(r"\\.?|[^\\]", text, re.DOTALL)
    while letters and letters[-1] in (" ", "\t"):
        letters.pop()
    return "".join(letter.removeprefix("\\").strip("\r\n") if letter[0] == "\\" else letter for letter in letters)


def read(path: Path) -> Mapping[str, str]:
    """Its variables; none where there is no such file, or it is not for us to read.

    Raises FlannelpyError with one line where it is there and cannot be used: no file, or one that others may write.
    """
    try:
        return variables(read_file(path, LARGEST).decode(errors="replace"))
    except FileNotFoundError:
        return {}
    except FlannelpyError as error:
        if isinstance(error.__cause__ or error.__context__, PermissionError):
            return {}
        raise
