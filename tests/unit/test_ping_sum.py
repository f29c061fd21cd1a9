"""Does ``flannelpy ping`` sum up what came back, also where ctrl-C ends it?"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from signal import SIGINT

import pytest

from flannelpy.commands.trace.ping import Sum, conclude


@pytest.mark.parametrize(
    ("asked", "small", "full", "code", "said"),
    [
        (3, 3, 3, 0, "10.5.9.0 answers: 3 of 3, small and full"),
        (7, 7, 5, 3, "lost: 2 of 7 with 1450 bytes; flannelpy trace 10.5.9.0 says what stops them"),
        (2, 0, 0, 3, "lost: 2 of 2 with 84 bytes, 2 of 2 with 1450 bytes; flannelpy trace 10.5.9.0 says what stops them"),
    ],
)
def test_the_sum_counts_what_was_asked(
    capsys: pytest.CaptureFixture[str], asked: int, small: int, full: int, code: int, said: str
) -> None:
    assert conclude(Sum(asked, Counter({84: small, 1450: full}), (84, 1450), "10.5.9.0")) == code
    assert capsys.readouterr().out == f"\n{said}\n"


ANSWERING = """
import sys
from flannelpy.commands.trace import asking
first = int(sys.argv.pop(1))
async def ask(kernel, asked, *, enough, tries):
    for question, state in asked.items():
        state.rtt_s = 0.001 if first else None
asking.ask = ask
from flannelpy.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("answered", "code", "said"), [(1, 0, r"10\.5\.7\.9 answers: (\d) of \1, small and full"), (0, 3, r"lost: (\d) of \1 ")]
)
def test_ctrl_c_ends_it_with_the_sum(tmp_path: Path, answered: int, code: int, said: str) -> None:
    env = tmp_path / "subnet.env"
    env.write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
    options = [f"--subnet-file={env}", f"--run-dir={tmp_path}", "--etcd-endpoints=http://127.0.0.1:9"]
    words = [sys.executable, "-uc", ANSWERING, str(answered), "ping", "10.5.7.9", "--count=1000", *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline().startswith("10.5.7.9: 84 bytes")
            running.send_signal(SIGINT)
            out, err = running.communicate(timeout=20)
        finally:
            running.kill()
    assert (running.returncode, err) == (code, "")
    assert re.search(said, out), out
