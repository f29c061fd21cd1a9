"""From Type to Type, on a kernel that has them all: one boot of a guest (guest.py) a walk; inside_migration.py does the moves."""

from __future__ import annotations

import itertools
import re
import sys

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot
from tests.kernels.inside_migration import WALKS

pytestmark = pytest.mark.timeout(LIMIT_S + 60)


@pytest.mark.parametrize("name", WALKS)
def test_three_hosts_move_and_no_ping_is_lost(name: str) -> None:
    try:
        console = boot([sys.executable, "-m", "tests.kernels.inside_migration", name], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")
    print("\n".join(line for line in console.splitlines() if line.startswith("@@")))
    for before, after in itertools.pairwise(WALKS[name]):
        assert re.search(rf"^@@ ok {before} to {after} \(", console, re.MULTILINE), console
    assert re.search(r"^@@ ok no packet was lost \(", console, re.MULTILINE), console
