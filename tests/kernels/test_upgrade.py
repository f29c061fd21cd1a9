"""An upgrade of the package where the kernel carries udp, on a kernel that does: one boot of a guest (guest.py).

In it inside_upgrade.py boots a bare Debian, as ``make test-package`` does for the backends that this machine's kernel has.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot
from tests.lab.package_support import DEB, DEBIAN, later_version

pytestmark = [
    pytest.mark.skipif(not (DEB and DEBIAN), reason="make test-kernels builds the package and a bare Debian for it"),
    pytest.mark.timeout(LIMIT_S + 60),
]


def test_an_upgrade_loses_no_packet(tmp_path: Path) -> None:
    newer = later_version(tmp_path)
    try:
        console = boot([sys.executable, "-m", "tests.kernels.inside_upgrade", DEBIAN, DEB, str(newer)], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")
    print("\n".join(re.findall("^@@ (?:kernel|figure) .*", console, re.MULTILINE)))
    assert re.search(r"^@@ ok an upgrade loses no packet \(", console, re.MULTILINE), console
    found = re.search(r"^@@ figure pings during the upgrade: (\d+), lost: 0 ", console, re.MULTILINE)
    assert found, console
    assert int(found[1]) > 100, console
