"""What holds for every test: none fails because the machine is busy with something else, or because of a terminal's width."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

os.environ.pop("COLUMNS", None)  # pytest-xdist tells its workers the width of the terminal

KEPT_OPEN = 50
"""Files that one test may leave open for those after it: an etcd that they share, its connections."""


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def no_files_are_left_open() -> Iterator[None]:
    before = _open_files()
    yield
    assert _open_files() - before <= KEPT_OPEN, "this test left files open, and so does a process that runs for months"
