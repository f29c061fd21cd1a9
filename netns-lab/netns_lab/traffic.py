"""What do containers say to each other? Streams, short connections and datagrams between two namespaces, every byte checked.

All content follows from a seed, so that both ends know it and nothing is kept on disk.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from netns_lab.namespaces import open_socket

PIECE = 1 << 18
WINDOW = 100
"""So many datagrams may be under way: fewer, in fragments too, than the queue of a TUN device holds (500)."""
QUIET_S = 0.25
"""A datagram that is not there after this time of silence is lost."""
ROOM = 16 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; the socket module has it not
_HEAD = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two namespaces: who speaks, and who answers at which IPv4 address."""

    source: Path
    target: Path
    address: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """A stream that has ended, with the SHA-256 of what was sent and of what came."""

    octets: int
    sent: str
    got: str
    seconds: float


@dataclass(slots=True)
class Calls:
    """Short connections: those that got back what they sent, and what went wrong with the others."""

    good: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Datagrams:
    """Datagrams by number: how many were sent, how often each came, and those that came but not as they were sent."""

    sent: int = 0
    came: Counter[int] = field(default_factory=Counter)
    bent: int = 0

    @property
    def received(self) -> int:
        """All that came, copies included."""
        return self.came.total()


async def transfer(pair: Pair, octets: int, seed: int = 1) -> Transfer:
    """One TCP stream of so many octets. Raises OSError where the connection breaks."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    sent, got = hashlib.sha256(), hashlib.sha256()
    with _listening(pair) as server, _opened(pair.source, socket.SOCK_STREAM) as client:
        await loop.sock_connect(client, server.getsockname())
        connection, _ = await loop.sock_accept(server)

        async def send() -> None:
            chance = random.Random(seed)
            left = octets
            while left:
                piece = chance.randbytes(min(PIECE, left))
                sent.update(piece)
                await loop.sock_sendall(client, piece)
                left -= len(piece)
            client.shutdown(socket.SHUT_WR)

        async def receive() -> None:
            buffer = memoryview(bytearray(PIECE))
            while size := await loop.sock_recv_into(connection, buffer):
                got.update(buffer[:size])

        with connection:
            async with asyncio.TaskGroup() as both:
                both.create_task(send())
                both.create_task(receive())
    return Transfer(octets, sent.hexdigest(), got.hexdigest(), loop.time() - began)


async def call(pair: Pair, count: int, *, at_once: int = 100, shortest: int = 200, longest: int = 4000, seed: int = 1) -> Calls:
    """So many TCP connections, each of which sends some octets, gets them back and is closed."""
    loop = asyncio.get_running_loop()
    chance = random.Random(seed)
    calls = Calls()
    began = loop.time()
    waiting = iter(range(count))
    with _listening(pair) as server:
        answering = asyncio.create_task(_answer(server))

        async def caller() -> None:
            for number in waiting:
                said = chance.randbytes(chance.randrange(shortest, longest + 1))
                try:
                    heard = await _call(pair, server.getsockname(), said)
                except OSError as error:
                    calls.wrong.append(f"connection {number}: {errno.errorcode.get(error.errno or 0, error)}")
                    continue
                if heard == said:
                    calls.good += 1
                else:
                    calls.wrong.append(f"connection {number}: {len(heard)} octets came back for {len(said)}, or others")

        try:
            await asyncio.gather(*(caller() for _ in range(at_once)))
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
    calls.seconds = loop.time() - began
    return calls


async def _call(pair: Pair, where: tuple[str, int], said: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    heard = bytearray()
    with _opened(pair.source, socket.SOCK_STREAM) as client:
        await loop.sock_connect(client, where)
        await loop.sock_sendall(client, said)
        client.shutdown(socket.SHUT_WR)
        while piece := await loop.sock_recv(client, 1 << 16):
            heard += piece
    return bytes(heard)


async def _answer(server: socket.socket) -> None:
    """Send back whatever comes, on each connection until its other end says no more."""
    loop = asyncio.get_running_loop()

    async def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while piece := await loop.sock_recv(connection, 1 << 16):
                    await loop.sock_sendall(connection, piece)
            except ConnectionError:
                pass  # whoever called sees it too

    async with asyncio.TaskGroup() as group:
        while True:
            connection, _ = await loop.sock_accept(server)
            connection.setblocking(False)
            group.create_task(echo(connection))


def size_of(number: int, longest: int) -> int:
    """A datagram's size: all kinds of odd ones."""
    return _HEAD.size + (number * 2654435761 % 2**32) % (longest + 1 - _HEAD.size)


async def datagrams(pair: Pair, count: int, *, longest: int = 1400, seed: int = 1) -> Datagrams:
    """So many UDP datagrams of odd sizes, a window of them at a time."""
    loop = asyncio.get_running_loop()
    block = random.Random(seed).randbytes(1 << 17)
    result = Datagrams()

    def content(number: int) -> bytes:
        start = number * 7919 % (len(block) - longest)
        return _HEAD.pack(number) + block[start : start + size_of(number, longest) - _HEAD.size]

    with _opened(pair.target, socket.SOCK_DGRAM) as target, _opened(pair.source, socket.SOCK_DGRAM) as source:
        target.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        target.bind((pair.address, 0))
        heard, newest = loop.time(), 0

        def take() -> None:
            nonlocal heard, newest
            heard = loop.time()
            try:
                while octets := target.recv(1 << 16):
                    number = _HEAD.unpack_from(octets)[0] if len(octets) >= _HEAD.size else count
                    if number < count and octets == content(number):
                        result.came[number] += 1
                        newest = max(newest, number)
                    else:
                        result.bent += 1
            except BlockingIOError:
                pass

        loop.add_reader(target, take)
        try:
            for number in range(count):
                while number - newest > WINDOW:
                    if loop.time() - heard > QUIET_S:  # all of them are lost
                        newest, heard = number, loop.time()
                    await asyncio.sleep(0.001)
                await _send(source, content(number), target.getsockname())
                result.sent += 1
            heard = loop.time()
            while loop.time() - heard < QUIET_S:  # noqa: ASYNC110 - it is the silence that is waited for
                await asyncio.sleep(0.01)
        finally:
            loop.remove_reader(target)
    return result


async def _send(source: socket.socket, octets: bytes, where: tuple[str, int]) -> None:
    """uvloop has no sock_sendto."""
    while True:
        try:
            source.sendto(octets, where)
            return
        except BlockingIOError:
            await asyncio.sleep(0.001)


def _opened(path: Path, kind: socket.SocketKind) -> socket.socket:
    made = open_socket(path, socket.AF_INET, kind)
    made.setblocking(False)
    return made


def _listening(pair: Pair) -> socket.socket:
    server = _opened(pair.target, socket.SOCK_STREAM)
    server.bind((pair.address, 0))
    server.listen(4096)
    return server
