"""How is a module loaded that the kernel does not load by itself? By modprobe(8), beside the loop, and not again and again."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from contextlib import suppress

from flannelpy.core.environment import bare

MODPROBE_S = 5.0
"""How long modprobe may take, in seconds."""

AGAIN_S = 60.0
"""Between one try and the next for the same module, in seconds: a host without it would run a program at each retry."""


class Modules:
    """What was tried, and when."""

    def __init__(self) -> None:
        self._tried: dict[str, float] = {}

    async def load(self, module: str) -> None:
        """Without a word: what came of it, the kernel says."""
        now = _now()
        if now - self._tried.get(module, -AGAIN_S) < AGAIN_S:
            return
        self._tried[module] = now
        command = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if command is not None:
            await asyncio.to_thread(_run, [command, "-q", module])


def _run(command: list[str]) -> None:
    silent = subprocess.DEVNULL
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, stdin=silent, stdout=silent, stderr=silent, timeout=MODPROBE_S, check=False, env=bare(os.environ))


def _now() -> float:
    return time.monotonic()
