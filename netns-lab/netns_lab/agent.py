"""How does an agent run on a host of the lab? Started inside its namespace, told from READY=1, stopped, killed and started again.

READY is observed the way systemd does: a datagram socket whose path is in NOTIFY_SOCKET (sd_notify(3)).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from netns_lab.errors import LabError, TimedOutError
from netns_lab.namespaces import Namespace, Process

READY_WITHIN_S = 20.0


class NotifySocket:
    """What a service tells its supervisor. ``said`` holds the last value of each name: READY, STATUS, MAINPID ..."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: dict[str, str] = {}
        self._news = asyncio.Event()
        with suppress(FileNotFoundError):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(os.fspath(path))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    async def ready(self) -> None:
        """Return once READY=1 has been said."""
        while self.said.get("READY") != "1":
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """Stop listening. May be called twice."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            with suppress(FileNotFoundError):
                self.path.unlink()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                for line in self._socket.recv(65536).decode(errors="replace").splitlines():
                    name, equals, value = line.partition("=")
                    if equals:
                        self.said[name] = value
                self._news.set()


class Agent:
    """One agent on one host; ``start`` may be called again after it has ended."""

    def __init__(
        self, namespace: Namespace, directory: Path, words: Sequence[str], *, env: Mapping[str, str], lasting: bool
    ) -> None:
        self.words = tuple(words)
        self.log = directory / "agent.log"
        self._namespace = namespace
        self._directory = directory
        self._env = dict(env)
        self._lasting = lasting
        self._process: Process | None = None
        self._notify: NotifySocket | None = None

    @property
    def process(self) -> Process:
        """The process, running or ended. Raises LabError before the first start."""
        if self._process is None:
            raise LabError(f"{self._namespace.name}: the agent was never started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self.process.exit_code

    @property
    def said(self) -> Mapping[str, str]:
        """What it notified last, by name: READY, STATUS, STOPPING ..."""
        return self._notify.said if self._notify else {}

    def launch(self) -> None:
        """Start it and do not wait. Raises LabError where it runs already."""
        if self.running:
            raise LabError(f"{self._namespace.name}: the agent runs already (pid {self.pid})")
        self.close()
        self._notify = NotifySocket(self._directory / "notify")
        env = {"PYTHONUNBUFFERED": "1", **self._env, "NOTIFY_SOCKET": os.fspath(self._notify.path)}
        role = f"agent {self._directory.name}"
        self._process = self._namespace.spawn(role, self.words, log=self.log, env=env, lasting=self._lasting)

    async def ready(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait for READY=1. Raises LabError where it ends before, TimedOutError where it says nothing, with the end of its log."""
        if self._notify is None:
            raise LabError(f"{self._namespace.name}: the agent was never started")
        ready = asyncio.ensure_future(self._notify.ready())
        ended = asyncio.ensure_future(self.process.wait(within_s + 60))
        try:
            done, _ = await asyncio.wait({ready, ended}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        where = f"{self._namespace.name}: the agent"
        if ended in done and ready not in done:
            raise LabError(f"{where} ended with {self.exit_code} before it was ready: {self.process.tail()}")
        if not done:
            raise TimedOutError(f"{where} was not ready after {within_s:g} s: {self.process.tail()}")

    async def start(self, within_s: float = READY_WITHIN_S) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        await self.ready(within_s)

    async def stop(self, within_s: float = 10.0) -> int:
        """SIGTERM, after ``within_s`` SIGKILL; its exit code."""
        return await self.process.stop(within_s)

    async def kill(self) -> int:
        """SIGKILL; its exit code."""
        return await self.process.kill()

    async def restart(self, within_s: float = READY_WITHIN_S) -> None:
        """Stop it where it runs, start it with the same options, wait until it is ready."""
        if self.running:
            await self.stop()
        await self.start(within_s)

    def signal(self, number: signal.Signals) -> None:
        """SIGHUP, SIGSTOP, SIGCONT ..."""
        self.process.send(number)

    def close(self) -> None:
        """Stop listening to it; the process is left alone."""
        if self._notify is not None:
            self._notify.close()
