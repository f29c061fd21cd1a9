"""What does this host's administrator tell the service? ``/etc/default/flannelpy``, as systemd reads it (EnvironmentFile=)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.host.files import read_file
from flannelpy.host.subnet_env import variables

DEFAULTS = Path("/etc/default/flannelpy")
LARGEST = 1 << 20


def read(path: Path) -> Mapping[str, str]:
    """Its variables; none where there is no such file, or it is not for us to read.

    Raises FlannelpyError with one line where it is there and cannot be used: no file, or one that others may write.
    """
    try:
        text = read_file(path, LARGEST).decode(errors="replace")
    except FileNotFoundError:
        return {}
    except FlannelpyError as error:
        if isinstance(error.__cause__ or error.__context__, PermissionError):
            return {}
        raise
    lines = (line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith((";", "#")))
    return variables("\n".join(lines))
