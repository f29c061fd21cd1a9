"""ipip, on a kernel that has it: one boot of a guest (guest.py), in which inside_ipip.py does the checks."""

from __future__ import annotations

import re
import sys

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot

pytestmark = pytest.mark.timeout(LIMIT_S + 60)

"""A minute on an idle machine; everything in it waits for facts."""

CHECKS = (
    "contract",
    "hostile leases",
    "objects",
    "they meet",
    "as flannel has it",
    "guard",
    "drift",
    "direct routing",
    "a restart loses no packet",
    "devices of others",
    "flanneld",
    "another backend",
    "hostile leases",
)


@pytest.fixture(scope="module")
def console() -> str:
    """What the guest said."""
    try:
        return boot([sys.executable, "-m", "tests.kernels.inside_ipip"], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_guest(console: str, check: str) -> None:
    if why := re.search(rf"^@@ skipped {check}: (.*) \(", console, re.MULTILINE):
        pytest.skip(why[1])
    assert re.search(rf"^@@ ok {check} \(", console, re.MULTILINE), console
