"""Kubernetes by wireguard and ipip, on a kernel that has both: one boot of a guest (guest.py), with inside_kube.py in it."""

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
        return boot([sys.executable, "-m", "tests.kernels.inside_kube"], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")


@pytest.mark.parametrize("wanted", ["wireguard", "a node that goes and comes", "ipip"])
def test_in_the_guest(console: str, wanted: str) -> None:
    assert re.search(rf"^@@ ok {wanted} \(", console, re.MULTILINE), console
