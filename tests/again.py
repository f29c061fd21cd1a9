"""Does a test that failed in a whole run fail again, alone?

    python -m tests.again [OPTION ...]          after a run of pytest that failed, in the same folder

A whole run takes a lab of namespaces beside two others on whatever machine there is, for twenty minutes: one test of eight thousand
that was not patient enough would have all of them run again. So the few that failed run once more, one by one, and a second failure
is one. It is no way for a test to be green that is not: each is named in the last lines, as one to be mended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FAILED = Path(".pytest_cache/v/cache/lastfailed")
MOST = 5
"""More failures than this are a change that does not work."""


def main(options: Sequence[str]) -> int:
    """The exit code: 0 where each of the few that failed passes alone."""
    try:
        failed = sorted(json.loads(FAILED.read_text()))
    except (OSError, ValueError) as error:
        print(f"{FAILED}: {error}: expected what pytest writes of a run that failed", file=sys.stderr)
        return 1
    if not 0 < len(failed) <= MOST:
        print(f"{len(failed)} tests failed: none of them is run again, which is done with {MOST} at the most", file=sys.stderr)
        return 1
    print(f"{len(failed)} failed beside others, and run again alone: {', '.join(failed)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "pytest", "-q", *options, *failed], check=False).returncode
    if code == 0:
        print(f"to be mended: passed only when run alone: {', '.join(failed)}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
