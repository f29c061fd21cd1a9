"""How are the Debian packages made? ``build.py --into dist``: trees are laid in a temporary directory and packed by dpkg-deb.

``flannelpy``, with numpy ``flannelpy-udp``, with lightkube ``flannelpy-kube``: what each is made of is in the folder of its name.
What comes out is the same, byte for byte, for the same commit on the same release of Debian: times are the commit's
(SOURCE_DATE_EPOCH), owners are root, and pip takes what ``packaging/requirements*.txt`` pin by hash. deb(5), dpkg-deb(1).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import documents
import wheels
from maintainer import maintainer

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
PRIVATE = "usr/lib/flannelpy"
SYSTEMD = TREE / "packaging" / "systemd"

FILES = {
    "usr/bin/flannelpy": (HERE / "flannelpy/program", 0o755),
    **{
        f"usr/lib/systemd/system/{name}": (SYSTEMD / name, 0o644)
        for name in ("flannelpy.service", "flannelpy-cni.service", "flannelpy-xtables.path", "flannelpy-xtables.service")
    },
    "usr/lib/sysusers.d/flannelpy.conf": (SYSTEMD / "flannelpy.sysusers", 0o644),
    "etc/default/flannelpy": (SYSTEMD / "flannelpy.default", 0o640),  # it may come to hold a password
    "usr/share/doc/flannelpy/examples/docker-flannelpy.conf": (SYSTEMD / "docker-flannelpy.conf", 0o644),
}
"""What is copied as it is: from where, and its mode."""

SCRIPTS = {"conffiles": 0o644, "postinst": 0o755, "prerm": 0o755, "postrm": 0o755}
"""What goes into DEBIAN/ where a package has it."""

UDP = ("numpy", "numpy.libs", "numpy-*.dist-info")
"""What goes into flannelpy-udp: half of it all, and only workers in user space use it."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, default=TREE / "dist", metavar="DIRECTORY", help="where the package goes")
    parser.add_argument("--revision", default="1", help="what follows the version after a hyphen")
    given = parser.parse_args()
    for package in build(given.into, given.revision):
        print(package)


def build(into: Path, revision: str) -> list[Path]:
    """Make the packages; their paths. Raises CalledProcessError with what the failing tool has said on stderr."""
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch := commit_time())
    os.umask(0o022)
    version = f"{project_version()}-{revision}"
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flannelpy-deb-") as work:
        root, udp, kube = (Path(work, name) for name in ("flannelpy", "flannelpy-udp", "flannelpy-kube"))
        wheels.install(TREE / "packaging/requirements.txt", root / PRIVATE, TREE)
        wheels.install(TREE / "packaging/requirements-kube.txt", kube / PRIVATE)
        for name, (source, mode) in FILES.items():
            copy(source, root / name, mode)
        documents.write(root, (root / PRIVATE, kube / PRIVATE), TREE, version, epoch)
        for each in (root, kube):
            wheels.prune(each / PRIVATE)
        (udp / PRIVATE).mkdir(parents=True)
        for pattern in UDP:
            for path in (root / PRIVATE).glob(pattern):
                path.rename(udp / PRIVATE / path.name)
        for each in (udp, kube):
            (each / "usr/share/doc").mkdir(parents=True)
            (each / "usr/share/doc" / each.name).symlink_to("flannelpy")
        return [pack(each, version, epoch, into) for each in (root, udp, kube)]


def copy(source: Path, target: Path, mode: int) -> None:
    """A file as it is, with its mode."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def pack(root: Path, version: str, epoch: int, into: Path) -> Path:
    """A tree by the name of its package becomes one; its path."""
    architecture = told("dpkg", "--print-architecture")
    copy(HERE / root.name / "lintian-overrides", root / "usr/share/lintian/overrides" / root.name, 0o644)
    control(root, version, architecture)
    settle(root, epoch)
    package = into / f"{root.name}_{version}_{architecture}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", os.fspath(root), os.fspath(package))
    return package


def commit_time() -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH where it is set, else the commit's."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    return int(told("git", "-C", os.fspath(TREE), "log", "-1", "--format=%ct"))


def project_version() -> str:
    """As pyproject.toml finds it."""
    found = re.search(r'^__version__ = "(.+)"$', (TREE / "flannelpy" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit('flannelpy/__init__.py: expected a line __version__ = "..."')
    return found[1]


def control(root: Path, version: str, architecture: str) -> None:
    """DEBIAN/: control, md5sums, conffiles, maintainer scripts. deb-control(5)."""
    source = HERE / root.name
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    major, minor = sys.version_info[:2]
    values = {
        "VERSION": version,
        "ARCHITECTURE": architecture,
        "MAINTAINER": maintainer(),
        # Debian Policy 5.6.20: each file rounded up to KiB, and one for everything else.
        "SIZE": str(sum(-(-path.stat().st_size // 1024) for path in files) + sum(not path.is_file() for path in root.rglob("*"))),
        "PYTHON": f"{major}.{minor}",
        "NEXT_PYTHON": f"{major}.{minor + 1}",
        "DROP_IN": hashlib.sha256((SYSTEMD / "docker-flannelpy.conf").read_bytes()).hexdigest(),
    }
    debian = root / "DEBIAN"
    debian.mkdir()
    fill(source / "control", debian / "control", values)
    conffiles = (source / "conffiles").read_text().split() if (source / "conffiles").exists() else []
    names = ((path, path.relative_to(root)) for path in files)
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {name}\n" for path, name in names if f"/{name}" not in conffiles]
    (debian / "md5sums").write_text("".join(sums))
    for name, mode in SCRIPTS.items():
        if (source / name).exists():
            fill(source / name, debian / name, values, mode)


def fill(source: Path, target: Path, values: Mapping[str, str], mode: int = 0o644) -> None:
    """A file with the values of its ``@NAME@``."""
    target.write_text(re.sub(r"@(\w+)@", lambda found: values[found[1]], source.read_text()))
    target.chmod(mode)


def settle(root: Path, epoch: int) -> None:
    """Every time is the commit's, every mode one of Debian's."""
    for path in [root, *root.rglob("*")]:
        if path.is_symlink():
            pass
        elif path.is_dir():
            path.chmod(0o755)
        elif path.is_relative_to(root / PRIVATE):
            path.chmod(0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def told(*words: str) -> str:
    """What a command has said on stdout, without the line's end."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def run(*words: str) -> None:
    """Run a command; what it says on stdout is not ours."""
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
