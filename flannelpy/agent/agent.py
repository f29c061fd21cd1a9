"""How does the agent live? Signals, the lock, health pages; in its network until its owner ends it, and gone without a trace.

What is only for who asks (the status, the pages) is imported when somebody does: until the subnet file stands, containers wait.
What ends it is a closed list: SIGTERM or SIGINT, wrong options, a lock that somebody else holds, ``--exit-on-subnet-change``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING

from flannelpy import __version__
from flannelpy.agent.api import answering, plan_page, setup_page
from flannelpy.agent.context import Context, Timeouts
from flannelpy.agent.events import Ring
from flannelpy.agent.fd_store import SystemdFdStore
from flannelpy.agent.health_port import health_port
from flannelpy.agent.lock import Claimant, Claims, hold_lock
from flannelpy.agent.network import Network
from flannelpy.agent.overview import live, overview
from flannelpy.agent.readiness import why_not
from flannelpy.agent.report import Reporter
from flannelpy.agent.systemd import Notifier, feed_watchdog, inherited, keep_posted, status_line, watchdog_s
from flannelpy.core.backend import FdStore, NoFdStore
from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.core.health import Health
from flannelpy.core.objects import Scope
from flannelpy.core.plan import Plan
from flannelpy.core.uplink import Wish
from flannelpy.explain import places
from flannelpy.explain.health_pages import health_pages
from flannelpy.explain.http import Page, Pages
from flannelpy.explain.wall_clock import wall_clock
from flannelpy.kernel import Kernel
from flannelpy.registry import Assigned, Registry
from flannelpy.settings import Settings

if TYPE_CHECKING:
    from flannelpy.explain.status import Status

log = logging.getLogger("flannelpy")

PAGES = (
    "flannelpy.agent.preview",
    "flannelpy.agent.status",
    *(f"flannelpy.explain.{name}" for name in ("metrics", "page", "plan", "setup", "status")),
)
PAGES_S = 3.0
"""What is for whoever asks is imported when somebody does, at the latest after so many seconds: an upgrade exchanges the files of a
running agent, and what it had not read by then would be of another version."""

STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def run(settings: Settings) -> int:
    """Run the agent until it is told to stop. Returns the exit code: 0 for a clean stop, 1 for a failure (said in one line)."""
    from flannelpy.kernel.netlink import NetlinkKernel

    notifier, left = Notifier(), inherited()
    fd_store = SystemdFdStore(notifier, left) if notifier.listened_to else NoFdStore()
    (registry, assigned), kernel = reach(settings), NetlinkKernel()
    try:
        return await Agent(settings, registry, kernel, notifier, fd_store, assigned=assigned).run()
    finally:
        await registry.close()
        await kernel.close()


def reach(settings: Settings) -> tuple[Registry, Assigned | None]:
    """Where leases live, and what of it is ours where they are assigned; no other's libraries are loaded. Raises UsageError."""
    if settings.kube is not None:
        from flannelpy.registry.kube.access import EXTRA

        try:
            from flannelpy.registry.kube.registry import KubeRegistry
        except ModuleNotFoundError as error:
            raise UsageError(f"--kube-subnet-mgr needs {error.name}: {EXTRA}") from None

        nodes = KubeRegistry(settings.kube)
        return nodes, nodes
    from flannelpy.registry.etcd.registry import EtcdRegistry

    return EtcdRegistry(settings.endpoint), None


