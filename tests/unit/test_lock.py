"""Is the lock the owner's alone? Nobody else on the host can hold it, be taken for its holder, or have us write somewhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flannelpy.agent.lock import hold_lock
from flannelpy.core.errors import FlannelpyError


def test_only_its_owner_may_open_the_lock_also_one_that_is_there(tmp_path: Path) -> None:
    """flock(2) needs no right to write: who may read the file could keep the agent from starting."""
    path = tmp_path / "lock"
    path.touch(mode=0o644)
    with hold_lock(tmp_path) as held:
        assert held
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_second_agent_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path),
        pytest.raises(FlannelpyError, match=rf"another flannelpy \(process {os.getpid()}\) uses it"),
        hold_lock(tmp_path),
    ):
        pass


@pytest.mark.parametrize("text", ["4194305\n", "", "x" * 100, "-1"])
def test_a_process_that_is_gone_is_not_named(tmp_path: Path, text: str) -> None:
    with hold_lock(tmp_path):
        (tmp_path / "lock").write_text(text)
        with pytest.raises(FlannelpyError, match="another process uses it"), hold_lock(tmp_path):
            pass


def test_a_link_in_its_place_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("somebody's")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(FlannelpyError, match="Too many levels of symbolic links"), hold_lock(tmp_path):
        pass
    assert victim.read_text() == "somebody's"


def test_a_fifo_in_its_place_does_not_stop_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with hold_lock(tmp_path) as held:
        assert held
