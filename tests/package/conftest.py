"""The packages that ``make test-package`` has built, and what is in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

WHERE = "FLANNELPY_DEB"
WHY = "make test-package builds the Debian package and runs these"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "topology(**fields): of the lab's tests, which are not run from here")


@pytest.fixture(scope="session")
def package() -> Path:
    if WHERE not in os.environ:
        pytest.skip(WHY)
    return Path(os.environ[WHERE])


@pytest.fixture(scope="session")
def udp_package(package: Path) -> Path:
    return package.with_name(package.name.replace("flannelpy_", "flannelpy-udp_"))


@pytest.fixture(scope="session")
def kube_package(package: Path) -> Path:
    return package.with_name(package.name.replace("flannelpy_", "flannelpy-kube_"))


@pytest.fixture(scope="session")
def packages(package: Path, udp_package: Path, kube_package: Path) -> tuple[Path, ...]:
    """All that are made of one commit."""
    return package, udp_package, kube_package


@pytest.fixture(scope="session")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As dpkg would lay it, with DEBIAN/ in it."""
    return _unpack(package, tmp_path_factory)


@pytest.fixture(scope="session")
def udp_unpacked(udp_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for flannelpy-udp."""
    return _unpack(udp_package, tmp_path_factory)


@pytest.fixture(scope="session")
def kube_unpacked(kube_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for flannelpy-kube."""
    return _unpack(kube_package, tmp_path_factory)


@pytest.fixture(scope="session", params=["flannelpy", "flannelpy-udp", "flannelpy-kube"])
def each(request: pytest.FixtureRequest, unpacked: Path, udp_unpacked: Path, kube_unpacked: Path) -> Path:
    """One after the other, unpacked."""
    return {"flannelpy": unpacked, "flannelpy-udp": udp_unpacked, "flannelpy-kube": kube_unpacked}[request.param]


def _unpack(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("package") / "root"
    subprocess.run(["dpkg-deb", "-R", package, into], check=True)
    return into
