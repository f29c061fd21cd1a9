"""What can be on the way between a registry and etcd? TCP that is slow, or goes deaf; endpoints that never say a word."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator


class Proxy:
    """TCP between a registry and etcd on this host.

    While ``deaf``, what etcd answers on those connections, counted from 1, is swallowed. ``round_trip_s``: so long is the way there
    and back, the first time for TCP's own handshake. ``answer_s``: so long etcd thinks before it says something, but for its
    greeting.
    """

    def __init__(
        self, port: int, host: str = "127.0.0.1", *, listen: int = 0, round_trip_s: float = 0.0, answer_s: float = 0.0
    ) -> None:
        self._etcd_port = port
        self._host = host
        self._listen = listen
        self._round_trip_s = round_trip_s
        self.answer_s = answer_s
        self.deaf: set[int] = set()
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, self._host, self._listen)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def go_deaf(self) -> None:
        """Swallow all answers on the connections there are; new ones work."""
        self.deaf |= set(range(1, self.connections + 1))

    def cut(self) -> None:
        """Close the connections there are; new ones work."""
        for task in self._tasks:
            task.cancel()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._connect(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        back: asyncio.StreamWriter | None = None
        try:
            await asyncio.sleep(self._round_trip_s)
            there, back = await asyncio.open_connection("127.0.0.1", self._etcd_port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, back, None))
                group.create_task(self._carry(there, writer, number))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            if back is not None:
                back.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers_of: int | None) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(self._deliver(queue, writer, answers_of))
        thinks_s = 0.0
        try:
            data = b"there was no end yet"
            while data:
                data = await reader.read(65536)
                queue.put_nowait((time.monotonic() + self._round_trip_s / 2 + thinks_s, data))
                thinks_s = 0.0 if answers_of is None else self.answer_s
            await delivering
        finally:
            delivering.cancel()

    async def _deliver(
        self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, answers_of: int | None
    ) -> None:
        while True:
            due, data = await queue.get()
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())
            if not data:
                writer.close()
                return
            if answers_of not in self.deaf:
                with contextlib.suppress(OSError, RuntimeError):  # the latter is uvloop's, of one that is closed
                    writer.write(data)
                    await writer.drain()


@contextlib.contextmanager
def mute() -> Iterator[str]:
    """An endpoint that takes connections, into its kernel's backlog, and never says a word; its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
