"""Where is the host's WireGuard key kept? In a file that only its owner reads: base64, as wg(8) and flannel write it.

flannel keeps its own in /run, which a reboot empties; one that is there at our first start is taken over, so that the peers notice
nothing. Everything here may wait for a disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import KEY_BYTES, clamped, key_bytes, key_text
from flannelpy.host.files import read_file, set_aside, write_file
from flannelpy.host.state import MODE

FILE = "wireguard.key"
"""Its name in the state directory."""

LARGEST = 256
"""Bytes of such a file: 44, and a line's end."""

Say = Callable[[str], None]
"""Told, in a line, what a person should know."""


def draw() -> Secret[bytes]:
    """A new private key."""
    return Secret(clamped(os.urandom(KEY_BYTES)))


def read_or_make(path: Path, flannels: Path, say: Say) -> Secret[bytes]:
    """The key in ``path``; where none is, the one that a flannel left, or a new one, which is kept there.

    A file that is no key, or cannot be read, is set aside; one that cannot be written is done without. None of these is an error:
    all are said.
    """
    try:
        key = _read(path)
    except FileNotFoundError:
        key = _adopt(flannels, path, say) or draw()
    except ValueError as error:
        say(f"{path}: {error}; {set_aside(path)}, and a new key is made")
        key = draw()
    except FlannelpyError as error:  # also of one that cannot be read now, and may be the only copy
        say(f"{error}; {set_aside(path)}, and a new key is made")
        key = draw()
    keep(path, key, say)
    return key


def keep(path: Path, key: Secret[bytes], say: Say) -> None:
    """Have ``path`` hold the key, for its owner only."""
    try:
        write_file(path, key_text(key.reveal()) + "\n", MODE)
    except FlannelpyError as error:
        say(f"{error}; the key lasts as long as this process, and its peers get another after that")


def _read(path: Path) -> Secret[bytes]:
    """Raises FileNotFoundError, FlannelpyError, and ValueError without what it holds."""
    return Secret(clamped(key_bytes(read_file(path, LARGEST).decode("ascii", "replace").strip())))


def _adopt(flannels: Path, path: Path, say: Say) -> Secret[bytes] | None:
    try:
        key = _read(flannels)
    except FileNotFoundError:
        return None
    except (FlannelpyError, ValueError) as error:
        said = str(error)
        say(f"{said if said.startswith(str(flannels)) else f'{flannels}: {said}'}; a new key is made")
        return None
    say(f"{flannels}: the key that a flannel left is kept in {path} from now on")
    return key
