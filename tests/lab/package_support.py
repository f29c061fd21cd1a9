"""Which packages has ``make test-package`` built, and what is a later version of one?"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

DEB, DEBIAN = os.environ.get("FLANNELPY_DEB", ""), os.environ.get("FLANNELPY_DEBIAN", "")


def later_version(work: Path) -> Path:
    """flannelpy as a later version, in ``work``."""
    subprocess.run(["dpkg-deb", "-R", DEB, work / "root"], check=True)
    told = work / "root/DEBIAN/control"
    told.write_text(re.sub(r"^(Version: .*)$", r"\1.1", told.read_text(), flags=re.MULTILINE))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", work / "root", work / "newer.deb"], check=True)
    return work / "newer.deb"
