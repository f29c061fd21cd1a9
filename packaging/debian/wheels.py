"""What is in the private directory? This project and all it needs, from wheels, without what only a developer uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = ("numpy/_core/include", "numpy/_core/lib", "numpy/f2py/src")
UNUSED_FILES = ("netaddr/eui/*.txt", "netaddr/eui/*.idx")  # who has which MAC
UNUSED_FOLDERS = ("tests", "__pycache__")
UNUSED_SUFFIXES = (".pyi", ".pyx", ".pxd", ".c", ".h", ".a")
INSTALLERS = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "top_level.txt")
"""What pip writes for pip. dpkg has its own list, and one of them names the directory of the build."""

LICENCES = ("licenses", "LICENSE", "LICENSE.txt", "LICENSE.rst", "AUTHORS", "AUTHORS.rst", "COPYING", "NOTICE")
"""Their texts are in /usr/share/doc/flannelpy/copyright."""


def install(requirements: Path, into: Path, project: Path | None = None) -> None:
    """What is pinned, by hash, then the project itself. Raises CalledProcessError; pip says why on stderr."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--target", os.fspath(into)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    # etcd3 has no wheel.
    wheels = ["--only-binary=:all:", "--no-binary=etcd3"]
    pinned = ["--require-hashes", *wheels, "-r", os.fspath(requirements)]
    for more in (pinned, *([["--no-build-isolation", os.fspath(project)]] if project else [])):
        subprocess.run([*pip, *more], check=True, env=environment, stdout=subprocess.DEVNULL)
        shutil.rmtree(into / "bin", ignore_errors=True)  # of each the same programs; ours is another


def prune(private: Path) -> None:
    """Take away what is not used at run time, and debug information; of some 110 MB a third goes."""
    for name in UNUSED:
        shutil.rmtree(private / name, ignore_errors=True)
    for path in [path for pattern in UNUSED_FILES for path in private.glob(pattern)]:
        path.unlink()
    for path in sorted(private.rglob("*"), reverse=True):
        known = path.parent.name.endswith(".dist-info") and path.name in (*INSTALLERS, *LICENCES)
        if path.is_dir() and (known or path.name in UNUSED_FOLDERS):
            shutil.rmtree(path)
        elif path.is_file() and (known or path.suffix in UNUSED_SUFFIXES):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for path in sorted(private.rglob("*.so")):
        if path.parent.name != "numpy.libs":  # their makers have moved sections in them
            subprocess.run(["strip", "--strip-unneeded", os.fspath(path)], check=True)
