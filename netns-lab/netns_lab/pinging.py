"""Do packets arrive? iputils' ping, once or as a stream, and what its output says (ping(8))."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from netns_lab.errors import LabError
from netns_lab.namespaces import Namespace, Process

_SUMMARY = re.compile(r"(\d+) packets transmitted, (\d+) received")
_TIMES = re.compile(r"rtt min/avg/max/mdev = [\d.]+/([\d.]+)/")
_ANSWER = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from .*icmp_seq=(\d+) .*time=([\d.]+) ms", re.MULTILINE)
_UNANSWERED = re.compile(r"no answer yet for icmp_seq=(\d+)")
_WRAP = 65536
LAST_ANSWERS_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Ping:
    """What became of a few echo requests; ``rtt_ms`` is their mean, None where none came back."""

    sent: int
    received: int
    rtt_ms: float | None = None

    @property
    def ok(self) -> bool:
        return self.sent > 0 and self.received == self.sent


@dataclass(slots=True)
class Pinging:
    """A stream of echo requests; complete once the block has ended.

    The very last request is left out of the count where it was under way when the stream was stopped.
    """

    sent: int = 0
    received: int = 0
    gaps: tuple[tuple[int, int], ...] = ()
    """Runs of lost requests as (first, last) number, from 1."""
    longest_ms: float = 0.0
    """The longest time between two answers."""
    log: Path = field(default_factory=Path)

    @property
    def lost(self) -> int:
        return self.sent - self.received

    def answers(self) -> int:
        """How many answers there are so far; while the block runs."""
        return len(_ANSWER.findall(self.log.read_text(errors="replace")))

    def unanswered(self) -> int:
        """How many requests had no answer when the next one left, so far; while the block runs."""
        return len(_UNANSWERED.findall(self.log.read_text(errors="replace")))


async def ping(source: Namespace, address: str, *, count: int = 1, wait_s: float = 2.0) -> Ping:
    """Send ``count`` requests, wait ``wait_s`` for the last answer."""
    words = ["ping", "-n", "-q", "-c", str(count), "-i", "0.01", "-W", f"{wait_s:g}", address]
    outcome = await source.attempt(*words, timeout_s=wait_s + count * 0.05 + 10)
    summary = _SUMMARY.search(outcome.stdout)
    if summary is None:  # no route at all: ping says so on stderr and sends nothing
        return Ping(count, 0)
    times = _TIMES.search(outcome.stdout)
    return Ping(int(summary[1]), int(summary[2]), float(times[1]) if times else None)


@asynccontextmanager
async def pinging(
    source: Namespace, address: str, *, per_second: float, log: Path, first_answer_within_s: float | None = 5.0
) -> AsyncIterator[Pinging]:
    """Ping for as long as the block runs; it starts after the first answer, or at once where no bound for it is given.

    Raises LabError where the first answer does not come in time.
    """
    words = ["ping", "-n", "-D", "-O", "-i", f"{1 / per_second:.4f}", address]
    process = source.spawn(f"ping to {address}", words, log=log, lasting=False)
    result = Pinging(log=log)
    try:
        if first_answer_within_s is not None:
            await _first_answer(process, address, first_answer_within_s)
        yield result
    finally:
        await process.stop(number=signal.SIGINT)
        read_stream(process.printed(), result, from_first_answer=first_answer_within_s is not None)


@dataclass(frozen=True, slots=True)
class Tally:
    """Echo requests and their answers as the kernel has counted them, so far."""

    sent: int
    answered: int

    @property
    def lost(self) -> int:
        return self.sent - self.answered


class Steady:
    """A stream of many requests a second; ``tally`` may be asked for while the block runs and after it."""

    def __init__(self, source: Namespace) -> None:
        self._source = source
        self._final: Tally | None = None

    async def tally(self) -> Tally:
        """What was sent and answered, so far; complete after the block."""
        if self._final is not None:
            return self._final
        text = await self._source.exec("nft", "list", "counters", "table", "ip", _TALLY)
        counts = dict(re.findall(r"counter (\w+) \{\s+packets (\d+)", text))
        return Tally(int(counts["sent"]), int(counts["answered"]))

    async def drain(self, within_s: float) -> None:
        """Give the last answers time to come."""
        deadline = time.monotonic() + within_s
        now = await self.tally()
        while now.lost and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            now = await self.tally()
        self._final = now


_TALLY = "tally"
_COUNT = f"""
add table ip {_TALLY}
add counter ip {_TALLY} sent
add counter ip {_TALLY} answered
add chain ip {_TALLY} leaving {{ type filter hook output priority 0; }}
add chain ip {_TALLY} coming {{ type filter hook input priority 0; }}
add rule ip {_TALLY} leaving ip daddr ADDRESS icmp type echo-request counter name sent
add rule ip {_TALLY} coming ip saddr ADDRESS icmp type echo-reply counter name answered
"""


@asynccontextmanager
async def pinging_steadily(source: Namespace, address: str, *, per_second: float, log: Path) -> AsyncIterator[Steady]:
    """Ping for as long as the block runs, at a rate that holds also while no answers come; up to some thousands a second.

    The kernel counts, because a burst of answers is more than ping's socket can hold.
    """
    await source.exec("nft", "-f", "-", stdin=_COUNT.replace("ADDRESS", address))
    # While an answer is due, ping sleeps for 10 ms and then sends one request; with a preload, all that would have been due.
    words = ["ping", "-n", "-q", "-i", f"{1 / per_second:.4f}", "-l", "50", address]
    process = source.spawn(f"ping to {address}", words, log=log, lasting=False)
    stream = Steady(source)
    try:
        yield stream
    finally:
        await process.stop(number=signal.SIGINT)
        await stream.drain(LAST_ANSWERS_WITHIN_S)
        await source.exec("nft", "delete", "table", "ip", _TALLY)


async def _first_answer(process: Process, address: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not _ANSWER.search(process.printed()):
        if time.monotonic() > deadline or process.exit_code is not None:
            raise LabError(f"no answer from {address} within {within_s:g} s: {process.tail(1)}")
        await asyncio.sleep(0.01)


def read_stream(text: str, result: Pinging, *, from_first_answer: bool = False) -> None:
    """Fill in ``result`` from the output of ``ping -D -O``; what was sent before the first answer is before the block, and counts
    only where that is not waited for. Raises LabError where there is no summary.
    """
    summary = _SUMMARY.search(text)
    if summary is None:
        raise LabError(f"ping left no summary: {text[-200:]!r}")
    sent = int(summary[1])
    answered: set[int] = set()
    times: list[float] = []
    latest = 0
    for at, number, rtt in _ANSWER.findall(text):
        sequence = _unwrap(int(number), latest)
        latest = max(latest, sequence)
        answered.add(sequence)
        times.append(float(at) - float(rtt) / 1000)
    last_judged = sent if sent in answered or _said_lost(text, sent) else sent - 1
    first = min(answered, default=1) if from_first_answer else 1
    missing = [number for number in range(first, last_judged + 1) if number not in answered]
    result.sent = last_judged - first + 1
    result.received = result.sent - len(missing)
    result.gaps = _runs(missing)
    result.longest_ms = max((1000 * (b - a) for a, b in pairwise(times)), default=0.0)


def _said_lost(text: str, sequence: int) -> bool:
    return any(int(number) == sequence % _WRAP for number in _UNANSWERED.findall(text)[-3:])


def _unwrap(number: int, latest: int) -> int:
    """icmp_seq has 16 bits; the stream may be longer."""
    near = latest - latest % _WRAP + number
    return min((near - _WRAP, near, near + _WRAP), key=lambda candidate: abs(candidate - latest))


def _runs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return tuple(runs)
