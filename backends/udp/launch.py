"""How is a worker started, watched and ended? A process of its own, one control stream, and a heartbeat in the shared counters."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backends.udp.protocol import READY, START, Order, Setting, pack
from flannelpy.core.environment import PYTHON, bare

log = logging.getLogger(__name__)

_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LIBC = ctypes.CDLL(None)

STOP_WITHIN_S = 1.0
"""A worker that has not ended this long after its control stream is killed."""

BACKLOG_BYTES = 1 << 20
"""Orders that may wait for a worker besides the first table: a hundred thousand changes. One that leaves more does not read."""

LOOK_EVERY_S = 1.0
"""Between two looks at the heartbeat, which comes once a second."""

STILL_LOOKS = 5
"""As many looks in a row without a heartbeat between them, and the worker stands still. Looks are counted and not time: where the
whole machine stood still, the worker has a second to show that it goes on."""

START_LOOKS = 30
"""The same before its first heartbeat: on a busy machine a start takes seconds."""


class Launched:
    """A worker that was started. ``beat`` reads its heartbeat, which was ``before`` it was."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        beat: Callable[[], int],
        before: int,
        name: str,
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._beat, self._before = beat, before
        self._name = name
        self._allowed = BACKLOG_BYTES
        self._killed = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self, table: Sequence[Order]) -> None:
        """Send the first whole table, of any length, and have packets moved."""
        octets = pack([*table, Order(START)])
        self._allowed += len(octets)
        self._write(octets)

    def send(self, orders: Sequence[Order]) -> None:
        """Have these carried out soon; a worker that has stopped reading is killed."""
        self._write(pack(orders))
        waiting = self._writer.transport.get_write_buffer_size()
        if waiting > self._allowed:
            self._kill(f"leaves {waiting:,} bytes of orders unread")

    def _write(self, octets: bytes) -> None:
        """Nothing to one that is gone, which ``wait`` tells: uvloop's transport raises RuntimeError after its end."""
        if not self._writer.is_closing():
            self._writer.write(octets)

    async def ready(self) -> bool:
        """True once it moves packets, False where it ends before."""
        try:
            return await self._reader.read(1) == READY
        except OSError:  # reset by one that died with orders unread
            return False

    async def wait(self) -> int:
        """Its exit code. It is killed where it stands still."""
        ended = asyncio.ensure_future(self._process.wait())
        seen, still, patience = self._before, 0, START_LOOKS
        try:
            while not (await asyncio.wait({ended}, timeout=LOOK_EVERY_S))[0]:
                beat = self._beat()
                still += 1
                if beat != seen:
                    seen, still, patience = beat, 0, STILL_LOOKS
                if still == patience:
                    self._kill(f"stands still for {still * LOOK_EVERY_S:g} s")
            return ended.result()
        finally:
            ended.cancel()

    def _kill(self, why: str = "") -> None:
        """Once: a second one could take the exit code away from asyncio, which waits for it (subprocess polls before it kills)."""
        if self._killed or self._process.returncode is not None:
            return
        self._killed = True
        if why:
            log.warning("%s: process %d %s: killed", self._name, self.pid, why)
        self._process.kill()  # SIGKILL ends a stopped process, too (signal(7))

    async def stop(self) -> None:
        """End its control stream and wait for its end; kill it where that takes too long."""
        self._writer.close()
        if self._process.returncode is None:
            try:
                async with asyncio.timeout(STOP_WITHIN_S):
                    await self._process.wait()
            except TimeoutError:
                self._kill("does not end by itself")
            finally:
                self._kill()
                await self._process.wait()


async def launch(setting: Callable[[int], Setting], beat: Callable[[], int], name: str) -> Launched:
    """A worker with the descriptors of ``setting``, which is asked for with its end of the control stream.

    Its stderr is ours, for tracebacks. Raises OSError where no process can be made; nothing is left open then.
    """
    before = beat()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            return Launched(await _execute(setting(theirs.fileno())), reader, writer, beat, before, name)
        except BaseException:
            writer.close()
            raise


def _keep_nothing() -> None:
    """In the child, before it becomes a worker: of what an agent that is not root may do, a program gets what is ambient
    (capabilities(7)). One of root's gets everything, and gives it up itself, which takes a call that the unit refuses.
    """
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


async def _execute(setting: Setting) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "backends.udp.worker.process", *setting.words()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=None,
        env=_environment(),
        pass_fds=(setting.tun, setting.socket, setting.control, setting.counters),
        preexec_fn=_keep_nothing,
    )


def _environment() -> dict[str, str]:
    """A worker imports from where this process does, also where that is nothing a Python knows by itself (python3 -I)."""
    inherited = {} if sys.flags.ignore_environment else bare(os.environ, *PYTHON)
    places = [os.fspath(Path(__file__).parents[2]), *filter(None, [inherited.get("PYTHONPATH")])]
    return bare(os.environ, **{**inherited, "PYTHONPATH": os.pathsep.join(places)})
