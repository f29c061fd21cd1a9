"""What was on a wire? tcpdump inside a namespace for as long as a block runs."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from netns_lab.errors import LabError
from netns_lab.namespaces import Namespace, Process, run

_COUNTS = re.compile(r"(\d+) packets? captured, (\d+) packets? received by filter")


@dataclass(frozen=True, slots=True)
class Capture:
    """A pcap file; packets are in it as they come, all of them once the block has ended."""

    path: Path

    async def lines(self, *options: str) -> list[str]:
        """One line a packet, as ``tcpdump -n`` prints it."""
        outcome = await run(["tcpdump", "-n", *options, "-r", str(self.path)], who="tcpdump")
        return outcome.stdout.splitlines()


@asynccontextmanager
async def capture(namespace: Namespace, device: str, path: Path, filter_: str = "") -> AsyncIterator[Capture]:
    """Write what passes ``device`` to ``path``; the block starts once tcpdump listens. Raises LabError where it cannot."""
    log = path.with_suffix(".log")
    # --immediate-mode: without it the kernel hands over full blocks only, and the last packets stay behind (pcap(3PCAP)).
    words = ["tcpdump", "-n", "-U", "--immediate-mode", "-Z", "root", "-i", device, "-w", str(path), *filter_.split()]
    process = namespace.spawn(f"tcpdump {device}", words, log=log, lasting=False)
    try:
        deadline = time.monotonic() + 5
        while "listening on" not in process.printed():
            if process.exit_code is not None or time.monotonic() > deadline:
                raise LabError(f"{namespace.name}: tcpdump on {device} does not start: {process.tail(1)}")
            await asyncio.sleep(0.01)
        yield Capture(path)
        await _drain(process)
    finally:
        await process.stop(number=signal.SIGINT)


async def _drain(process: Process) -> None:
    """Wait until what the kernel has for tcpdump is written: SIGINT would have it leave the rest. It counts both at a SIGUSR1."""
    deadline, known = time.monotonic() + 10, 0
    while time.monotonic() < deadline and process.exit_code is None:
        process.send(signal.SIGUSR1)
        while len(counts := _COUNTS.findall(process.printed())) == known:
            if time.monotonic() > deadline or process.exit_code is not None:
                return
            await asyncio.sleep(0.01)
        known = len(counts)
        captured, received = counts[-1]
        if captured == received:
            return
        await asyncio.sleep(0.01)
