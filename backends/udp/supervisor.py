"""How does the agent keep packets moving? It has device and sockets opened, starts a worker on each pair and anew when it dies.

What is open (``queues``) and who is where (``table``) stay with the agent, so a dead worker costs the time of one start (about
0.1 s), in which the packets of its pair wait in the device's queue and in the socket, and the other workers go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from backends.udp.counters import COUNTERS
from backends.udp.launch import Launched, launch
from backends.udp.protocol import (
    DEVICE_GONE,
    GUARD,
    GUARDS,
    NO_BULK,
    OVERLAY,
    PATHS,
    Block,
    Guard,
    Offload,
    Order,
    Setting,
    name_of,
)
from backends.udp.queues import QueuePair, Queues
from backends.udp.table import Table
from flannelpy.core.backend import Backend, DatapathStatus, FdStore, Local, WorkerStatus
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError
from flannelpy.core.model import Lease

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
"""Before the second restart in a row, doubled until the longest; the first restart is at once."""

LOOK_EVERY_S = 1.0
"""Between two looks whether the device is still there, which a worker sees only where it was deleted."""

STEADY_S = 10.0
"""A worker that lived this long clears the record of those that died before it."""


class Terms(NamedTuple):
    """The options that concern the userspace datapath."""

    port: int
    guard: Guard
    workers: int


@runtime_checkable
class HasTerms(Protocol):
    """A backend whose packets this datapath may move; None: by another engine."""

    @property
    def userspace(self) -> Terms | None: ...


class UserspaceDatapath:
    """The datapath of one device and port, for a ``local`` that holds a lease. See ``flannelpy.core.backend.Datapath``.

    Without ``offload`` packets are moved one by one, as where the kernel offloads nothing.
    """

    def __init__(self, local: Local, *, device: str, terms: Terms, offload: bool = True) -> None:
        self._uplink = local.uplink
        self._own = _block(local.own)
        self._overlay = _overlay(local.config)
        self._device, self._terms = device, terms
        self._number = min(terms.workers, cores())
        self.queues = Queues(device, terms.port, self._number, offload)
        self._workers: set[Launched] = set()  # those that live
        self._moving: set[Launched] = set()  # and of them, those that move packets
        self._statuses: dict[str, WorkerStatus] = {}  # by the worker's name
        self._peers = Table()

    async def open(self, fd_store: FdStore) -> None:
        """Make device and sockets, or take them over from the fd store. Raises BackendError: what is in the way and its remedy."""
        await self.close()
        port = self._terms.port
        if self._uplink.address is None:
            raise BackendError(f"interface {self._uplink.name} has no IPv4 address: expected one, to bind UDP port {port} to")
        await self.queues.open(str(self._uplink.address), fd_store)
        asked, have = self._terms.workers, len(self.queues.pairs)
        if have < self._number:
            log.warning("udp workers: one and not %d, for this kernel's TUN has a single queue", asked)
        elif have < asked:
            log.info("udp workers: %d and not %d, for this host has no more cores", have, asked)

    @property
    def begun(self) -> bool:
        """See ``flannelpy.core.moving.Begins``."""
        return 0 < len(self.queues.pairs) <= len(self._moving)

    async def close(self) -> None:
        """Give back device and sockets; what is not in an fd store vanishes. May be called twice."""
        self.queues.close()

    def counters(self) -> Mapping[str, int]:
        """Everything counted since this object was made, by the names in ``COUNTERS``; at most one burst old."""
        return dict(zip(COUNTERS, self.queues.counted(), strict=True))

    def status(self) -> DatapathStatus:
        """See ``flannelpy.core.backend.HasStatus``."""
        on = self.queues.offloads
        missing = tuple(name_of(each) for each in Offload if each not in on)
        workers = tuple(self._statuses.values())
        return DatapathStatus(self._device, tuple(map(name_of, on)), missing, workers, self.counters(), self.queues.refused())

    # ------------------------------------------------------------------------------------------------ what may change

    def update(self, peers: Mapping[str, Lease | None]) -> None:
        """Peers by lease key that came or changed; None for one that went."""
        self._order(self._peers.change(peers))

    def adopt(self, local: Local, backend: Backend | None = None) -> bool:
        """Go on as ``local``, by the options of ``backend`` (None: the same ones), without an interruption.

        False where device or sockets would have to be others: another address, subnet, port, number of workers or engine.
        """
        terms = self._terms
        if backend is not None:
            wanted = backend.userspace if isinstance(backend, HasTerms) else None
            if wanted is None or (wanted.port, wanted.workers) != (terms.port, terms.workers):
                return False
            terms = wanted
        if local.uplink.address != self._uplink.address or _block(local.own) != self._own:
            return False
        orders = []
        if local.uplink != self._uplink:
            orders.append(Order(PATHS))  # its MTU, or it is another interface with the same address
        if (overlay := _overlay(local.config)) != self._overlay:
            orders.append(Order(OVERLAY, *overlay))
        if terms.guard != self._terms.guard:
            orders.append(_guard(terms))
        self._uplink, self._overlay, self._terms = local.uplink, overlay, terms
        self._order(orders)
        return True

    def _order(self, orders: list[Order]) -> None:
        if orders:
            for worker in self._workers:
                worker.send(orders)

    # ----------------------------------------------------------------------------------------------------- worker

    async def run(self) -> None:
        """Move packets until cancelled. A worker that dies is replaced.

        Raises BackendError once the device was deleted, renamed or moved away, or has to be one without offloads.
        """
        pairs = self.queues.pairs
        if not pairs:
            raise BackendError("the udp datapath is not open")
        several = f" {{}} of {len(pairs)}" if len(pairs) > 1 else ""
        names = ["udp worker" + several.format(number) for number in range(1, len(pairs) + 1)]
        keeping = [asyncio.create_task(self._keep(pair, name), name=name) for pair, name in zip(pairs, names, strict=True)]
        ended: set[asyncio.Task[None]] = set()
        try:  # no TaskGroup: where a worker fails as this is cancelled, it would tell of the failure only
            while not ended:
                ended, _ = await asyncio.wait(keeping, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_EXCEPTION)
                if not ended and (why := self.queues.absence()):
                    raise BackendError(f"TUN device {self._device} {why}")
        finally:
            for each in keeping:
                each.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
        for each in ended:  # a device that is gone is gone for all of them
            each.result()

    async def _keep(self, pair: QueuePair, name: str) -> None:
        """One worker after the other on this pair; ``name`` is for the log."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        self._note(name, None)
        while True:
            started = loop.time()
            try:
                code = await self._live(pair, name)
                fate = _fate(code)
            except OSError as error:  # no descriptor or no process to be had: the others go on
                code, fate = 0, f"cannot be started: {error.strerror}"
            if code == DEVICE_GONE:
                raise BackendError(f"TUN device {self._device} was deleted")
            if code == NO_BULK:
                self.queues.offload = False  # a device without offloads is another device
                raise BackendError("numpy is there and cannot be loaded; without it the workers move packets one by one")
            self._note(name, None, died=1)
            in_a_row = 0 if loop.time() - started >= STEADY_S else in_a_row
            delay = min(FIRST_BACKOFF_S * 2 ** (in_a_row - 1), LONGEST_BACKOFF_S) if in_a_row else 0.0
            in_a_row += 1
            again = f"a new one in {delay:g} s" if delay else "a new one starts now"
            log.warning("%s %s; %s", name, fate, again)
            await asyncio.sleep(delay)

    async def _live(self, pair: QueuePair, name: str) -> int:
        """One worker from start to end; its exit code. Raises OSError where none can be started."""
        worker = await launch(partial(self._setting, pair), pair.counters.beat, name)
        self._note(name, worker.pid)
        self._workers.add(worker)
        # What has changed since its command line was made, too: a fork takes its time, several workers' so many times that.
        worker.begin([Order(OVERLAY, *self._overlay), _guard(self._terms), *self._peers.orders()])
        announcing = asyncio.create_task(self._announce(worker, name))
        try:
            return await worker.wait()
        finally:
            announcing.cancel()
            self._workers.remove(worker)
            self._moving.discard(worker)
            await worker.stop()
            self._note(name, None)

    async def _announce(self, worker: Launched, name: str) -> None:
        if await worker.ready():
            self._moving.add(worker)
            words = (name, worker.pid, self._device, len(self._peers), self.queues.offloads)
            log.info("%s: process %d moves packets on %s, %d peers, offloads: %s", *words)

    def _setting(self, pair: QueuePair, control: int) -> Setting:
        return Setting(
            tun=pair.tun,
            socket=pair.socket.fileno(),
            control=control,
            counters=pair.counters.fd,
            parent=os.getpid(),
            port=self._terms.port,
            network=self._own[0],
            length=self._own[1],
            overlay=self._overlay[0],
            overlay_length=self._overlay[1],
            guard=self._terms.guard,
            offloads=self.queues.offloads.value,
        )

    def _note(self, name: str, pid: int | None, *, died: int = 0) -> None:
        before = self._statuses.get(name)
        self._statuses[name] = WorkerStatus(pid, died + (before.restarts if before is not None else 0))


def cores() -> int:
    """How many this process may run on: a worker more would take turns with another one."""
    return len(os.sched_getaffinity(0))


def _block(lease: Lease) -> Block:
    return lease.subnet.first, lease.subnet.prefixlen


def _guard(terms: Terms) -> Order:
    return Order(GUARD, host=GUARDS.index(terms.guard))


def _overlay(config: NetworkConfig) -> Block:
    """The whole IPv4 Network. Raises BackendError where there is none."""
    if config.v4 is None:
        raise BackendError("udp carries IPv4 only, and the network config has no IPv4 Network")
    return config.v4.network.first, config.v4.network.prefixlen


def _fate(code: int) -> str:
    """How a process ended, for the log."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
