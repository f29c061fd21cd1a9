"""With which flags does systemd start Docker? Read from docker.service and its drop-ins, as systemd.unit(5) puts them together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.host.defaults import variables
from flannelpy.host.files import read_given

UNIT = "docker.service"
FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
"""The first that has a file of a name wins."""

_LARGEST = 1 << 18


def command_line(root: Path = Path("/")) -> list[str] | None:
    """The words behind dockerd, with the variables of its files put in; None where there is no such unit, or it cannot be read."""
    said: dict[str, list[str]] = {"ExecStart": [], "Environment": [], "EnvironmentFile": [], "UnsetEnvironment": []}
    for text in _texts(root):
        for name, value in _settings(text):
            if name in said:
                said[name] = [*said[name], value] if value else []  # an empty one forgets those before
    if not said["ExecStart"] or not (words := _words(said["ExecStart"][-1])):
        return None
    environment = _environment(root, said["Environment"], said["EnvironmentFile"], said["UnsetEnvironment"])
    return [part for word in words[1:] for part in _expanded(word, environment)]


def _environment(root: Path, assigned: list[str], files: list[str], unset: list[str]) -> dict[str, str]:
    """What a file says wins over what is assigned, wherever either stands; what is unset is so at last (systemd.exec(5))."""
    found: dict[str, str] = {}
    for line in assigned:
        found |= {name: value for name, equals, value in (word.partition("=") for word in _words(line)) if equals}
    for pattern in files:
        # Path.glob raises on what is no pattern.
        for name in sorted(glob(pattern.lstrip("-").lstrip("/"), root_dir=root)):  # noqa: PTH207
            found |= variables(_read(root / name) or "")
    for word in (word for line in unset for word in _words(line)):
        name, equals, value = word.partition("=")
        if not equals or found.get(name) == value:
            found.pop(name, None)
    return found


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return []


def _expanded(word: str, environment: dict[str, str]) -> list[str]:
    """``$NAME`` as a word of its own is split at blanks, quotes count; ``${NAME}`` is not (systemd.service(5))."""
    if match := re.fullmatch(r"\$([A-Za-z_]\w*)", word):
        value = environment.get(match[1], "")
        return _words(value) or value.split()
    return [re.sub(r"\$\{([A-Za-z_]\w*)\}", lambda found: environment.get(found[1], ""), word)]


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            yield name.strip(), value.strip()


def _texts(root: Path) -> Iterator[str]:
    """The unit, then its drop-ins in the order of their names."""
    yield from [text for folder in FOLDERS if (text := _read(root / folder / UNIT)) is not None][:1]
    drop_ins: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in (root / folder / f"{UNIT}.d").glob("*.conf"):
            drop_ins.setdefault(path.name, path)
    yield from (text for _name, path in sorted(drop_ins.items()) if (text := _read(path)) is not None)


def _read(path: Path) -> str | None:
    try:
        return read_given(path, _LARGEST).decode(errors="replace")
    except (OSError, FlannelpyError):
        return None
