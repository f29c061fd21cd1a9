"""What do interfaces that come and go cost who listens to the kernel? The churn, and a bare reader of its notifications.

    python -m netns_lab.churn make --pairs 300 --per-second 100     veth pairs, each made, set up and deleted again
    python -m netns_lab.churn read                                  everything that the kernel says, until SIGTERM

Both run inside a host's namespace. The reader is the measure for an agent: it takes each notification apart into header and
attributes, as whoever wants to know what it says has to, and does nothing with them.
"""

from __future__ import annotations

import argparse
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netns_lab.errors import LabError
from netns_lab.footprint import processor_s
from netns_lab.host import Host
from netns_lab.namespaces import Process

ALIVE = 20
"""So many pairs are there at a time."""
GROUPS = (1, 3, 5, 7, 9, 11)
"""RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE: what a network agent subscribes to (rtnetlink(7))."""
SOL_NETLINK, ADD_MEMBERSHIP, SO_RCVBUFFORCE = 270, 1, 33
_HEAD = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port (netlink(7))
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_BODIES = {16: 16, 17: 16, 20: 8, 21: 8, 24: 12, 25: 12, 28: 12, 29: 12}
"""Length of the fixed part by message type: links, addresses, routes, neighbours."""


def make(pairs: int, per_second: float, alive: int = ALIVE) -> None:
    """Make and delete so many veth pairs at this rate, by one ``ip -batch``. Raises LabError."""
    ip = subprocess.Popen(
        ["ip", "-batch", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert ip.stdin is not None
    assert ip.stderr is not None
    began = time.monotonic()
    try:
        for number in range(pairs + alive):
            lines = []
            if number < pairs:
                lines += [f"link add churn{number} type veth peer name nruhc{number}"]
                lines += [
                    f"link set churn{number} up",
                    f"link set nruhc{number} up",
                    f"address add 198.18.0.1/32 dev churn{number}",
                ]
            if number >= alive:
                lines.append(f"link del churn{number - alive}")
            ip.stdin.write("".join(f"{line}\n" for line in lines))
            ip.stdin.flush()
            time.sleep(max(0.0, began + (number + 1) / per_second - time.monotonic()))
        ip.stdin.close()
    except BrokenPipeError:
        pass
    if ip.wait(60):
        raise LabError(f"ip -batch: {ip.stderr.read().strip()[:300]}")


def read() -> None:
    """Take apart what the kernel says, for ever."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        listener.bind((0, 0))
        for group in GROUPS:
            listener.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        print("listening", flush=True)
        while True:
            data = listener.recv(1 << 16)
            at = 0
            while at + _HEAD.size <= len(data):
                length, kind, *_ = _HEAD.unpack_from(data, at)
                _attributes(data, at + _HEAD.size + _BODIES.get(kind, 0), at + length)
                at += length + 3 & ~3


def _attributes(data: bytes, at: int, end: int) -> dict[int, bytes]:
    found = {}
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3 & ~3) or end
    return found


# ------------------------------------------------------------------------------------------------------- from the outside


@dataclass(frozen=True, slots=True)
class Reader:
    """The bare reader on a host."""

    process: Process

    @property
    def processor_s(self) -> float:
        """What it has taken so far."""
        return processor_s(self.process.pid)


@contextmanager
def reading(host: Host) -> Iterator[Reader]:
    """A bare reader on this host, for the time of the block."""
    process = _spawn(host, "reader", "read")
    deadline = time.monotonic() + 20
    try:
        while "listening" not in process.printed():
            if process.exit_code is not None or time.monotonic() > deadline:
                raise LabError(f"{host.name}: the reader does not start: {process.tail()}")
            time.sleep(0.01)
        yield Reader(process)
    finally:
        process.send(signal.SIGKILL)


async def churn(host: Host, pairs: int, per_second: float) -> None:
    """Let so many veth pairs come and go on this host; returns when all are gone. Raises LabError."""
    process = _spawn(host, "churn", "make", f"--pairs={pairs}", f"--per-second={per_second}")
    if await process.wait(60 + 4 * pairs / per_second):
        raise LabError(f"{host.name}: the churn failed: {process.tail()}")


def _spawn(host: Host, role: str, *words: str) -> Process:
    root = Path(__file__).resolve().parents[2]
    log = host.directory / f"{role}-{len(list(host.directory.glob(f'{role}-*')))}.out"
    program = [sys.executable, "-m", "netns_lab.churn", *words]
    return host.namespace.spawn(role, program, log=log, env={"PYTHONPATH": f"{root}:{root}/netns-lab"}, lasting=False)


def main(words: Sequence[str] | None = None) -> int:
    """0, or 1 with a line that says why not."""
    parser = argparse.ArgumentParser(prog="churn", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("make", "read"))
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--per-second", type=float, default=100.0)
    given = parser.parse_args(words)
    try:
        if given.what == "read":
            read()
        make(given.pairs, given.per_second)
    except (LabError, OSError) as error:
        print(f"churn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
