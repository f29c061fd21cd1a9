"""What does the pump hold open, whoever moves the packets? A TUN queue, a socket and counters for each worker: its lane.

They stay with the agent, so that packets wait in the queue and in the socket while a worker is replaced; and on the shelf, so that
they do while the agent is.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from backends.udp.adoption import COUNTERS_OF, SOCKET_OF, TUN_OF, Wanted, adopt, adopt_counters
from backends.udp.control import COUNTERS, Counters, make_counters
from backends.udp.offload import Offload, ask_socket
from backends.udp.tun import open_sockets, open_tun, possible_queues
from flannelpy.core.backend import Shelf
from flannelpy.core.errors import BackendError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lane:
    """What one worker works on. The TUN queue is a descriptor, as are those inside the other two."""

    tun: int
    socket: socket.socket
    counters: Counters

    def close(self) -> None:
        """Give back all three. The device goes with the last queue."""
        os.close(self.tun)
        self.socket.close()
        self.counters.close()


class Descriptors:
    """The lanes of one device; all of them open, or none. Without ``offload`` nothing is asked of the kernel."""

    def __init__(self, device: str, port: int, workers: int, offload: bool) -> None:
        self._device, self._port, self._workers = device, port, workers
        self.offload = offload
        self.offloads = Offload.NONE
        """What the kernel does for us in bulk, on every lane alike; known while they are open."""
        self.lanes: tuple[Lane, ...] = ()
        """One for each worker; one in all where the kernel's TUN has a single queue."""
        self._counted = [0] * len(COUNTERS)

    async def open(self, address: str, shelf: Shelf) -> None:
        """Make device and sockets, these at ``address``, and keep them on the shelf; or take over what is there, if it fits.

        Nothing may be open. Raises BackendError: what is in the way.
        """
        wanted = Wanted(self._device, address, self._port, possible_queues(self._workers), self.offload)
        if not (shelf.names and self._adopt(shelf, wanted)):
            await shelf.drop(*shelf.names)
            self._make(wanted)
            for number, lane in enumerate(self.lanes):
                shelf.keep(TUN_OF.format(number), lane.tun)
                shelf.keep(SOCKET_OF.format(number), lane.socket.fileno())
                shelf.keep(COUNTERS_OF.format(number), lane.counters.fd)

    def _make(self, wanted: Wanted) -> None:
        sockets = open_sockets(wanted.address, wanted.port, wanted.number)
        try:
            tuns, offloads = open_tun(wanted.device, wanted.offload, wanted.number)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        self._equip(tuns, sockets, [make_counters() for _ in sockets], offloads)

    def _adopt(self, shelf: Shelf, wanted: Wanted) -> bool:
        """Take over what is on the shelf; False where it is not what is wanted, with a word."""
        try:
            tuns, sockets, offloads = adopt(shelf, wanted)
        except BackendError as error:
            log.info("what was kept cannot be used: %s; device and port are opened anew", error)
            return False
        log.info("TUN device %s and UDP %s:%d were kept, with what waits in them", wanted.device, wanted.address, wanted.port)
        self._equip(tuns, sockets, [adopt_counters(shelf, number) for number in range(wanted.number)], offloads)
        self._counted = [0] * len(COUNTERS)  # the lanes' counters hold what was counted before
        return True

    def _equip(
        self, tuns: Sequence[int], sockets: Sequence[socket.socket], counters: Sequence[Counters], offloads: Offload
    ) -> None:
        if Offload.HEADER in offloads:
            for sock in sockets:
                offloads |= ask_socket(sock)
        self.offloads = offloads
        self.lanes = tuple(Lane(*each) for each in zip(tuns, sockets, counters, strict=True))

    def close(self) -> None:
        """Give everything back; what is not on the shelf vanishes. May be called twice."""
        self._counted = self.counted()
        lanes, self.lanes = self.lanes, ()
        for lane in lanes:
            lane.close()

    def counted(self) -> list[int]:
        """The sums over all lanes, in the order of COUNTERS: since this object was made, or what it took over."""
        return [sum(each) for each in zip(self._counted, *(lane.counters.read() for lane in self.lanes), strict=True)]
