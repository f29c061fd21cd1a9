"""udp's kernel engine, on a kernel that has fou and ipip: one boot of a guest (guest.py), in which inside.py does the checks.

The figures are ratios of an emulated machine. Under load they are rough; pytest -s shows them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.guest import LIMIT_S, NoGuestError, boot

pytestmark = pytest.mark.timeout(LIMIT_S + 60)


CHECKS = (
    "objects",
    "auto is the kernel",
    "kernel to kernel",
    "a subnet of nobody is unreachable",
    "guard",
    "a restart loses no packet",
    "goodput of kernels",
    "from kernel to userspace",
    "kernel and userspace",
    "on a wire userspace reads many datagrams at once",
    "outer checksums that somebody took away are back",
    "goodput across",
    "goodput in user space",
    "back to the kernel",
    "a port that is taken",
)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the guest said."""
    words = [sys.executable, "-m", "tests.kernels.inside"]
    if (compiler := shutil.which("cc")) is not None:
        program = tmp_path_factory.mktemp("kernels") / "packet_pump"
        source = Path(__file__).with_name("packet_pump.c")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)], check=True)
        words = ["env", f"PACKET_PUMP={program}", *words]
    try:
        said = boot(words, LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")
    print("\n".join(re.findall("^@@ (?:kernel|figure) .*", said, re.MULTILINE)))
    return said


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_guest(console: str, check: str) -> None:
    assert re.search(rf"^@@ ok {check} \(", console, re.MULTILINE), console


def test_the_kernel_outdoes_a_pump_of_one_packet_a_call(console: str) -> None:
    """The least that the engine is for; on an idle machine it is 20 times and more, and beside vxlan."""
    figures = {name: float(value) for name, value in re.findall(r"^@@ figure (.*?): (\d+) Mbit/s", console, re.MULTILINE)}
    assert figures["kernel to kernel"] > figures["packet pump in C"], figures
    assert all(value > 0 for name, value in figures.items() if name != "packet pump in C"), figures
