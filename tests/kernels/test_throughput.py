"""Are wireguard and ipip as fast as by hand? One boot of a guest (guest.py) each; the figures are printed (pytest -s).

The bound is wide: what a guest without KVM measures beside other work swings by a tenth.
"""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot, install

pytestmark = pytest.mark.timeout(LIMIT_S + 60)


@pytest.mark.parametrize("kind", ["wireguard", "ipip"])
def test_it_is_as_fast_as_by_hand(kind: str) -> None:
    try:
        if shutil.which("wg") is None:
            install("wireguard-tools")
        console = boot([sys.executable, "-m", "tests.kernels.inside_throughput", kind], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")
    print("\n".join(line for line in console.splitlines() if line.startswith("@@")))
    assert re.search(rf"^@@ ok {kind} is as fast as by hand \(", console, re.MULTILINE), console
