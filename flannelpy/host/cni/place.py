"""Where do the plugin and its network lie, and whose are they? A file is ours when it says so, or when it is what we would write.

The plugin says so in its second line, in whatever version; a conflist cannot say anything, so ours is one that nobody has changed.
"""

from __future__ import annotations

import enum
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.host.files import RefusedError, directory, read_file, write_file

NAME = "flannel"
"""What a conflist calls it, and so the name of its file."""
CONFLIST = "10-flannel.conflist"
WAITING = f"{CONFLIST}.waiting"
"""Its name while the agent is not ready: runtimes take .conf, .conflist and .json, and pass over any other."""
NEEDS = ("bridge", "host-local", "portmap")
"""Plugins that the network needs beside ours."""
LIMIT = 1 << 20
"""Bytes of a file that may be ours; a plugin in Go has more, and is somebody else's."""
MARK = b"# Part of flannelpy: "

NETWORK = {
    "name": "cbr0",
    "cniVersion": "0.3.1",
    "plugins": [
        {"type": NAME, "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
"""The network that kube-flannel gives to every node."""


class Whose(enum.Enum):
    """Who has written what is in a file's place."""

    NOBODY = "not there"
    OURS = "flannelpy's"
    ANOTHERS = "not flannelpy's"


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of ours: where it goes, what it says, its mode, and whether one that says something else is still ours."""

    path: Path
    text: str
    mode: int
    marked: bool

    def whose(self) -> Whose:
        """Whose the file there is. Raises FlannelpyError where its directory is one that others may write."""
        try:
            found = read_file(self.path, LIMIT)
        except FileNotFoundError:
            return Whose.NOBODY
        except RefusedError:
            if not os.path.lexists(self.path):  # the directory is what was refused
                raise
            return Whose.ANOTHERS
        ours = (
            found.split(b"\n", 2)[1:2] and found.split(b"\n", 2)[1].startswith(MARK) if self.marked else found == self.text.encode()
        )
        return Whose.OURS if ours else Whose.ANOTHERS

    def write(self) -> bool:
        """Write it whole; false where it was so already. Raises FlannelpyError."""
        return write_file(self.path, self.text, self.mode)

    def remove(self) -> None:
        """Raises FlannelpyError."""
        try:
            with directory(self.path.parent) as parent:
                os.unlink(self.path.name, dir_fd=parent)
        except OSError as error:
            raise FlannelpyError(f"{self.path} cannot be removed: {error.strerror}") from None


def plugin(bin_dir: Path) -> Placed:
    """The plugin."""
    return Placed(bin_dir / NAME, Path(__file__).with_name("plugin.py").read_text(), 0o755, marked=True)


def network(conf_dir: Path) -> Placed:
    """The network; it comes after the plugin, because a runtime uses it as soon as it is there."""
    return Placed(conf_dir / CONFLIST, json.dumps(NETWORK, indent=2) + "\n", 0o644, marked=False)


def waiting(conf_dir: Path) -> Placed:
    """The network where it waits until the agent is ready."""
    return replace(network(conf_dir), path=conf_dir / WAITING)


def missing(bin_dir: Path) -> list[str]:
    """Plugins that the network needs and that are not there."""
    return [name for name in NEEDS if not (bin_dir / name).is_file()]


def before(conf_dir: Path) -> str | None:
    """The configuration that a runtime takes instead of ours, because its name comes first."""
    try:
        names = sorted(each.name for each in conf_dir.iterdir() if each.suffix in (".conf", ".conflist", ".json"))
    except OSError:
        return None
    return names[0] if names and names[0] < CONFLIST else None
