"""How does a backend's userspace datapath stay up? Opened, fed and run; opened again when it fails, with the reason reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from flannelpy.agent.report import Reporter
from flannelpy.agent.view import Cursor
from flannelpy.core.backend import Backend, Datapath, DatapathStatus, FdStore, HasStatus, LeavesBehind, Local, RefusesPeers
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.moving import Begins, Retires, Succeeds
from flannelpy.core.objects import Fou, HostState, Key, Link, Scope
from flannelpy.core.plan import Step
from flannelpy.kernel import Kernel

log = logging.getLogger("flannelpy")

FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0
STEADY_S = 10.0
"""One that has run for so long was well; its next failure is a first one."""


async def make_way(kernel: Kernel, scope: Scope, wanted: HostState | None) -> None:
    """Take away what another engine of a backend left, a device or a port, in the place of what a datapath is about to open.

    Raises KernelError where the kernel cannot be asked. Nothing is in the way of none (``wanted`` None).
    """
    if wanted is None:
        return
    names = {item.name: item for item in wanted if isinstance(item, Link)}
    found = await kernel.observe(scope, [Key("link", ""), Key("fou", "")])
    devices = [item for item in found if isinstance(item, Link) and item.name in names and names[item.name].must_be_remade(item)]
    ports = [item for item in found if isinstance(item, Fou) and item.key not in wanted]
    steps = [Step("remove", item, item) for item in devices] + [Step("remove", item, item) for item in ports]
    for result in await kernel.apply(steps):
        log.info("another engine's: %s%s", result.step, f": {result.error}" if result.error else "")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What moves the packets of ``backend`` on this host; ``datapath`` None: the kernel does.

    ``clear`` is awaited before: it makes way for the one that is wanted; or, for none, lets what takes its place be made first.
    """

    datapath: Datapath | None
    backend: Backend
    local: Local
    clear: Callable[[], Awaitable[None]]


