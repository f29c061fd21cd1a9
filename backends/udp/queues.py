"""What does the datapath hold open, whoever forwards the packets? A TUN queue and a socket for each worker, and its counters.

They stay with the agent, so that packets wait in queue and socket while a worker is replaced; and in the fd store, so that they do
while the agent is.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from backends.udp.adoption import COUNTERS_OF, SOCKET_OF, TUN_OF, Wanted, adopt, adopt_counters
from backends.udp.counters import COUNTERS, Counters, make_counters
from backends.udp.offload import ask_socket
from backends.udp.protocol import Offload
from backends.udp.sockets import open_sockets
from backends.udp.tun import absence, open_tun, possible_queues
from flannelpy.core.backend import FdStore
from flannelpy.core.errors import BackendError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueuePair:
    """What one worker works on. The TUN queue is a descriptor, as are those inside the other two."""

    tun: int
    socket: socket.socket
    counters: Counters

    def close(self) -> None:
        """Give back all three. The device goes with the last queue."""
        os.close(self.tun)
        self.socket.close()
        self.counters.close()


class Queues:
    """The pairs of one device; all of them open, or none. Without ``offload`` nothing is asked of the kernel."""

    def __init__(self, device: str, port: int, workers: int, offload: bool) -> None:
        self._device, self._port, self._workers = device, port, workers
        self.offload = offload
        self.offloads = Offload.NONE
        """What the kernel does for us in bulk, on every pair alike; known while they are open."""
        self.pairs: tuple[QueuePair, ...] = ()
        """One for each worker; one in all where the kernel's TUN has a single queue."""
        self._counted = [0] * len(COUNTERS)
        self._refused: Counter[str] = Counter()

    async def open(self, address: str, fd_store: FdStore) -> None:
        """Make device and sockets, these at ``address``, and keep them in the fd store; or take over what is there, if it fits.

        Nothing may be open. Raises BackendError: what is in the way.
        """
        wanted = Wanted(self._device, address, self._port, possible_queues(self._workers), self.offload)
        if not (fd_store.names and self._adopt(fd_store, wanted)):
            await fd_store.drop(*fd_store.names)
            self._make(wanted)
            for number, pair in enumerate(self.pairs):
                fd_store.keep(TUN_OF.format(number), pair.tun)
                fd_store.keep(SOCKET_OF.format(number), pair.socket.fileno())
                fd_store.keep(COUNTERS_OF.format(number), pair.counters.fd)

    def _make(self, wanted: Wanted) -> None:
        sockets = open_sockets(wanted.address, wanted.port, wanted.number)
        try:
            tuns, offloads = open_tun(wanted.device, wanted.offload, wanted.number)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        self._equip(tuns, sockets, lambda _number: make_counters(), offloads)

    def _adopt(self, fd_store: FdStore, wanted: Wanted) -> bool:
        """Take over what is in the fd store; False where it is not what is wanted, with a word."""
        try:
            tuns, sockets, offloads = adopt(fd_store, wanted)
        except BackendError as error:
            log.info("what was kept cannot be used: %s; device and port are opened anew", error)
            return False
        log.info("TUN device %s and UDP %s:%d were kept, with what waits in them", wanted.device, wanted.address, wanted.port)
        self._equip(tuns, sockets, partial(adopt_counters, fd_store), offloads)
        self._counted = [0] * len(COUNTERS)  # the pairs' counters hold what was counted before
        self._refused.clear()
        return True

    def _equip(
        self, tuns: Sequence[int], sockets: Sequence[socket.socket], count: Callable[[int], Counters], offloads: Offload
    ) -> None:
        """``count`` makes the counters of a worker. Raises OSError where it does; all is given back then, lest the device stay."""
        with ExitStack() as undo:
            for tun, sock in zip(tuns, sockets, strict=True):
                undo.callback(os.close, tun)
                undo.callback(sock.close)
            counters = []
            for number in range(len(tuns)):
                counters.append(count(number))
                undo.callback(counters[-1].close)
            undo.pop_all()
        if Offload.HEADER in offloads:
            for sock in sockets:
                offloads |= ask_socket(sock)
        self.offloads = offloads
        self.pairs = tuple(QueuePair(*each) for each in zip(tuns, sockets, counters, strict=True))

    def absence(self) -> str:
        """Why the device is not there any more, in words; empty where it is, or is not open."""
        return next((why for pair in self.pairs[:1] if (why := absence(pair.tun, self._device, pair.socket))), "")

    def close(self) -> None:
        """Give everything back; what is not in the fd store vanishes. May be called twice."""
        self._counted, self._refused = self.counted(), self.refused()
        pairs, self.pairs = self.pairs, ()
        for pair in pairs:
            pair.close()

    def counted(self) -> list[int]:
        """The sums over all pairs, in the order of COUNTERS: since this object was made, or what it took over."""
        return [sum(each) for each in zip(self._counted, *(pair.counters.read() for pair in self.pairs), strict=True)]

    def refused(self) -> Counter[str]:
        """Packets of a peer that the ingress filter dropped, by its PublicIP."""
        total = Counter(self._refused)
        for pair in self.pairs:
            total.update(pair.counters.refused())
        return total
