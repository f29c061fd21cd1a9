"""ipip, on a kernel that has it: one boot of a guest (guest.py), in which inside_ipip.py does the checks."""

from __future__ import annotations

import pytest

from tests.kernels.guest import LIMIT_S, assert_passed, console_of

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
    return console_of("inside_ipip")


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_guest(console: str, check: str) -> None:
    assert_passed(console, check)
