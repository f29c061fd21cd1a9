"""Who learns that we are up? Docker through the subnet file, systemd through READY and STATUS, the next start through state files.

What stands on disk is looked at every few seconds and put back. Writing waits for a disk, so it is done beside the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from netaddr import IPNetwork

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.context import Context
from flannelpy.agent.guarded import EndAgentError
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease
from flannelpy.host import state as state_file
from flannelpy.host import subnet_env, view_file
from flannelpy.host.disk import Disk
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView

log = logging.getLogger("flannelpy")

LOOK_S = 5.0
"""How often the subnet file is looked at, and how long what failed waits, in seconds."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the subnet file is to say."""

    lease: Lease
    carriage: Carriage
    ip_masq: bool

    @property
    def env(self) -> subnet_env.SubnetEnv:
        """The file's content."""
        lease, config = self.lease, self.carriage.config
        subnets = tuple(net for net in (lease.subnet if config.v4 else None, lease.subnet6) if net is not None)
        return subnet_env.SubnetEnv(config.networks, subnets, self.carriage.mtu, self.ip_masq)


class Publisher:
    """Writes what others read, once the kernel is as it should be. ``ready`` turns true with the first subnet file.

    ``uses``: does this host still use a subnet (a bridge has an address in it)? ``previous`` is what the file said at start; only
    an IPv4 subnet that is another one now is told.
    """

    def __init__(self, context: Context, uses: Callable[[IPNetwork], Awaitable[bool]], previous: IPNetwork | None) -> None:
        self.ready = False
        self._context = context
        self._uses = uses
        before = [] if previous is None or previous.version != 4 or not previous.prefixlen else [previous]
        self._left: dict[IPNetwork, None] = dict.fromkeys(before)  # the last one last
        self._wanted: Published | None = None
        self._told: Published | None = None
        self._state: State | None = None
        self._view: Callable[[], KeptView | None] | None = None
        self._view_due = 0.0
        self._view_kept: KeptView | None = None
        self._disk = Disk()
        self._file = subnet_env.SubnetFile(context.settings.subnet_file)
        self._changed = asyncio.Event()
        self.summary = "ready"
        """What is carried, in a line."""

    def publish(self, lease: Lease, carriage: Carriage, peers: int) -> None:
        """The kernel carries traffic for ``lease``: say so. Cheap where nothing is new."""
        wanted = Published(lease, carriage, self._context.settings.ip_masq)
        if self._wanted is None or wanted.env != self._wanted.env or wanted.lease.key != self._wanted.lease.key:
            self._wanted = wanted
            self._changed.set()
        both = str(lease).partition(" at ")[0].replace("&", " and ")
        self.summary = f"{both} by {carriage.backend.name}, MTU {carriage.mtu}, {peers} peer{'' if peers == 1 else 's'}"

    def says(self, key: str) -> bool:
        """Whether the subnet file is that of the lease with this key."""
        return self._told is not None and self._told.lease.key == key

    def keep(self, state: State) -> None:
        """Keep what the next start needs, whatever becomes of this one."""
        self._state = state
        self._changed.set()

    def keep_view(self, make: Callable[[], KeptView | None]) -> None:
        """Keep what a start without etcd needs, some seconds from now: ``make`` is asked then."""
        self._view = make
        if asyncio.get_running_loop().time() >= self._view_due:
            self._changed.set()

    async def run(self) -> None:
        """Write what is new, and put back what somebody else has changed, for ever. Raises EndAgentError."""
        while True:
            self._changed.clear()
            await self._write_state()
            await self._write_subnet_file()
            if asyncio.get_running_loop().time() >= self._view_due:
                await self._write_view()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()

    async def close(self) -> None:
        """Write what is still to be written."""
        await self._disk.drain()
        await self._write_state()
        await self._write_view()

    async def _write_subnet_file(self) -> None:
        wanted, settings, reporter = self._wanted, self._context.settings, self._context.reporter
        if wanted is None:
            return
        try:
            wrong = await self._disk.do(lambda: self._file.put(wanted.env), settings.subnet_file)
        except FlannelpyError as error:
            reporter.set("subnet-file", {"": str(error)})
            return
        reporter.set("subnet-file", {})
        if wrong is not None and self._told is wanted:
            log.warning("%s %s; written anew", settings.subnet_file, wrong)
        if self._told is not wanted:
            self._tell(wanted)
        await self._watch_the_old()

    def _tell(self, wanted: Published) -> None:
        before, self._told = self._told, wanted
        lease, carriage = wanted.lease, wanted.carriage
        told = before.lease.subnet if before is not None else next(iter(self._left), None)
        if told is not None and told != lease.subnet and carriage.config.v4:
            self._left = {net: None for net in self._left if net != told} | {told: None}
            text = f"{lease.subnet}, it was {told}"
            if before is not None and self._context.settings.exit_on_subnet_change:
                raise EndAgentError(f"our subnet is {text}: ending, as --exit-on-subnet-change asks")
        if not self.ready:
            self.ready = True
            self._context.notifier.ready(self.summary)
            file = self._context.settings.subnet_file
            log.info("ready: %s by %s, MTU %d, in %s", lease, carriage.backend.name, carriage.mtu, file)
        elif before is not None and before.carriage.mtu != carriage.mtu:
            log.info("MTU %d now, it was %d: in %s", carriage.mtu, before.carriage.mtu, self._context.settings.subnet_file)

    async def _watch_the_old(self) -> None:
        """A subnet that is another one now is told for as long as something of this host uses the old one."""
        told = self._told
        if not self._left or told is None:
            return
        for left in list(self._left):
            if left == told.lease.subnet or not await self._uses(left):
                self._left.pop(left, None)
        were = " and ".join(map(str, self._left))
        self._context.reporter.set("subnet-changed", {"": f"{told.lease.subnet}, it was {were}"} if were else {})

    async def _write_state(self) -> None:
        """What is still to be written stays so until it was, also where this is cancelled."""
        state = self._state
        if state is None or not await self._try(lambda: state_file.write(self._context.settings.state_dir, state), ""):
            return
        if self._state is state:
            self._state = None

    async def promise(self, lease: Lease) -> None:
        """Keep what our lease is about to say, before it is written: a life that ends in between knows it for its own by that."""
        view = KeptView(self._context.settings.endpoint.prefix, "", lease.key, (lease,), lease.mod_revision)
        await self._try(lambda: view_file.write(self._context.settings.state_dir, view, view_file.PROMISED), view_file.FILE)

    async def _write_view(self) -> None:
        """Likewise."""
        make = self._view
        view = make() if make is not None else None
        if view is not None:
            self._view_due = asyncio.get_running_loop().time() + LOOK_S
            place, kept = self._context.settings.state_dir, self._view_kept

            def keep() -> None:
                if view != kept or not view_file.is_there(place):  # of thousands of leases writing takes its time
                    view_file.write(place, view)

            if not await self._try(keep, view_file.FILE):
                return
            self._view_kept = view
        if self._view is make:
            self._view = None

    async def _try(self, write: Callable[[], object], file: str) -> bool:
        """``file``: which one, empty for the state: what ends its trouble ends no other's. A view has what was promised, too."""
        try:
            await self._disk.do(write, self._context.settings.state_dir)
        except FlannelpyError as error:
            if not self._context.reporter.health.holds("state-dir"):  # that it cannot be read was said, and is the same trouble
                self._context.reporter.begin("state-dir", str(error), file)
            return False
        self._context.reporter.end("state-dir", file)
        return True