def clock() -> float:
    """Seconds, monotonic, also through a suspend: leases run on while a machine sleeps (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Agent:
    """One host's agent, for one call of ``run``."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        kernel: Kernel,
        notifier: Notifier,
        fd_store: FdStore | None = None,
        timeouts: Timeouts | None = None,
        claims: Claims | None = None,
        assigned: Assigned | None = None,
    ) -> None:
        wish = Wish(settings.iface, settings.iface_regex, settings.iface_can_reach, settings.public_ip, settings.public_ipv6)
        self._context = Context(
            settings,
            wish,
            registry,
            kernel,
            Reporter(clock, settings.registry_name),
            notifier,
            fd_store or NoFdStore(),
            clock,
            timeouts or Timeouts(),
            claims=claims or Claims(Claimant(os.getpid(), str(settings.run_dir), settings.endpoint.prefix)),
            assigned=assigned,
        )
        self._context.reporter.listeners.append(self._context.events.conditions)
        self._network: Network | None = None
        self._born = clock()

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT or a failure; see the module's ``run``."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in STOPPING_SIGNALS:
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.audit)
        main = asyncio.create_task(self._main(), name="agent")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({main, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not main.done():
                log.info("stopping; %s", self._what_stays)
                self._context.notifier.stopping()
                main.cancel()
            await main
        except asyncio.CancelledError:
            return 0
        except FlannelpyError as error:
            log.error("%s", error)
            return 1
        except BaseExceptionGroup as group:
            known, rest = group.split(FlannelpyError)
            for leaf in _leaves(known):
                log.error("%s", leaf)
            if rest is not None:
                raise rest from None
            return 1
        finally:
            stopped.cancel()
            for number in (*STOPPING_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # on the way out: a second one would only spoil the exit code
        return 0

    async def _main(self) -> None:
        context = self._context
        log.info("flannelpy %s", __version__)
        for note in context.settings.notes:
            log.info("%s", note)
        with closing(context.claims), hold_lock(context.settings.run_dir, context.settings.endpoint.prefix) as held:
            run_dir = context.settings.run_dir
            others = {places.SETUP: setup_page(context.settings), places.PLAN: plan_page(self._planned)}
            socket = answering(run_dir, self.status, context.events, self._with_drops, others) if held else nullcontext()
            pages = health_port(context.settings, context.reporter, self._health_pages)
            async with pages, socket, self._known_to_systemd():
                asyncio.get_running_loop().call_later(PAGES_S, _load_pages)
                await self.live()

    async def live(self) -> None:
        """In the network, until cancelled. Raises EndAgentError."""
        network = self._network = Network(self._context)
        try:
            await network.run()
        except asyncio.CancelledError:
            if self._context.settings.release_on_exit:
                await network.release()
                fd_store = self._context.fd_store
                await fd_store.drop(*fd_store.names)  # who gives its lease back does not take it up again unasked
            raise

    def audit(self) -> None:
        """Look at everything once more, now (SIGHUP)."""
        if self._network is not None:
            log.info("looking at everything anew")
            self._network.audit()

    def _health_pages(self) -> Pages:
        pages = health_pages(lambda: self.ready, self._why_not, self._wrong, self._silent_s)
        browser = overview(self.status, self.events, self._context.clock)
        return {**pages, places.METRICS: self._metrics, places.OVERVIEW: browser, places.EVENTS: live(self.events)}

    async def _metrics(self, _query: Mapping[str, str]) -> Page:
        from flannelpy.agent.status import measured
        from flannelpy.explain import metrics

        await asyncio.to_thread(import_module, "prometheus_client")  # the first time: 50 ms, of which 40 are an HTTP server
        status = await self._with_drops(self.status())
        return 200, metrics.CONTENT_TYPE, metrics.page(measured(status, self._network, self._silent_s(), wall_clock()))

    @asynccontextmanager
    async def _known_to_systemd(self) -> AsyncIterator[None]:
        """systemd shows what we do, and hears that we live, for the time of the block."""
        notifier = self._context.notifier
        if not notifier.listened_to:
            yield
            return
        tasks = [
            asyncio.create_task(keep_posted(notifier, self._status_line), name="status line"),
            asyncio.create_task(feed_watchdog(notifier, watchdog_s(), self._silent_s), name="watchdog"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _status_line(self) -> str:
        running = "" if self._network is None else self._network.publisher.summary
        return status_line(self.ready, running, self._why_not(), [text for text in self._wrong() if text.startswith("error: ")])

    def _why_not(self) -> tuple[str, ...]:
        return why_not(self._network, self.health)

    def _wrong(self) -> list[str]:
        worst_first = sorted(self.health, key=lambda active: -active.condition.severity)
        return [f"{active.condition.severity.name.lower()}: {active.text}" for active in worst_first]

    def _silent_s(self) -> float:
        """How long the reconciler has not turned."""
        return 0.0 if self._network is None else time.monotonic() - self._network.reconciler.heartbeat

    @property
    def events(self) -> Ring:
        """What has happened, for ``flannelpy events``."""
        return self._context.events

    def status(self) -> Status:
        """For ``flannelpy status``."""
        from flannelpy.agent.status import document

        return document(self._context, self._network, self.ready, self._born, wall_clock())

    async def _with_drops(self, status: Status) -> Status:
        from flannelpy.agent.status import with_drops

        table = Scope().table if self._network is None else self._network.steering.scope.table
        return await with_drops(status, self._context.kernel, table)

    async def _planned(self) -> tuple[Plan, tuple[str, ...]]:
        from flannelpy.agent.preview import of_running

        return await of_running(self._context.kernel, self._network)

    @property
    def _what_stays(self) -> str:
        if self._context.settings.release_on_exit:
            return "the lease is given back"
        if self._network is not None and self._network.datapath.moves_packets:
            if isinstance(self._context.fd_store, NoFdStore):
                return "the lease stays; packets are cut off until the next start, which brings the pump back"
            return "the lease stays; at a restart by systemd packets wait, after a stop they are cut off"
        return "the lease and what is programmed stay, so that packets keep flowing"

    @property
    def health(self) -> Health:
        """What is wrong now."""
        return self._context.reporter.health

    @property
    def ready(self) -> bool:
        """True while the host carries traffic, as far as is known."""
        return self._network is not None and self._network.carries()


def _load_pages() -> None:
    for name in PAGES:
        import_module(name)


def _leaves(group: BaseExceptionGroup[FlannelpyError] | None) -> list[FlannelpyError]:
    """The errors themselves, out of however many groups."""
    if group is None:
        return []
    found: list[FlannelpyError] = []
    for inner in group.exceptions:
        found += _leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner]
    return found
