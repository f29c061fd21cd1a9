"""What do pods send to each other, and what is seen of it between their nodes?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from netns_lab.host import Container
from tests.kube.cluster import PATIENCE_S
from tests.lab.agent_support import until
from tests.lab.wireguard_support import encrypted, frames

MEGABYTES = 20
RECEIVE = """
import hashlib, socket
taken, digest, count = socket.create_server(("", 7777)).accept()[0], hashlib.sha256(), 0
while block := taken.recv(65536):
    digest.update(block)
    count += len(block)
print(count, digest.hexdigest())
"""
SEND = """
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[2]))
with socket.create_connection((sys.argv[1], 7777), timeout=50) as connection:
    connection.sendall(data)
print(len(data), hashlib.sha256(data).hexdigest())
"""


def in_udp(frame: bytes, port: int) -> bool:
    """True for UDP over IPv4 to this port."""
    return frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == port.to_bytes(2, "big")


def between_pods(frame: bytes) -> bool:
    """True for IPv4 from one pod to another."""
    return frame[12:14] == b"\x08\x00" and frame[26:28] == frame[30:32] == bytes([10, 244])


BY: dict[str, Callable[[bytes], bool]] = {"vxlan": partial(in_udp, port=8472), "host-gw": between_pods, "wireguard": encrypted}
"""What of a backend is seen between the nodes."""


async def transferred(source: Container, target: Container, address: str) -> None:
    """Send some megabytes from the one to the other, by TCP; what comes is what was sent."""
    log = target.host.directory / f"received-{target.name}.log"
    receiver = target.namespace.spawn("receiver", [sys.executable, "-Ic", RECEIVE], log=log, lasting=False)

    async def listens() -> bool:
        return ":7777" in await target.exec("ss", "-Hltn")

    await until(listens, PATIENCE_S, "a receiver that listens")
    sent = await source.exec(sys.executable, "-Ic", SEND, address, str(MEGABYTES << 20), timeout_s=60)
    assert await receiver.wait(60) == 0, receiver.tail()
    assert receiver.printed() == sent


async def carried(source: Container, target: Container, address: str, back: str, backend: str) -> None:
    """Megabytes of each go to the other; between their hosts they are seen as the backend sends them, and else not at all."""
    async with frames(source.host) as seen:
        await transferred(source, target, address)
        await transferred(target, source, back)
    assert any(map(BY[backend], seen)), f"nothing went by {backend}"
    if backend != "host-gw":
        assert not any(map(between_pods, seen)), f"not all went by {backend}"
