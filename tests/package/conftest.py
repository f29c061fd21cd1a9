"""The packages that ``make test-package`` has built, and what is in them."""

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
def udp_package(package: Path) -> Path:
    return package.with_name(package.name.replace("flannelpy_", "flannelpy-udp_"))


@pytest.fixture(scope="session")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As dpkg would lay it, with DEBIAN/ in it."""
    return _unpack(package, tmp_path_factory)


@pytest.fixture(scope="session")
def udp_unpacked(udp_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for flannelpy-udp."""
    return _unpack(udp_package, tmp_path_factory)


@pytest.fixture(scope="session", params=["flannelpy", "flannelpy-udp"])
def each(request: pytest.FixtureRequest, unpacked: Path, udp_unpacked: Path) -> Path:
    """The one and the other, unpacked."""
    return unpacked if request.param == "flannelpy" else udp_unpacked


def _unpack(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("package") / "root"
    subprocess.run(["dpkg-deb", "-R", package, into], check=True)
    return into
