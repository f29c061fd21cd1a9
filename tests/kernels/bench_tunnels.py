"""Is a WireGuard or ipip tunnel of the agent as fast as one made by hand? Boots a guest whose kernel has both, and measures there.

    python -m tests.kernels.bench_tunnels --rounds 25

Without KVM the guest is emulated: rates say nothing, ratios do.
"""

from __future__ import annotations

import argparse
import re
import sys

from rich.console import Console
from rich.table import Table

from tests.kernels.guest import LIMIT_S, NoGuestError, boot

PROMISED = 0.97
FIGURE = re.compile(r"^@@ figure (.+) (\S+) x \((\S+) to (\S+)\) ", re.MULTILINE)


def main() -> int:
    """0, or 1 where a figure is missing or surely less than promised."""
    parser = argparse.ArgumentParser(prog="bench_tunnels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="at least six")
    rounds = max(6, parser.parse_args().rounds)
    try:
        console = boot([sys.executable, "-m", "tests.kernels.inside_tunnels", str(rounds)], LIMIT_S)
    except NoGuestError as reason:
        print(f"bench_tunnels: no guest: {reason}", file=sys.stderr)
        return 1
    figures = FIGURE.findall(console)
    table = Table("Type", "TCP to the same made by hand", "95 %", "target")
    for name, median, low, high in figures:
        table.add_row(name, median, f"{low} to {high}", f"at least {PROMISED}")
    Console().print(table)
    if failed := re.findall(r"^@@ failed .*", console, re.MULTILINE):
        print("\n".join(failed), file=sys.stderr)
    return 1 if failed or not figures or any(float(high) < PROMISED for _name, _median, _low, high in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
