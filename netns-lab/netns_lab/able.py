"""Can this machine carry what a lab is to have? Asked before anything is made, where the answer would come late and unclear."""

from __future__ import annotations

import subprocess

from flannelpy.kernel.wireguard_go import installed
from netns_lab.errors import LabError

TRIED = ("unshare", "--net", "ip", "link", "add", "labtry", "type", "wireguard")
"""In a namespace of its own, which goes with it; the kernel loads its module where there is one."""


def demand(backend: str) -> None:
    """Raises LabError, which says what is missing."""
    if backend == "wireguard" and installed() is None and not _kernel_has_wireguard():
        raise LabError(
            "backend wireguard: this kernel has no wireguard devices, and no wireguard-go is in PATH; "
            "expected the module (modprobe wireguard) or that program (apt-get install wireguard-go)"
        )


def _kernel_has_wireguard() -> bool:
    try:
        return subprocess.run(TRIED, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    except OSError:
        return True  # what cannot be tried is found out by the agents
