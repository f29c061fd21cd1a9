"""ipsec, on a kernel that has ESP, with Debian's charon: one boot of a guest (guest.py), in it the checks of inside_ipsec.py."""

from __future__ import annotations

import re
import sys

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot
from tests.kernels.inside_ipsec import STRONGSWAN

pytestmark = pytest.mark.timeout(LIMIT_S + 60)

CHECKS = (
    "contract",
    "tunnels",
    "encrypted",
    "key",
    "drift",
    "in UDP",
    "another key",
    "another backend",
    "the agent is killed",
    "a peer that goes",
    "charon dies",
    "a restart",
    "flanneld",
    "cleanup",
)


@pytest.fixture(scope="module")
def console() -> str:
    """What the guest said."""
    if not STRONGSWAN.exists():
        pytest.skip("no charon: make test-kernels unpacks it")
    try:
        return boot([sys.executable, "-m", "tests.kernels.inside_ipsec"], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_guest(console: str, check: str) -> None:
    if why := re.search(rf"^@@ skipped {check}: (.*) \(", console, re.MULTILINE):
        pytest.skip(why[1])
    assert re.search(rf"^@@ ok {check} \(", console, re.MULTILINE), console
