"""How is something run inside a network namespace? One namespace as a thing that commands run in.

Commands enter by ``nsenter --net`` and not by ``ip netns exec``: that one also makes a mount namespace, puts a fresh /sys over the
old one (which hides the cgroups) and binds /etc/netns. Whatever runs on is started under ``setpriv --pdeathsig`` where it must not
outlive the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netns_lab.errors import LabError, TimedOutError
from netns_lab.ledger import NETNS, Ledger

PLAIN = {"LC_ALL": "C", "LANG": "C"}
"""Tools print numbers and words as their manual pages show them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command that has ended left: exit code (negative: the signal that ended it) and what it printed."""

    code: int
    stdout: str
    stderr: str


class Process:
    """A running child. Its output goes to ``log``."""

    def __init__(self, child: subprocess.Popen[bytes], role: str, log: Path) -> None:
        self._child = child
        self.role = role
        self.log = log

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._child.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; to one that has ended, nothing is sent."""
        self._child.send_signal(number)

    async def wait(self, within_s: float) -> int:
        """Its exit code. Raises TimedOutError where it still runs after ``within_s``."""
        if self._child.poll() is None:
            loop = asyncio.get_running_loop()
            handle = os.pidfd_open(self.pid)
            ended = asyncio.Event()
            loop.add_reader(handle, ended.set)
            try:
                async with asyncio.timeout(within_s):
                    await ended.wait()
            except TimeoutError:
                raise TimedOutError(f"{self.role} (pid {self.pid}) still runs after {within_s:g} s") from None
            finally:
                loop.remove_reader(handle)
                os.close(handle)
        return self._child.wait()

    async def kill(self) -> int:
        """SIGKILL, and its exit code."""
        self._child.kill()
        return await self.wait(5.0)

    async def stop(self, within_s: float = 5.0, number: signal.Signals = signal.SIGTERM) -> int:
        """SIGTERM (or ``number``), after ``within_s`` SIGKILL; its exit code."""
        self.send(number)
        try:
            return await self.wait(within_s)
        except TimedOutError:
            return await self.kill()

    def printed(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 5) -> str:
        """The end of what it printed, in one line."""
        try:
            return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:]) or "it printed nothing"
        except OSError:
            return "no log"


class Namespace:
    """One network namespace of a lab, by the name that ``ip netns`` shows."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self.name = name
        self._ledger = ledger

    @property
    def path(self) -> Path:
        return NETNS / self.name

    async def bind(self, existing: Path) -> None:
        """Give this name to a namespace that somebody else has made; the lab takes the name away with the others."""
        self._ledger.note_namespaces([self.name])
        self.path.touch()
        # Of a path below /proc/PID/root, the canonical form would lead into our own mounts, not those of the process.
        outcome = await run(["mount", "--no-canonicalize", "--bind", str(existing), str(self.path)])
        if outcome.code:
            raise LabError(f"{self.name}: {outcome.stderr.strip()}")
        self._ledger.note_inodes([self.name])

    def command(self, *words: str) -> list[str]:
        """The words as a command that runs in here."""
        return ["nsenter", f"--net={self.path}", "--", *words]

    async def exec(self, *words: str, timeout_s: float = 30.0, stdin: str | None = None) -> str:
        """Run to the end; its standard output. Raises LabError with what it said where it fails, TimedOutError where it hangs."""
        outcome = await self.attempt(*words, timeout_s=timeout_s, stdin=stdin)
        if outcome.code:
            said = (outcome.stderr.strip() or outcome.stdout.strip() or "nothing was said").splitlines()[-1]
            raise LabError(f"{self.name}: {' '.join(words)}: exit {outcome.code}: {said}")
        return outcome.stdout

    async def attempt(self, *words: str, timeout_s: float = 30.0, stdin: str | None = None) -> Outcome:
        """Run to the end, whatever comes of it. Raises TimedOutError where it hangs; it is killed then."""
        return await run(self.command(*words), timeout_s=timeout_s, stdin=stdin, who=self.name)

    def spawn(self, role: str, words: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, lasting: bool) -> Process:
        """Start what runs on. Not ``lasting``: it dies with this process, whatever way that ends (prctl(2), PR_SET_PDEATHSIG)."""
        launcher = [] if lasting else ["setpriv", "--pdeathsig", "KILL"]
        with log.open("ab") as output:
            child = subprocess.Popen(
                [*launcher, *self.command(*words)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **PLAIN, **(env or {})},
                cwd="/",
                start_new_session=True,  # ctrl-C at a terminal is for the lab, which then ends its children in order
            )
        self._ledger.note_child(role, child, words)
        return Process(child, role, log)


async def run(words: Sequence[str], *, timeout_s: float = 30.0, stdin: str | None = None, who: str = "") -> Outcome:
    """Run a command to its end. Raises LabError where it cannot be started, TimedOutError where it hangs."""
    try:
        child = await asyncio.create_subprocess_exec(
            *words,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **PLAIN},
        )
    except FileNotFoundError:
        raise LabError(f"{words[0]} is not installed; make setup installs what the lab needs") from None
    try:
        text = None if stdin is None else stdin.encode()
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(text)
    except TimeoutError:
        raise TimedOutError(f"{who}: {' '.join(words)} did not end in {timeout_s:g} s and was killed") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return Outcome(child.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


async def batch(lines: Sequence[str], inside: Path | None = None) -> None:
    """Many ``ip`` commands in one process. Raises LabError with the first line that the kernel refused."""
    words = ["ip", "-batch", "-"]
    outcome = await run([*(["nsenter", f"--net={inside}", "--"] if inside else []), *words], stdin="\n".join(lines) + "\n")
    if outcome.code:
        said = outcome.stderr.strip().splitlines() or ["nothing was said"]
        number = next((int(word) for word in said[-1].replace("-:", " ").split() if word.isdigit()), 0)
        line = lines[number - 1] if 0 < number <= len(lines) else "a batch"
        raise LabError(f"ip {line}{f' in {inside.name}' if inside else ''}: {said[0]}")


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """This thread is in that namespace for the block, which must not await. Sockets opened here stay there (setns(2))."""
    with Path("/proc/thread-self/ns/net").open() as before, path.open() as target:
        _setns(target.fileno())
        try:
            yield
        finally:
            _setns(before.fileno())


def write_sysctls(path: Path, values: Mapping[str, str]) -> None:
    """Set sysctls of a namespace; keys are paths below /proc/sys/net. Raises LabError."""
    with entered(path):
        for key, value in values.items():
            try:
                Path("/proc/sys/net", key).write_text(value)
            except OSError as error:
                raise LabError(f"{path.name}: net/{key} = {value}: {error.strerror}") from None


def open_socket(path: Path, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in the namespace."""
    with entered(path):
        return socket.socket(family, kind, protocol)


_libc = ctypes.CDLL(None, use_errno=True)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, 0x40000000):  # CLONE_NEWNET; os.setns comes with Python 3.12
        code = ctypes.get_errno()
        raise LabError(f"a network namespace cannot be entered: {os.strerror(code)}")
