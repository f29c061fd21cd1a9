"""The backend of a third party that docs/backends.md shows, as pip would leave it beside flannelpy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from flannelpy import plugins

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "examples" / "via_router"


def install(folder: Path) -> tuple[Path, Path]:
    """Its entry points, as its pyproject.toml names them, go into ``folder``; returns what belongs on Python's path."""
    declared: dict[str, Any] = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = declared["entry-points"][plugins.GROUP]
    information = folder / f"{declared['name'].replace('-', '_')}-{declared['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: {declared['version']}\n")
    (information / "entry_points.txt").write_text(
        "\n".join([f"[{plugins.GROUP}]", *(f"{name} = {where}" for name, where in points.items())]) + "\n"
    )
    return folder, EXAMPLE
