"""What does ``flannelpy setup`` write for the service and for Docker, and how is it known again? A block of its own, a whole file.

The block stands last in ``/etc/default/flannelpy``, below a line that says whose it is; what stands above is somebody else's and
stays, but for the package's own example of an option, which is switched off while the block says something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.host.files import read_file

MARK = "# From here on by flannelpy setup: it writes this anew, and flannelpy cleanup --all takes it away."
EXAMPLE = 'FLANNELPY_OPTIONS="--iface eth1"'
"""The package's file has it, whatever interfaces the host has."""
_OFF = f"#{EXAMPLE} # flannelpy setup"
"""Another than what a person has switched off, which stays so."""
_PLAIN = re.compile(r"[\w./:,@%+=-]*", re.ASCII)


def above(text: str) -> str:
    """What is not ours of the service's file."""
    return text.partition(f"{MARK}\n")[0]


def below(text: str) -> str:
    """The block; empty where there is none."""
    return text.partition(f"{MARK}\n")[2]


def with_block(text: str, values: Mapping[str, Sequence[str]], *, example: bool) -> str:
    """``text`` with these variables in our block, and no others. ``example``: the package's example of an option holds.

    Raises UsageError for what a variable cannot say.
    """
    lines = [f"{name}={_quoted(name, given)}\n" for name, given in sorted(values.items())]
    head = above(text)
    if not example:
        head = re.sub(rf"^{re.escape(EXAMPLE)}$", _OFF, head, flags=re.MULTILINE)
    if head and MARK not in text:
        head += "\n" if head.endswith("\n") else "\n\n"
    return f"{head}{MARK}\n{''.join(lines)}"


def without_block(text: str) -> str:
    """What was there before; empty where nothing was. The package's example holds again."""
    if MARK not in text:
        return text
    return re.sub(rf"^{re.escape(_OFF)}$", EXAMPLE, above(text).removesuffix("\n"), flags=re.MULTILINE)


def _quoted(name: str, values: Sequence[str]) -> str:
    """For systemd's EnvironmentFile= (systemd.exec(5))."""
    if len(values) != 1:
        raise UsageError(f"{name} holds one value, {len(values)} were given: write the others into FLANNELPY_OPTIONS by hand")
    text = values[0]
    if not text:
        raise UsageError(f"{name}: an empty variable is one that is not set: write the empty option into FLANNELPY_OPTIONS by hand")
    if not text.isprintable():
        raise UsageError(f"{name}: {text!r:.60}, expected text on one line")
    return text if _PLAIN.fullmatch(text) else '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of the host's configuration, as it is; ``text`` is None where there is none."""

    path: Path
    text: str | None

    @staticmethod
    def read(path: Path) -> TextFile:
        """Raises FlannelpyError where it is no file of ours to change."""
        try:
            return TextFile(path, read_file(path, 1 << 20).decode())
        except FileNotFoundError:
            return TextFile(path, None)
        except UnicodeDecodeError as error:
            raise FlannelpyError(f"{path}: byte {error.start} is not UTF-8; nothing was written") from None
