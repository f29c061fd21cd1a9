"""`make bench-udp GUEST=1`: bench_udp where the kernel has FOU, ipip and WireGuard, in the guest of ``guest.py``.

    python -m tests.kernels.bench_udp [options of netns_lab.bench_udp]

The guest is emulated: everything in it is some 20 times slower, Python still more than the kernel. What one kernel's way is to
another's says something; what user space is to either, and any time, does not. The report is printed, and written to lab-out/ as
the others are, with ``-guest`` in its name.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from netns_lab.bench_udp_report import OUT
from tests.kernels.guest import LIMIT_S, NoGuestError, boot

SUFFIX = "-guest"


def inside(words: list[str]) -> None:
    """In the guest: measure, and say the files on the console, which is all that comes out of it."""
    from netns_lab.bench_udp import main

    subprocess.run(["modprobe", "-a", "veth", "tun", "vxlan", "fou", "ipip"], check=False)
    sys.argv[1:] = [*words, "--tcp-alone", f"--suffix={SUFFIX}"]
    code = main()
    for path in sorted(OUT.glob(f"bench-udp*{SUFFIX}.*")):
        print(f"@@ file {path.name}\n{path.read_text()}@@ end", flush=True)
    print(f"@@ code {code}", flush=True)


def main(words: list[str]) -> int:
    """bench_udp's exit code; 1 where it did not come to its end."""
    if words[:1] == ["--inside"]:
        inside(words[1:])
        return 0
    try:
        said = boot(
            ["env", "TERM=dumb", "COLUMNS=200", sys.executable, "-m", "tests.kernels.bench_udp", "--inside", *words], LIMIT_S
        )
    except (NoGuestError, TimeoutError) as reason:
        print(f"no guest: {reason}", file=sys.stderr)
        return 1
    OUT.mkdir(exist_ok=True)
    for name, text in re.findall(r"^@@ file (bench-udp[\w.-]+)\n(.*?)@@ end$", said, re.MULTILINE | re.DOTALL):
        Path(OUT, name).write_text(text)
    print(re.sub(r"^@@ file .*?^@@ end$\n?", "", said, flags=re.MULTILINE | re.DOTALL))
    code = re.search(r"^@@ code (\d+)", said, re.MULTILINE)
    return int(code[1]) if code else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
