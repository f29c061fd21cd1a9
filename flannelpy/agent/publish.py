"""Who learns that we are up? Docker through the subnet file, systemd through READY, the next start through the state file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from flannelpy.agent.report import Reporter
from flannelpy.agent.start import Situation
from flannelpy.agent.systemd import Notifier
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease
from flannelpy.host import state as state_file
from flannelpy.host import subnet_env, view_file
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView
from flannelpy.settings import Settings

log = logging.getLogger("flannelpy")

RETRY_S = 2.0


@dataclass(slots=True)
class Publisher:
    """Writes what others read, once the kernel is as it should be. ``ready`` turns true with the first subnet file."""

    settings: Settings
    situation: Situation
    reporter: Reporter
    notifier: Notifier
    on_moved: Callable[[Lease, Lease], None]
    ready: bool = False
    _published: Lease | None = None
    _retrying: bool = False
    _status: str = ""

    def publish(self, lease: Lease, peers: int) -> None:
        """The kernel carries traffic for ``lease``: tell it. Cheap where nothing is new."""
        backend, mtu = self.situation.backend, self.situation.mtu
        if self._published is None or self._published.key != lease.key:
            self._write_subnet_file(lease, peers)
        if not self.ready:
            return
        both = str(lease.subnet) if lease.subnet6 is None else f"{lease.subnet} and {lease.subnet6}"
        status = f"{both} by {backend.name}, MTU {mtu}, {peers} peer{'' if peers == 1 else 's'}"
        if status != self._status:
            self._status = status
            self.notifier.status(status)

    def _write_subnet_file(self, lease: Lease, peers: int) -> None:
        config, settings = self.situation.config, self.settings
        subnets = tuple(net for net in (lease.subnet if config.v4 else None, lease.subnet6) if net is not None)
        env = subnet_env.SubnetEnv(config.networks, subnets, self.situation.mtu, settings.ip_masq)
        try:
            subnet_env.write(settings.subnet_file, env)
        except FlannelpyError as error:
            self.reporter.begin("subnet-file", str(error))
            if not self._retrying:
                self._retrying = True
                asyncio.get_running_loop().call_later(RETRY_S, self._retry, lease, peers)
            return
        self.reporter.end("subnet-file")
        if self._published is not None:
            self.reporter.begin("subnet-changed", f"{lease.subnet}, it was {self._published.subnet}")
            self.on_moved(self._published, lease)
        self._published = lease
        if not self.ready:
            self.ready = True
            self.notifier.ready("ready")
            log.info("ready: %s by %s, MTU %d, in %s", lease, self.situation.backend.name, self.situation.mtu, settings.subnet_file)

    def _retry(self, lease: Lease, peers: int) -> None:
        self._retrying = False
        self.publish(lease, peers)

    def keep(self, state: State) -> None:
        """Keep what the next start needs, whatever becomes of this one."""
        self._keep(lambda: state_file.write(self.settings.state_dir, state))

    def keep_view(self, view: KeptView) -> None:
        """Keep what a start without etcd needs."""
        self._keep(lambda: view_file.write(self.settings.state_dir, view))

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except FlannelpyError as error:
            if not self.reporter.health.holds("state-dir"):  # that it cannot be read was said, and is the same trouble
                self.reporter.begin("state-dir", str(error))
        else:
            self.reporter.end("state-dir")
