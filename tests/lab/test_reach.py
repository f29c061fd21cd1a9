"""Does ``lab graph`` draw who reaches whom in a lab that stands? As a person types it, another process each time.

h1 ==== vxlan ==== h2
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

COMMAND = Path(__file__).resolve().parents[2] / "netns-lab" / "lab"


def test_who_reaches_whom_is_drawn(tmp_path: Path) -> None:
    name, out = f"tgr{os.getpid()}", tmp_path / "drawn.svg"

    def lab(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, COMMAND, *words, "--name", name], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    assert "no lab named" in lab("graph", "--out", str(out), code=1)
    try:
        lab("up", "--hosts", "2")
        assert "cannot be written" in lab("graph", "--out", "/proc/nowhere/drawn.svg", code=1)
        deadline = time.monotonic() + 60
        while True:
            assert f"drawn: {out}" in lab("graph", "--out", str(out))
            drawn = out.read_text()
            if '<line class="l good"' in drawn:
                break
            assert time.monotonic() < deadline, drawn
        assert "192.168.50.11, vxlan, MTU 1450" in drawn
    finally:
        lab("down")
