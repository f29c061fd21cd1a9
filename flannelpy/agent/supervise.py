"""How does a backend's packet pump stay up? Opened, fed and run; opened again when it fails, with the reason told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from flannelpy.agent.report import Reporter
from flannelpy.core.backend import Backend, Datapath, DatapathStatus, FdStore, HasStatus, Local
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease
from flannelpy.core.objects import Fou, HostState, Key, Link, Scope
from flannelpy.core.plan import Step
from flannelpy.kernel import Kernel

log = logging.getLogger("flannelpy")

FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0


async def make_way(kernel: Kernel, scope: Scope, wanted: HostState) -> None:
    """Take away what another engine of a backend left, a device or a port, in the place of what a pump is about to open.

    Raises KernelError where the kernel cannot be asked.
    """
    names = {item.name: item for item in wanted if isinstance(item, Link)}
    found = await kernel.observe(scope, [Key("link", ""), Key("fou", "")])
    devices = [item for item in found if isinstance(item, Link) and item.name in names and names[item.name].must_be_remade(item)]
    ports = [item for item in found if isinstance(item, Fou) and item.key not in wanted]
    steps = [Step("remove", item, item) for item in devices] + [Step("remove", item, item) for item in ports]
    for result in await kernel.apply(steps):
        log.info("another engine's: %s%s", result.step, f": {result.error}" if result.error else "")


class DatapathSupervisor:
    """The pump of a backend that has one: one for each lease of ours, never two at a time."""

    def __init__(
        self,
        backend: Backend,
        reporter: Reporter,
        fd_store: FdStore,
        *,
        peers: Callable[[], Mapping[str, Lease]],
        make_way: Callable[[Local], Awaitable[None]],
        on_open: Callable[[], None],
    ) -> None:
        self.tried = asyncio.Event()
        """Set once the first attempt to open a pump is over, whatever came of it; or there is none to open."""
        self._backend = backend
        self._reporter = reporter
        self._shelf = fd_store
        self._peers = peers
        self._make_way = make_way
        self._on_open = on_open
        self._locals: asyncio.Queue[Local] = asyncio.Queue()
        self._pump: Datapath | None = None

    @property
    def has_datapath(self) -> bool:
        """True where the backend moves packets itself."""
        return self._pump is not None

    def status(self) -> DatapathStatus | None:
        """What the pump says of itself; None where there is none, or it says nothing."""
        return self._pump.status() if isinstance(self._pump, HasStatus) else None

    def set_local(self, local: Local) -> None:
        """The host is this now; the pump is made anew for it."""
        self._locals.put_nowait(local)

    def update(self, changed: Mapping[str, Lease | None]) -> None:
        """Peers that came, changed or went."""
        if self._pump is not None:
            self._pump.update(changed)

    async def run(self) -> None:
        """Keep a pump up, for ever; returns at once where the backend has none."""
        local = await self._locals.get()
        while True:
            self._pump = self._backend.datapath(local)
            if self._pump is None:
                await self._shelf.drop(*self._shelf.names)  # another backend's or engine's: its device and port are in the way
                self.tried.set()
                return
            async with asyncio.TaskGroup() as tasks:  # what it does not expect ends the agent, and not only the pump
                serving = tasks.create_task(self._serve(self._pump, local), name="pump")
                local = await self._locals.get()
                serving.cancel()

    async def _serve(self, pump: Datapath, local: Local) -> None:
        delay = FIRST_RETRY_S
        while True:
            try:
                await self._make_way(local)
                await pump.open(self._shelf)
                pump.update(self._peers())
                self._reporter.end("datapath-failed")
                self._on_open()
                self.tried.set()
                delay = FIRST_RETRY_S
                await pump.run()
            except (FlannelpyError, OSError) as error:
                self._reporter.begin("datapath-failed", f"{error}; trying again")
            finally:
                self.tried.set()
                await pump.close()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_S)
