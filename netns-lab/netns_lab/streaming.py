"""Does a TCP stream between two containers stand still, and for how long? Paced, timed by the receiver in a process of its own.

The pace leaves the machine room for everything else; a packet that is lost stands out as a retransmission timeout, 200 ms at the
least (RFC 6298, Linux' TCP_RTO_MIN), one that is late as its lateness.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from netns_lab.errors import TimedOutError
from netns_lab.namespaces import Namespace, Process

PORT = 5311

RECEIVER = """
import socket, sys, time
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
stream, _ = server.accept()
stream.settimeout(120)
last = time.monotonic()
whole = 0
while data := stream.recv(1 << 20):
    now = time.monotonic()
    whole += len(data)
    if now - last > 0.02:
        print("gap", f"{last:.3f} {now - last:.4f}", flush=True)
    last = now
print("end", whole, flush=True)
"""

SENDER = """
import signal, socket, sys, time
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=120)
stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
piece, whole = bytes(8192), 0

until = None
signal.signal(signal.SIGTERM, lambda *_: globals().update(until=0))
while until is None:
    stream.sendall(piece)
    if not whole:
        print("begun", flush=True)
    whole += len(piece)
    time.sleep(0.002)
stream.shutdown(socket.SHUT_WR)
print("sent", whole, flush=True)
"""
"""Some 30 Mbit/s."""


@dataclass(slots=True)
class Stream:
    """One that runs, or has run; ``sent`` and ``received`` in bytes, once it has ended."""

    log: Path
    sent: int = -1
    received: int = -1

    def longest_s(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest time, in seconds, in which nothing came, of those that began in this span of time.monotonic()."""
        words = [line.split() for line in self.log.read_text().splitlines() if line.startswith("gap ")]
        return max((float(gap) for _, began, gap in words if since <= float(began) < until), default=0.0)


@asynccontextmanager
async def streaming(source: Namespace, target: Namespace, address: str, log: Path) -> AsyncIterator[Stream]:
    """A stream for the time of the block. Raises TimedOutError where it does not begin or end."""
    python, stream = [sys.executable, "-c"], Stream(log)
    sending = log.with_suffix(".sent")
    receiver = target.spawn(f"stream from {source.name}", [*python, RECEIVER, str(PORT)], log=log, lasting=False)
    try:
        await _said(receiver, "listening")
        sender = source.spawn(f"stream to {address}", [*python, SENDER, address, str(PORT)], log=sending, lasting=False)
        try:
            await _said(sender, "begun")
            yield stream
        finally:
            await sender.stop(30.0)
        await receiver.wait(60.0)
        stream.sent, stream.received = _number(sending, "sent"), _number(log, "end")
    finally:
        if receiver.exit_code is None:
            await receiver.kill()


def _number(log: Path, word: str) -> int:
    return next((int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(f"{word} ")), -1)


async def _said(process: Process, word: str, within_s: float = 30.0) -> None:
    try:
        async with asyncio.timeout(within_s):
            while word not in process.printed():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise TimedOutError(f"{process.role}: no {word!r} within {within_s:g} s: {process.tail()}") from None
