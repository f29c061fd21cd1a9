"""How does the agent begin? With right settings and the capability it needs, and with a process that ends when it ends."""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path

from flannelpy.core.errors import FlannelpyError
from flannelpy.options import Given
from flannelpy.settings import load

FEWEST_FILES, FILES = 64, 65536
"""Open files without which the agent cannot be (gRPC ends the process without a word), and as many as it ever asks for."""

LEAST_MEMORY = 256 << 20
"""Bytes of address space without which libraries cannot be loaded, or end the process without a word (ulimit -v)."""

RANDOM = Path("/dev/urandom")
"""What gRPC aborts the process without."""

CAP_NET_ADMIN = 12
"""Its bit in a capability set, linux/capability.h."""


def run_agent(given: Given) -> int:
    """Run until stopped; 0 after a clean stop. Raises UsageError for wrong settings, before anything else is looked at."""
    settings = load(given, os.environ)
    if not may_configure_networks(Path("/proc/self/status").read_text()):
        raise FlannelpyError("CAP_NET_ADMIN is missing: run it as root, or give the service AmbientCapabilities=CAP_NET_ADMIN")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the agent hears it: it asks for a look at everything, and never ends us
    provide_files()
    check_host()

    from flannelpy.agent import heap

    heap.prepare()

    import uvloop

    from flannelpy import logs
    from flannelpy.agent.agent import run

    heap.keep()
    logs.set_up(settings.log_level, settings.log_format)
    code = uvloop.run(run(settings))
    # What is open closes with the process. To take gRPC and some hundred modules apart first lasts 0.1 s, in which packets wait.
    logging.shutdown()
    os._exit(code)


def provide_files() -> None:
    """Take as many open files as may be had. Raises FlannelpyError where they are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < FEWEST_FILES:
        raise FlannelpyError(f"at most {most} open files (ulimit -n, LimitNOFILE=): expected {FEWEST_FILES} or more")


def check_host() -> None:
    """Is there what the agent's libraries end the process without? Raises FlannelpyError."""
    room, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if room != resource.RLIM_INFINITY and room < LEAST_MEMORY:
        has, least = room >> 20, LEAST_MEMORY >> 20
        raise FlannelpyError(f"at most {has} MiB of address space (ulimit -v, LimitAS=): expected {least} or more")
    if not os.access(RANDOM, os.R_OK):
        raise FlannelpyError(f"{RANDOM} cannot be read: expected it, as every /dev has it")


def may_configure_networks(status: str) -> bool:
    """Whether the process of this ``/proc/PID/status`` has CAP_NET_ADMIN in effect; being root is neither needed nor enough."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
    return True  # a kernel that does not say: let it try
