"""ipsec, on a kernel that has ESP, with Debian's charon: one boot of a guest (guest.py), in it the checks of inside_ipsec.py."""

from __future__ import annotations

import pytest

from tests.kernels.guest import LIMIT_S, assert_passed, console_of
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
    return console_of("inside_ipsec")


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_guest(console: str, check: str) -> None:
    assert_passed(console, check)
