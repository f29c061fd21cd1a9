"""wireguard, on a kernel that has it: one boot of a guest (guest.py), in which inside_wireguard.py does the checks."""

from __future__ import annotations

import re
import sys

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot

pytestmark = pytest.mark.timeout(LIMIT_S + 60)

"""Two minutes on an idle machine; everything in it waits for facts."""

CHECKS = (
    "contract",
    "both families",
    "encrypted",
    "key",
    "drift",
    "roaming",
    "a restart loses no packet",
    "another key",
    "one tunnel for both",
    "a peer that goes",
    "another backend",
    "flanneld",
    "IPv6 only",
)


@pytest.fixture(scope="module")
def console() -> str:
    """What the guest said."""
    try:
        return boot([sys.executable, "-m", "tests.kernels.inside_wireguard"], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_guest(console: str, check: str) -> None:
    if why := re.search(rf"^@@ skipped {check}: (.*) \(", console, re.MULTILINE):
        pytest.skip(why[1])
    assert re.search(rf"^@@ ok {check} \(", console, re.MULTILINE), console
