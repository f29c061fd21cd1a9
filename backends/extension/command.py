"""How is a command run? As a program of its own in a group of its own, with a time limit, and never in the loop's way.

It gets no more of the agent's environment than it needs to be found and to write (flannel: all of it): a password may stand there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from backends.extension.words import expand, trimmed, words
from flannelpy.core.environment import bare
from flannelpy.core.errors import BackendError
from flannelpy.core.foreign import printable

MOST_OUTPUT = 65_536
"""Bytes of output that are kept; what is more is read and forgotten, so that a command that writes much does not wait."""

LAST_WORDS_S = 1.0
"""For output that comes after the command's end, from what it has left running; that is let alone after it."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a command wrote on stdout and stderr, both in one, trimmed. ``whole`` False: it was more than is kept."""

    text: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Command:
    """A command line of the config. ``name`` is its option's; ``limit_s``: it is killed after so many seconds."""

    name: str
    line: str
    limit_s: float

    async def run(self, variables: Mapping[str, str], data: str = "") -> Output:
        """Run it with these variables, ``data`` and a newline as its stdin.

        Raises BackendError: how it failed, and the end of what it said. Nothing of it is left running then, or when cancelled.
        """
        environment = bare(os.environ, "HOME", **variables)
        arguments = [expand(word, environment) for word in words(self.line)]
        said = _Said()
        ours, theirs = os.pipe()  # not asyncio's own: what a command leaves running may hold it for ever
        try:
            hearing = await said.listen(ours)
            try:
                process = await _start(arguments, environment, theirs)
            except BaseException:
                hearing.close()
                raise
        except (OSError, ValueError) as error:
            raise BackendError(f"{self.name}: {_why_not(arguments[0], error)}") from None
        finally:
            os.close(theirs)
        try:
            async with asyncio.timeout(self.limit_s):
                code = await _finish(process, data)
        except TimeoutError:
            await _kill(process)
            raise BackendError(f"{self.name} was killed: not done after {self.limit_s:g} s{said.words}") from None
        except BaseException:
            await asyncio.shield(_kill(process))
            raise
        else:
            await asyncio.wait({said.ended}, timeout=LAST_WORDS_S)
        finally:
            hearing.close()
        if code:
            fate = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
            raise BackendError(f"{self.name} {fate}{said.words}")
        return said.output


@dataclass(frozen=True, slots=True)
class Commands:
    """Those that the config names, in flannel's order."""

    pre: Command | None = None
    post: Command | None = None
    add: Command | None = None
    remove: Command | None = None


class _Said(asyncio.Protocol):
    """Output so far. ``ended`` is done at its end."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._octets = bytearray()
        self._whole = True

    async def listen(self, fd: int) -> asyncio.ReadTransport:
        """Read from this pipe, which is the transport's from now on. Raises OSError, with it closed."""
        pipe = os.fdopen(fd, "rb", buffering=0)
        try:
            transport, _protocol = await asyncio.get_running_loop().connect_read_pipe(lambda: self, pipe)
        except BaseException:
            pipe.close()
            raise
        return transport

    def data_received(self, data: bytes) -> None:
        room = MOST_OUTPUT - len(self._octets)
        self._whole &= len(data) <= room
        self._octets += data[:room]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def output(self) -> Output:
        return Output(trimmed(self._octets.decode(errors="replace")), self._whole)

    @property
    def words(self) -> str:
        """For the end of an error."""
        text = self.output.text
        return f": {printable(text)}" if text else ""


async def _start(arguments: list[str], environment: Mapping[str, str], output: int) -> asyncio.subprocess.Process:
    """Raises OSError. A cancelled start is waited for: asyncio would kill the leader of the group alone."""
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # a group that can be killed whole
        ),
        name="start of a command",
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(OSError, ValueError):
            await _kill(await starting)
        raise


async def _finish(process: asyncio.subprocess.Process, data: str) -> int:
    """Its exit code, negative for a signal."""
    telling = asyncio.create_task(_tell(process, data), name="stdin of a command")
    try:
        return await process.wait()
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(process: asyncio.subprocess.Process, data: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(data.encode(errors="replace") + b"\n")
        await process.stdin.drain()
    except ConnectionError:
        pass  # it need not read
    finally:
        process.stdin.close()


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End the whole group; not once its leader has been waited for: the number may be somebody else's by then."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _why_not(program: str, error: Exception) -> str:
    shown = printable(program, 100)
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT:
            return f"{shown}: expected a program of that name or path on this host"
        return f"{shown} cannot be run: {error.strerror}"
    return f"{shown} cannot be run: {error}"
