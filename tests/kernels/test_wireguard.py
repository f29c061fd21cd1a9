"""wireguard, on a kernel that has it: one boot of a guest (guest.py), in which inside_wireguard.py does the checks."""

from __future__ import annotations

import pytest

from tests.kernels.guest import LIMIT_S, assert_passed, console_of

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
    return console_of("inside_wireguard")


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_guest(console: str, check: str) -> None:
    assert_passed(console, check)
