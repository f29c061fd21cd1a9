"""What happens before the command line is there? Ctrl-C while it is imported, and files of others where it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).parent / "flannelpy"

INTERRUPTED = """
import runpy, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
{start}
"""
AGENT = "from flannelpy.__main__ import main; sys.argv = ['flannelpy', 'status', '--help']; main()"
MODULE = "sys.argv = ['flannelpy', 'version']; runpy.run_module('flannelpy', run_name='__main__')"
LAB = f"sys.argv = ['lab', 'status']; runpy.run_path({str(ROOT / 'netns-lab/lab')!r}, run_name='__main__')"


@pytest.mark.parametrize(
    ("start", "module"),
    [
        *((start, module) for start in (AGENT, MODULE) for module in ("flannelpy.cli", "click", "flannelpy.core.errors")),
        (LAB, "netns_lab.cli"),
    ],
)
def test_ctrl_c_while_the_command_is_loaded_is_no_traceback(start: str, module: str) -> None:
    text = INTERRUPTED.format(module=module, start=start)
    ended = subprocess.run([sys.executable, "-P", "-c", text], capture_output=True, text=True, check=False, env=clean(), timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def clean() -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not name.startswith("FLANNEL")}, "PYTHONPATH": str(ROOT)}


AWAY = "lease list --etcd-endpoints=http://127.0.0.1:1"
COMMANDS = ("version", "--help", "status", "events", AWAY, "trace 10.5.9.2", "--nonsense")


@pytest.mark.parametrize("words", COMMANDS)
def test_a_closed_stream_is_one_to_nowhere(tmp_path: Path, words: str) -> None:
    """``>&-``: no abort of libuv's, no traceback, and nothing that is printed gets into a file that is opened."""
    env = {**clean(), "FLANNELPY_RUN_DIR": str(tmp_path / "run"), "FLANNELPY_STATE_DIR": str(tmp_path / "state")}
    command = f"{sys.executable} -P -m flannelpy {words}"

    def ended(closed: str) -> subprocess.CompletedProcess[str]:
        line = f"exec {command} {closed}"
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, env=env, cwd=tmp_path, timeout=60)

    usual = ended("")
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = ended(closed)
        assert done.returncode == usual.returncode, (closed, done.stderr)
        assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else usual.stdout)
        assert done.stderr == ("" if "2>&-" in closed else usual.stderr)


@pytest.mark.parametrize("name", ["netaddr", "click", "json", "grpc", "uvloop", "backends", "flannelpy"])
def test_what_lies_where_it_is_started_is_not_run(tmp_path: Path, name: str) -> None:
    """An operator in a directory that others write to: the console script runs nothing from there."""
    if not SCRIPT.exists():
        pytest.skip("not installed here")
    victim = tmp_path / "was here"
    evil = f"open({str(victim)!r}, 'w').close()\nraise SystemExit('evil')\n"
    (tmp_path / f"{name}.py").write_text(evil)
    (tmp_path / "net.json").write_text('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
    env = {name: value for name, value in clean().items() if name != "PYTHONPATH"}
    for words in (("version",), ("config", "check", "net.json"), ("lease", "list", "--etcd-endpoints=http://127.0.0.1:1")):
        ended = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False, cwd=tmp_path, env=env, timeout=60)
        assert ended.returncode == (1 if words[0] == "lease" else 0), ended.stderr
        assert "evil" not in ended.stderr
    assert not victim.exists()
