"""Is what failed in a whole run told from what fails again, alone?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import again

ROOT = Path(__file__).parents[2]

SUITE = """
from pathlib import Path
import pytest

def test_good():
    pass

@pytest.mark.parametrize("number", range({flaky}))
def test_flaky(number):
    seen = Path(f"seen-{{number}}")
    if not seen.exists():
        seen.touch()
        raise AssertionError("beside others")

@pytest.mark.parametrize("number", range({bad}))
def test_bad(number):
    assert number < 0
"""


def run(folder: Path, flaky: int, bad: int) -> tuple[int, str]:
    """The exit code, and what was printed."""
    (folder / "test_suite.py").write_text(SUITE.format(flaky=flaky, bad=bad))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:xdist -p no:asyncio -p no:hypothesispytest\n")
    words = [sys.executable, "-c", "import sys; from tests.again import main; sys.exit(main(['-q', *sys.argv[1:]]))"]
    done = subprocess.run(
        words, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, errors="replace", check=False
    )
    assert sorted(each.name for each in folder.glob(".pytest_cache")) == []
    return done.returncode, done.stdout + done.stderr


def test_a_run_in_which_nothing_fails_is_run_once(tmp_path: Path) -> None:
    code, said = run(tmp_path, 0, 0)
    assert (code, said.count("passed"), "alone" in said) == (0, 1, False), said


@pytest.mark.parametrize("flaky", [1, 3, again.MOST])
def test_the_few_that_pass_alone_are_named_and_no_failure(tmp_path: Path, flaky: int) -> None:
    code, said = run(tmp_path, flaky, 0)
    assert code == 0, said
    *_, last = said.splitlines()
    assert last.startswith("to be mended: passed only when run alone: ")
    assert all(f"test_suite.py::test_flaky[{number}]" in last for number in range(flaky))
    assert "test_good" not in said


@pytest.mark.parametrize(("flaky", "bad"), [(0, 1), (2, 1), (0, again.MOST)])
def test_one_that_fails_again_is_a_failure(tmp_path: Path, flaky: int, bad: int) -> None:
    code, said = run(tmp_path, flaky, bad)
    assert code == 1, said
    assert f"{bad} failed" in said.rpartition("run again alone")[2]
    assert "to be mended" not in said


@pytest.mark.parametrize(("flaky", "bad"), [(again.MOST + 1, 0), (again.MOST, 1), (0, 40)])
def test_many_are_not_run_again(tmp_path: Path, flaky: int, bad: int) -> None:
    code, said = run(tmp_path, flaky, bad)
    assert code == 1
    *_, last = said.splitlines()
    assert last == f"{flaky + bad} tests failed: none of them is run again, which is done with {again.MOST} at the most"


def test_what_is_no_failure_of_a_test_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import no_such_module\n")
    code, said = run(tmp_path, 0, 1)
    assert code not in (0, 1), said
    assert "alone" not in said
