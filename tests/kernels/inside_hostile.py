"""What do hostile leases cost on backends that only some kernels have? Runs in the guest of ``guest.py``: the lab's own test."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.kernels.inside import check, say, shell

TEST = "tests/lab/test_hostile_leases.py"


def main() -> None:
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy vxlan tun nf_tables ipip wireguard; ip link set lo up")
    for backend in ("ipip", "wireguard"):
        with check(f"hostile leases, {backend}"):
            words = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", "-k", backend, TEST]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-6000:]
            assert "1 passed" in done.stdout, done.stdout[-500:]
            say("figure", next(line for line in done.stdout.splitlines() if " leases, " in line))
    say("end")


if __name__ == "__main__":
    main()