class DatapathSupervisor:
    """The datapath of a backend that has one; never two at a time. ``on_open`` is called when its device is there."""

    def __init__(self, reporter: Reporter, fd_store: FdStore, peers: Cursor, on_open: Callable[[], None]) -> None:
        self.tried = asyncio.Event()
        """Set while the last one that was wanted has been tried, whatever came of it, or none is wanted."""
        self.refused: Mapping[str, str] = {}
        """The peers that it fails for, by lease key, and how."""
        self._reporter = reporter
        self._fd_store = fd_store
        self._peers = peers
        self._on_open = on_open
        self._wanted: Wanted | None = None
        self._changed = asyncio.Event()
        self._datapath: Datapath | None = None
        self._open = False

    @property
    def has_datapath(self) -> bool:
        """True where the backend has running code."""
        return self._datapath is not None

    @property
    def moves_packets(self) -> bool:
        """True where no packet flows without it."""
        return self._datapath is not None and not isinstance(self._datapath, LeavesBehind)

    @property
    def begun(self) -> bool:
        """False while packets wait for the running code of a backend that has some."""
        datapath = self._datapath if self.tried.is_set() else None
        waiting = self._wanted is not None and self._wanted.datapath is not None
        return not waiting or (datapath is not None and (not isinstance(datapath, Begins) or datapath.begun))

    @property
    def may_publish(self) -> bool:
        """False while what others set up for us is not set up yet; whether a device of ours is there the reconciler knows."""
        wanted = None if self._wanted is None else self._wanted.datapath
        return self._open or not isinstance(wanted, LeavesBehind)

    def status(self) -> DatapathStatus | None:
        """What the datapath says of itself; None where there is none, or it says nothing."""
        return self._datapath.status() if isinstance(self._datapath, HasStatus) else None

    def set(self, wanted: Wanted) -> None:
        """Have this one: adapted where the one that runs can go on, else opened in its place."""
        before, self._wanted = self._wanted, wanted
        if before is not None and self._adopt(before, wanted):
            return
        self.tried.clear()
        self._changed.set()

    def _refuse(self, refused: Mapping[str, str]) -> None:
        self.refused = dict(refused)
        self._reporter.set("peer-failed", self.refused)

    def _adopt(self, before: Wanted, wanted: Wanted) -> bool:
        """True where what runs can go on, and does."""
        if wanted.datapath is None or before.datapath is None:
            return wanted.datapath is before.datapath
        same = before.backend.name == wanted.backend.name
        return same and self._open and self._datapath is not None and self._datapath.adopt(wanted.local, wanted.backend)

    def feed(self) -> None:
        """Hand on what has changed among the peers."""
        if self._open and self._datapath is not None and (changed := self._peers.take()):
            self._datapath.update(changed)

    async def run(self) -> None:
        """Keep what is wanted up, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = self._wanted
            if wanted is None or wanted.datapath is None:
                await self._fd_store.drop(*self._fd_store.names)  # another carrier's, and in the way
                self._datapath = None
                self._reporter.set("datapath-failed", {})
                self._refuse({})
                if self._wanted is wanted:  # else another one is wanted since, which has not been tried
                    self.tried.set()
                continue
            before, self._datapath = self._datapath, wanted.datapath
            if before is not None and before is not self._datapath and isinstance(self._datapath, Succeeds):
                self._datapath.succeed(before)
            leaving = asyncio.Event()
            serving = asyncio.create_task(self._serve(wanted.datapath, wanted, leaving), name="datapath")
            changed = asyncio.create_task(self._changed.wait(), name="datapath changed")
            try:
                await asyncio.wait({serving, changed}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
                elif isinstance(wanted.datapath, Retires):
                    wanted.datapath.retire()
                if not serving.done() and self._wanted is not None and self._wanted.datapath is None:
                    await self._clear(self._wanted)
            except Exception:
                self._changed.set()  # whoever begins this task anew finds it wanted
                raise
            finally:
                changed.cancel()
                leaving.set()
                serving.cancel()  # once: a second time would cut short what ends its processes
                await asyncio.gather(serving, return_exceptions=True)

    async def _clear(self, wanted: Wanted) -> None:
        """Let what takes the datapath's place be made first; or until something else is wanted: who wants that may be who makes."""
        self._changed.clear()
        clearing = asyncio.create_task(_awaited(wanted.clear()), name="datapath clearing")
        other = asyncio.create_task(self._changed.wait(), name="datapath wanted")
        try:
            await asyncio.wait({clearing, other}, return_when=asyncio.FIRST_COMPLETED)
            if clearing.done():
                clearing.result()
        finally:
            self._changed.set()  # there is something to begin with in any case
            for task in (clearing, other):
                task.cancel()
            await asyncio.gather(clearing, other, return_exceptions=True)

    async def _serve(self, datapath: Datapath, wanted: Wanted, leaving: asyncio.Event) -> None:
        """One datapath, opened again and again, until ``leaving``: a failure at that moment hides that it was cancelled."""
        delay, loop = FIRST_RETRY_S, asyncio.get_running_loop()
        self._refuse({})
        if isinstance(datapath, RefusesPeers):
            datapath.listen(self._refuse)
        while True:
            began = loop.time()
            try:
                await wanted.clear()
                await datapath.open(self._fd_store)
                self._open = True
                self._peers.rewind()
                self.feed()
                self._reporter.set("datapath-failed", {})
                self._on_open()
                self.tried.set()
                await datapath.run()
            except (FlannelpyError, OSError) as error:
                if leaving.is_set():
                    return
                self._reporter.set("datapath-failed", {"": f"{error}; trying again"})
            finally:
                self._open = False
                self._peers.leave()
                self.tried.set()
                await datapath.close()
            delay = FIRST_RETRY_S if loop.time() - began > STEADY_S else delay
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_S)


async def _awaited(what: Awaitable[None]) -> None:
    await what
