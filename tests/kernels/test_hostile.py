"""Hostile leases on the backends that this machine's kernel may lack: one boot of a guest (guest.py), the lab's own test in it."""

from __future__ import annotations

import re
import sys

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot

pytestmark = pytest.mark.timeout(LIMIT_S + 60)


@pytest.fixture(scope="module")
def console() -> str:
    """What the guest said."""
    try:
        return boot([sys.executable, "-m", "tests.kernels.inside_hostile"], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")


@pytest.mark.parametrize("backend", ["ipip", "wireguard"])
def test_in_the_guest(console: str, backend: str) -> None:
    assert re.search(rf"^@@ ok hostile leases, {backend} \(", console, re.MULTILINE), console
