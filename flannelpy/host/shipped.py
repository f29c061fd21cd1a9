"""Which files of packaging does the program hand out? In an installed wheel they lie beside it, in a checkout in packaging/."""

from __future__ import annotations

from pathlib import Path

from flannelpy.core.errors import FlannelpyError

DOCKER_DROP_IN = "docker-flannelpy.conf"

_HERE = Path(__file__).resolve()
_PLACES = (_HERE.with_name("shipped"), _HERE.parents[2] / "packaging" / "systemd")


def shipped(name: str) -> str:
    """The file's text. Raises FlannelpyError where the installation lacks it."""
    for place in _PLACES:
        try:
            return (place / name).read_text()
        except OSError:
            continue
    raise FlannelpyError(f"{_PLACES[0] / name}: it is not there; is flannelpy installed whole?")
