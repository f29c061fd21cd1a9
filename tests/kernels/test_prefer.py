"""Prefer with wireguard, on a kernel that has it: one boot of a guest (guest.py), in which inside_prefer.py does the check."""

from __future__ import annotations

import re
import sys

import pytest

from tests.kernels.guest import NoGuestError, boot

pytestmark = pytest.mark.timeout(660)

LIMIT_S = 600.0
"""A minute and a half on an idle machine; everything in it waits for facts."""


def test_two_hosts_encrypt_between_them_and_no_packet_is_lost_on_the_way_there_and_back() -> None:
    try:
        console = boot([sys.executable, "-m", "tests.kernels.inside_prefer"], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")
    assert re.search(r"^@@ ok preferred to the Type \(", console, re.MULTILINE), console
