"""The package that ``make test-package`` has built, and what is in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

WHERE = "FLANNELPY_DEB"
WHY = "make test-package builds the Debian package and runs these"


@pytest.fixture(scope="session")
def package() -> Path:
    if WHERE not in os.environ:
        pytest.skip(WHY)
    return Path(os.environ[WHERE])


@pytest.fixture(scope="session")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As dpkg would lay it, with DEBIAN/ in it."""
    into = tmp_path_factory.mktemp("package") / "root"
    subprocess.run(["dpkg-deb", "-R", package, into], check=True)
    return into
