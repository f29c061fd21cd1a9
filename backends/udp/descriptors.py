"""What does the pump hold open, whoever moves the packets? A TUN queue, a socket and counters for each worker: its lane.

They stay with the agent, so that packets wait in the queue and in the socket while a worker is replaced.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from backends.udp.control import COUNTERS, Counters, make_counters
from backends.udp.offload import Offload, ask_socket
from backends.udp.tun import open_sockets, open_tun, possible_queues


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

    def open(self, address: str) -> None:
        """Make device and sockets, these at ``address``; nothing may be open. Raises BackendError: what is in the way."""
        number = possible_queues(self._workers)
        sockets = open_sockets(address, self._port, number)
        try:
            tuns, self.offloads = open_tun(self._device, self.offload, number)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        if Offload.HEADER in self.offloads:
            for sock in sockets:
                self.offloads |= ask_socket(sock)
        self.lanes = tuple(Lane(tun, sock, make_counters()) for tun, sock in zip(tuns, sockets, strict=True))

    def close(self) -> None:
        """Give everything back; the device vanishes. May be called twice."""
        self._counted = self.counted()
        lanes, self.lanes = self.lanes, ()
        for lane in lanes:
            lane.close()

    def counted(self) -> list[int]:
        """The sums over all lanes since this object was made, in the order of COUNTERS."""
        return [sum(each) for each in zip(self._counted, *(lane.counters.read() for lane in self.lanes), strict=True)]
