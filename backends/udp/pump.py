"""How does the agent keep packets moving? It has device and sockets opened, starts a worker on each lane and anew when it dies.

What is open (``descriptors``) and the peer table stay with the agent, so a dead worker costs the time of one start (about 0.1 s),
in which the packets of its lane wait in the device's queue and in the socket, and the other workers go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping

from backends.udp.control import (
    COUNTERS,
    DELETE,
    DEVICE_GONE,
    READY,
    SET,
    START,
    Guard,
    Order,
    Setting,
    pack,
)
from backends.udp.descriptors import Descriptors, Lane
from backends.udp.offload import Offload, name_of
from flannelpy.core.backend import DatapathStatus, FdStore, Local, WorkerStatus
from flannelpy.core.errors import BackendError
from flannelpy.core.model import NO_ADDRESS, Lease

log = logging.getLogger(__name__)

STOP_WITHIN_S = 1.0
"""A worker that has not ended this long after its control stream is killed."""

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
"""Before the second restart in a row, doubled until the longest; the first restart is at once."""

STEADY_S = 10.0
"""A worker that lived this long clears the record of those that died before it."""

Subnet = tuple[int, int]
"""Network and prefix length, as the worker's table has them."""


class UdpPump:
    """The pump of one lease, which ``local`` must hold. See ``flannelpy.core.backend.Datapath``.

    Without ``offload`` packets are moved one by one, as where the kernel offloads nothing.
    """

    def __init__(
        self, local: Local, *, device: str, mtu: int, port: int, guard: Guard, workers: int = 1, offload: bool = True
    ) -> None:
        self._uplink = local.uplink
        self._own = _subnet(local.own)
        self._device, self._mtu, self._port, self._guard, self._workers = device, mtu, port, guard, workers
        self.descriptors = Descriptors(device, port, workers, offload)
        self._controls: set[asyncio.StreamWriter] = set()  # of the workers that live
        self._told: dict[str, WorkerStatus] = {}  # by the worker's name
        self._peers: dict[Subnet, tuple[str, int]] = {}  # -> lease key, PublicIP
        self._subnets: dict[str, Subnet] = {}  # lease key -> the subnet it holds in _peers

    async def open(self, fd_store: FdStore) -> None:
        """Make device and sockets, or take them over from the fd store. Raises BackendError: what is in the way and its remedy."""
        await self.close()
        if self._uplink.address is None:
            raise BackendError(f"interface {self._uplink.name} has no IPv4 address: expected one, to bind UDP port {self._port} to")
        await self.descriptors.open(str(self._uplink.address), fd_store)
        if len(self.descriptors.lanes) < self._workers:
            log.warning("udp worker: one and not %d, for this kernel's TUN has a single queue", self._workers)

    async def close(self) -> None:
        """Give back device and sockets; what is not in an fd store vanishes. May be called twice."""
        self.descriptors.close()

    def counters(self) -> Mapping[str, int]:
        """Everything counted since this object was made, by the names in ``control.COUNTERS``; at most one burst old."""
        return dict(zip(COUNTERS, self.descriptors.counted(), strict=True))

    def status(self) -> DatapathStatus:
        """See ``flannelpy.core.backend.HasStatus``."""
        on = self.descriptors.offloads
        missing = tuple(name_of(each) for each in Offload if each not in on)
        return DatapathStatus(self._device, tuple(map(name_of, on)), missing, tuple(self._told.values()), self.counters())

    # ------------------------------------------------------------------------------------------------------ peers

    def update(self, peers: Mapping[str, Lease | None]) -> None:
        """Peers by lease key that came or changed; None for one that went.

        Those that went are taken out first, so that a subnet can pass from one key to another in one call.
        """
        orders: list[Order] = []
        wanted = {key: lease if lease is not None and _reachable(lease) else None for key, lease in peers.items()}
        for key, lease in wanted.items():
            orders += self._drop(key, None if lease is None else _subnet(lease))
        for key, lease in wanted.items():
            if lease is not None:
                orders += self._set(key, _subnet(lease), int(lease.public_ip))
        if orders:
            for control in self._controls:
                control.write(pack(orders))

    def _drop(self, key: str, kept: Subnet | None) -> Iterable[Order]:
        """Forget what ``key`` holds, but not ``kept``."""
        subnet = self._subnets.get(key)
        if subnet is not None and subnet != kept:
            del self._subnets[key]
            del self._peers[subnet]
            yield Order(DELETE, *subnet)

    def _set(self, key: str, subnet: Subnet, host: int) -> Iterable[Order]:
        """Give ``subnet`` to ``key``, also where another key has it."""
        before = self._peers.get(subnet)
        if before == (key, host):
            return
        if before is not None:
            del self._subnets[before[0]]
        self._peers[subnet] = (key, host)
        self._subnets[key] = subnet
        yield Order(SET, *subnet, host)

    # ----------------------------------------------------------------------------------------------------- worker

    async def run(self) -> None:
        """Move packets until cancelled. Raises BackendError once the device was deleted; a worker that dies is replaced."""
        lanes = self.descriptors.lanes
        if not lanes:
            raise BackendError("the udp pump is not open")
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, lane in enumerate(lanes, 1):
                    name = f"udp worker {number} of {len(lanes)}" if len(lanes) > 1 else "udp worker"
                    tasks.create_task(self._keep(lane, name), name=name)
        except ExceptionGroup as failed:  # a device that is gone is gone for all of them: the first one's word will do
            raise failed.exceptions[0] from None

    async def _keep(self, lane: Lane, name: str) -> None:
        """One worker after the other on this lane; ``name`` is for the log."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        self._tell(name, None)
        while True:
            started = loop.time()
            code = await self._live(lane, name)
            if code == DEVICE_GONE:
                raise BackendError(f"TUN device {self._device} was deleted")
            self._tell(name, None, died=1)
            in_a_row = 0 if loop.time() - started >= STEADY_S else in_a_row
            delay = min(FIRST_BACKOFF_S * 2 ** (in_a_row - 1), LONGEST_BACKOFF_S) if in_a_row else 0.0
            in_a_row += 1
            again = f"a new one in {delay:g} s" if delay else "a new one starts now"
            log.warning("%s %s; %s", name, _fate(code), again)
            await asyncio.sleep(delay)

    async def _live(self, lane: Lane, name: str) -> int:
        """One worker from start to end; its exit code."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            setting = Setting(
                tun=lane.tun,
                socket=lane.socket.fileno(),
                control=theirs.fileno(),
                counters=lane.counters.fd,
                parent=os.getpid(),
                port=self._port,
                mtu=self._mtu,
                network=self._own[0],
                length=self._own[1],
                guard=self._guard,
                offloads=self.descriptors.offloads.value,
            )
            try:
                process = await start(setting)
            except BaseException:
                writer.close()
                raise
        self._tell(name, process.pid)
        whole = [Order(SET, *subnet, host) for subnet, (_, host) in self._peers.items()]
        writer.write(pack([*whole, Order(START)]))
        self._controls.add(writer)
        try:
            with contextlib.suppress(ConnectionError):  # reset by one that died with orders unread
                if await reader.read(1) == READY:
                    told = (name, process.pid, self._device, len(self._peers), self.descriptors.offloads)
                    log.info("%s: process %d moves packets on %s, %d peers, offloads: %s", *told)
            return await process.wait()
        finally:
            self._controls.remove(writer)
            writer.close()
            await stop(process)
            self._tell(name, None)

    def _tell(self, name: str, pid: int | None, *, died: int = 0) -> None:
        before = self._told.get(name)
        self._told[name] = WorkerStatus(pid, died + (before.restarts if before is not None else 0))


async def start(setting: Setting) -> asyncio.subprocess.Process:
    """A worker with the descriptors of ``setting``; its stderr is ours, for tracebacks."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "backends.udp.worker", *setting.words()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=None,
        pass_fds=(setting.tun, setting.socket, setting.control, setting.counters),
    )


async def stop(process: asyncio.subprocess.Process) -> None:
    """Wait for a worker whose control stream was ended; kill it where it takes too long."""
    if process.returncode is None:
        try:
            await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            log.warning("udp worker %d does not end by itself: killed", process.pid)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _subnet(lease: Lease) -> Subnet:
    return lease.subnet.first, lease.subnet.prefixlen


def _reachable(lease: Lease) -> bool:
    """False for an IPv6-only node's lease, which names no IPv4 address and no IPv4 subnet."""
    return bool(lease.public_ip != NO_ADDRESS and lease.subnet.prefixlen > 0)


def _fate(code: int) -> str:
    """How a process ended, for the log."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
