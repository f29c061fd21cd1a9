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


def run(folder: Path, flaky: int, bad: int) -> tuple[int, int, str]:
    """The exit codes of a whole run and of ``tests.again``, and what the latter printed."""
    (folder / "test_suite.py").write_text(SUITE.format(flaky=flaky, bad=bad))
    (folder / "pytest.ini").write_text("[pytest]\n")
    plain = ("-p", "no:xdist", "-p", "no:asyncio", "-p", "no:hypothesispytest")
    first = subprocess.run([sys.executable, "-m", "pytest", "-q", *plain], cwd=folder, capture_output=True, check=False)
    words = [sys.executable, "-c", "import sys; from tests.again import main; sys.exit(main(sys.argv[1:]))", *plain]
    second = subprocess.run(
        words, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, errors="replace", check=False
    )
    return first.returncode, second.returncode, second.stdout + second.stderr


@pytest.mark.parametrize("flaky", [1, 3, again.MOST])
def test_the_few_that_pass_alone_are_named_and_no_failure(tmp_path: Path, flaky: int) -> None:
    first, second, said = run(tmp_path, flaky, 0)
    assert (first, second) == (1, 0), said
    *_, last = said.splitlines()
    assert last.startswith("to be mended: passed only when run alone: ")
    assert all(f"test_suite.py::test_flaky[{number}]" in last for number in range(flaky))
    assert "test_good" not in said


@pytest.mark.parametrize(("flaky", "bad"), [(0, 1), (2, 1), (0, again.MOST)])
def test_one_that_fails_again_is_a_failure(tmp_path: Path, flaky: int, bad: int) -> None:
    first, second, said = run(tmp_path, flaky, bad)
    assert (first, second) == (1, 1), said
    assert f"{bad} failed" in said
    assert "to be mended" not in said


@pytest.mark.parametrize(("flaky", "bad"), [(again.MOST + 1, 0), (again.MOST, 1), (0, 40)])
def test_many_are_not_run_again(tmp_path: Path, flaky: int, bad: int) -> None:
    first, second, said = run(tmp_path, flaky, bad)
    assert (first, second) == (1, 1)
    assert said == f"{flaky + bad} tests failed: none of them is run again, which is done with {again.MOST} at the most\n"


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[1"])
def test_without_a_run_that_failed_it_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        again.FAILED.parent.mkdir(parents=True)
        again.FAILED.write_text(text)
    assert again.main([]) == 1
    assert capsys.readouterr().err.count("\n") == 1
