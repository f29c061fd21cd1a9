"""Who forwards the packets? This process, and nothing else happens in it: ``python -m backends.udp.worker.process tun=7 ...``.

Started by the agent (``launch``) with the descriptors open. It ends when its control stream does, when its parent dies, and with
DEVICE_GONE when the TUN device was deleted. No gRPC, no netlink, no netaddr in here, so that no control-plane work can stall a
packet; numpy (55 ms of the start, 16 MB) only where the kernel offloads. uvloop waits; a turn then serves whatever is ready until
nothing was for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
from typing import Protocol

import uvloop

from backends.udp import protocol
from backends.udp.counters import HEARTBEAT, Counters, Counts
from backends.udp.protocol import DEVICE_GONE, GUARDS, NO_BULK, READY, Offload, Order, Setting, unpack
from backends.udp.worker.confine import close_all_but, die_with_parent, refuse_calls, shed_privileges
from backends.udp.worker.forward import Forwarder
from backends.udp.worker.ingress import IngressFilter
from backends.udp.worker.peers import PeerTable
from backends.udp.worker.pmtu import PathMtu

ROUNDS = 64
"""Rounds of one turn; between turns uvloop has its own to do, which is little."""

LINGER_S = 0.02
"""A turn waits this long for more: a packet that follows soon is spared the way through uvloop, a tenth of a round trip."""

DESCRIPTORS = 3
"""Control, device and socket; room for more would be made at each wait."""

CONTROL_CHUNK = 4000
"""Bytes of orders between two turns: 400 peers, below 1 ms."""

BEAT_S = 1.0
"""Between two heartbeats; a turn takes no longer than ROUNDS times LINGER_S."""


class Forwards(Protocol):
    """What both forwarders are."""

    counts: Counts
    peers: PeerTable
    ingress: IngressFilter
    path_mtu: PathMtu

    def forward_out(self) -> None: ...
    def forward_in(self) -> None: ...


class NoBulkError(Exception):
    """What is needed for offloads cannot be loaded; says why."""


def make_forwarder(setting: Setting, sock: socket.socket, counts: Counts) -> Forwards:
    """The one for what the kernel offloads. Raises NoBulkError."""
    if Offload.HEADER not in Offload(setting.offloads):
        return Forwarder(setting, sock, counts)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no threads for a library that is not used
    try:
        from backends.udp.worker.fast_path import FastPath
    except Exception as error:  # a numpy of which a part is there, or that was built for other processors (RuntimeError)
        raise NoBulkError(f"{type(error).__name__}: {error}") from error
    return FastPath(setting, sock, counts)


def apply(forwarder: Forwards, order: Order) -> None:
    """Carry out one order; START is the worker's own."""
    match order.what:
        case protocol.SET:
            forwarder.peers.set(order.network, order.length, order.host)
        case protocol.DELETE:
            forwarder.peers.delete(order.network, order.length)
        case protocol.OVERLAY:
            forwarder.ingress.set_overlay((order.network, order.length))
        case protocol.GUARD:
            forwarder.ingress.set_guard(GUARDS[order.host])
        case protocol.PATHS:
            forwarder.path_mtu.forget()


class Worker:
    """The three descriptors of a worker, and what is done when one of them is ready."""

    def __init__(self, setting: Setting) -> None:
        self._control = socket.socket(fileno=setting.control)
        self._socket = socket.socket(fileno=setting.socket)
        self._tun = setting.tun
        self._control.setblocking(False)
        self._socket.setblocking(False)
        self._counters = Counters(setting.counters)
        self._forwarder = make_forwarder(setting, self._socket, self._counters.live)
        self._rest = b""
        # One descriptor for uvloop to watch: it goes deaf on one that ever reported POLLERR, as a TUN does when its device goes.
        self._ready = select.epoll()
        self._ready.register(self._control, select.EPOLLIN)

    def serve(self) -> None:
        """Obey the control stream until it ends, and move packets from START on.

        Raises OSError with EBADFD, which is what the TUN driver says once its device is deleted.
        """
        uvloop.run(self._wait())

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()

        def turn() -> None:
            if end.done():
                return
            try:
                if self._turn():
                    end.set_result(None)
            except Exception as error:  # noqa: BLE001 - the edge: it ends the worker, with one traceback and not one a packet
                end.set_exception(error)

        beating = asyncio.create_task(self._beat())
        await asyncio.sleep(0)  # the first beat, before a turn that may be long
        loop.add_reader(self._ready.fileno(), turn)
        try:
            await end
        finally:
            beating.cancel()
            loop.remove_reader(self._ready.fileno())

    async def _beat(self) -> None:
        """Show the agent that turns come to an end."""
        live = self._counters.live
        while True:
            live[HEARTBEAT] += 1
            await asyncio.sleep(BEAT_S)

    def _turn(self) -> bool:
        """Serve each ready descriptor in its turn, and again while there is more; True when the control stream has ended."""
        forwarder, poll, tun, udp = self._forwarder, self._ready.poll, self._tun, self._socket.fileno()
        for _ in range(ROUNDS):
            events = poll(LINGER_S, DESCRIPTORS)
            if not events:
                break
            for descriptor, _ in events:
                if descriptor == tun:
                    forwarder.forward_out()
                elif descriptor == udp:
                    forwarder.forward_in()
                elif self._obey():
                    return True
        return False

    def _obey(self) -> bool:
        """Take in orders; True where the stream has ended."""
        try:
            chunk = self._control.recv(CONTROL_CHUNK)
        except ConnectionError:
            return True
        if not chunk:
            return True
        orders, self._rest = unpack(self._rest + chunk)
        for order in orders:
            apply(self._forwarder, order)
            if order.what == protocol.START:
                self._ready.register(self._tun, select.EPOLLIN)
                self._ready.register(self._socket, select.EPOLLIN)
                with contextlib.suppress(OSError):
                    self._control.send(READY)
        return False


def main() -> int:
    """The process: 0 when told to end, DEVICE_GONE, NO_BULK, or a traceback and 1."""
    setting = Setting.parse(sys.argv[1:])
    close_all_but({0, 1, 2, setting.tun, setting.socket, setting.control, setting.counters})
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C and a hang-up go to the whole group: the agent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    try:
        worker = Worker(setting)  # with all that is imported: nobody may not be able to read where Python is installed
    except NoBulkError as error:
        print("udp worker: numpy cannot be loaded:", str(error).partition("\n")[0], file=sys.stderr)
        return NO_BULK
    shed_privileges()
    die_with_parent(setting.parent)
    refuse_calls()
    gc.collect()
    gc.freeze()
    try:
        worker.serve()
    except OSError as error:
        if error.errno != errno.EBADFD:
            raise
        return DEVICE_GONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
