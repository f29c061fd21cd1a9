"""Does a worker find its modules wherever the agent found them?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
ASK = f"import sys; sys.path.insert(0, {str(TREE)!r}); from backends.udp.launch import _environment as e; print(e()['PYTHONPATH'])"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-P"], f"{TREE}:/somewhere"),
        (["-I"], f"{TREE}"),  # an agent that takes nothing from its environment hands nothing of it on
    ],
)
def test_a_worker_imports_from_where_the_agent_does(flags: list[str], expected: str) -> None:
    environment = {"PYTHONPATH": "/somewhere", "PATH": "/usr/bin:/bin"}
    asked = subprocess.run(
        [sys.executable, *flags, "-c", ASK], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert asked.stdout.strip() == expected, asked.stderr
