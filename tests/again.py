"""Does a test that failed in a whole run fail again, alone?

    python -m tests.again OPTION ...        runs pytest with these, and the few that failed once more

A whole run takes a lab of namespaces beside two others on whatever machine there is, for twenty minutes: one test of nine thousand
that was not patient enough would have all of them run again. So the few that failed run once more, one by one, and a second failure
is one. It is no way for a test to be green that is not: each is named in the last line, as one to be mended. What failed is written
to a folder of this run: another one beside it has its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

MOST = 5
"""More failures than this are a change that does not work."""
FAILURES, INTERRUPTED = 1, 130
"""Exit codes: pytest's where tests failed, and a shell's after Ctrl-C."""


def main(options: Sequence[str]) -> int:
    """The exit code: 0 where all pass, or each of the few that failed passes alone."""
    try:
        with TemporaryDirectory(prefix="flannelpy-tests-") as folder:
            code = _pytest(["-o", f"cache_dir={folder}", *options])
            return _again(Path(folder)) if code == FAILURES else code
    except KeyboardInterrupt:
        return INTERRUPTED


def _again(folder: Path) -> int:
    try:
        failed = sorted(json.loads((folder / "v/cache/lastfailed").read_text()))
    except (OSError, ValueError) as error:
        print(f"what failed cannot be read: {error}", file=sys.stderr)
        return FAILURES
    if not 0 < len(failed) <= MOST:
        print(f"{len(failed)} tests failed: none of them is run again, which is done with {MOST} at the most", file=sys.stderr)
        return FAILURES
    print(f"{len(failed)} failed beside others, and run again alone: {', '.join(failed)}", flush=True)
    code = _pytest(["-q", "-p", "no:cacheprovider", *failed])
    if code == 0:
        print(f"to be mended: passed only when run alone: {', '.join(failed)}", flush=True)
    return code


def _pytest(words: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
